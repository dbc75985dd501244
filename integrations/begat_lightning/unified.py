"""The callback for `lightning.pytorch`."""

from lightning.pytorch import Callback

from begat_lightning.recording import Recording


class ArtifactCallback(Recording, Callback):
    """Checkpoints of a `lightning.pytorch.Trainer` become versions; see `begat_lightning.recording.Recording`."""
