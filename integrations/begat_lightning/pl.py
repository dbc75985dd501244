"""The callback for `pytorch_lightning`, whose classes are others than those of `lightning.pytorch`."""

from pytorch_lightning import Callback

from begat_lightning.recording import Recording


class ArtifactCallback(Recording, Callback):
    """Checkpoints of a `pytorch_lightning.Trainer` become versions; see `begat_lightning.recording.Recording`."""
