"""The callbacks for `lightning.pytorch`."""

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BasePredictionWriter

from begat_lightning.predicting import Predicting
from begat_lightning.recording import Recording


class ArtifactCallback(Recording, Callback):  # pyright: ignore[reportIncompatibleVariableOverride] - asked in each batch
    """Checkpoints of a `lightning.pytorch.Trainer` become versions; see `begat_lightning.recording.Recording`."""


class PredictionCallback(Predicting, BasePredictionWriter):
    """What a `lightning.pytorch.Trainer` predicts becomes a version; see `begat_lightning.predicting.Predicting`."""
