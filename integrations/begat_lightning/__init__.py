"""Lightning with begat: a Trainer whose checkpoints become versions, made by a run that says what it used.

    from begat_lightning import ArtifactCallback

    trainer = Trainer(callbacks=[ModelCheckpoint(monitor="val_loss"), ArtifactCallback("net", uses=["digits:latest"])])

`PredictionCallback` makes a version of what `trainer.predict` gives. Both are for `lightning.pytorch`, or for
`pytorch_lightning` where only that is installed; where both are, those for `pytorch_lightning` are in
`begat_lightning.pl`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from begat.errors import MissingExtra

if TYPE_CHECKING:
    from begat_lightning.unified import ArtifactCallback, PredictionCallback

if find_spec("lightning") is not None:
    _home = "begat_lightning.unified"
elif find_spec("pytorch_lightning") is not None:
    _home = "begat_lightning.pl"
else:
    raise MissingExtra(
        'begat_lightning needs lightning, which is not installed: pip install "begat[lightning]"'
    )

__all__ = ["ArtifactCallback", "PredictionCallback"]


# Not before they are asked for: each of Lightning's names takes seconds to import, and every Trainer of the other one
# looks into this package for callbacks to add (`begat_lightning.autolog`).
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'begat_lightning' has no attribute {name!r}")
    return getattr(import_module(_home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
