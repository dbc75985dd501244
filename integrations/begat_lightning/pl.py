"""The callbacks for `pytorch_lightning`, whose classes are others than those of `lightning.pytorch`."""

from pytorch_lightning import Callback
from pytorch_lightning.callbacks import BasePredictionWriter

from begat_lightning.predicting import Predicting
from begat_lightning.recording import Recording


class ArtifactCallback(Recording, Callback):  # pyright: ignore[reportIncompatibleVariableOverride] - asked in each batch
    """Checkpoints of a `pytorch_lightning.Trainer` become versions; see `begat_lightning.recording.Recording`."""


class PredictionCallback(Predicting, BasePredictionWriter):
    """What a `pytorch_lightning.Trainer` predicts becomes a version; see `begat_lightning.predicting.Predicting`."""
