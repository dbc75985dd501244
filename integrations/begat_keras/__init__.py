"""Keras 3 with begat: a model that is fitted records what it used, and what it saves becomes versions.

    from begat_keras import ArtifactCallback

    best = ModelCheckpoint("net.keras", save_best_only=True)
    model.fit(x, y, validation_split=0.1, callbacks=[best, ArtifactCallback("net", uses=["digits:latest"])])

`EvaluationTable` makes a version of what the model predicts for held-out data at the end of the fit,
`PredictionCallback` of what `model.predict` gives. Any backend: what is called here is the same for all of them.
"""

from begat.errors import MissingExtra

try:
    import keras  # pyright: ignore[reportMissingTypeStubs]
except ModuleNotFoundError as error:
    if error.name != "keras":  # its backend, of which Keras says best what is missing
        raise
    raise MissingExtra(
        'begat_keras needs keras, which is not installed: pip install "begat[keras]"'
    ) from error

if tuple(int(part) for part in keras.__version__.split(".")[:2]) < (3, 5):
    raise MissingExtra(
        f"begat_keras needs keras 3.5 or later, and {keras.__version__} is installed: "
        'pip install --upgrade "begat[keras]"'
    )

# Only with a Keras that has what they need.
from begat_keras.callback import ArtifactCallback
from begat_keras.predictions import EvaluationTable, PredictionCallback

__all__ = ["ArtifactCallback", "EvaluationTable", "PredictionCallback"]
