"""The transformers `Trainer` with begat: its checkpoints become versions, made by a run that says what it used.

from begat_transformers import ArtifactCallback

trainer = Trainer(model, args, train_dataset=ds, callbacks=[ArtifactCallback("net", uses=["digits:latest"])])
    trainer.train()
    log_predictions(trainer.predict(test), ids=test["id"])
"""

from importlib.metadata import version as installed_version
from importlib.util import find_spec

from begat.errors import MissingExtra

for _name in ("transformers", "torch", "accelerate"):
    if find_spec(_name) is None:
        raise MissingExtra(
            f'begat_transformers needs {_name}, which is not installed: pip install "begat[transformers]"'
        )
if int(installed_version("transformers").partition(".")[0]) < 5:
    raise MissingExtra(
        "begat_transformers needs transformers 5 or later, and "
        f'{installed_version("transformers")} is installed: pip install "begat[transformers]"'
    )

from begat_transformers.callback import ArtifactCallback  # noqa: E402 - what is missing is said first
from begat_transformers.predictions import log_predictions  # noqa: E402

__all__ = ["ArtifactCallback", "log_predictions"]
