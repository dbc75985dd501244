"""Lightning with begat: a Trainer whose checkpoints become versions, made by a run that says what it used.

    from begat_lightning import ArtifactCallback

    trainer = Trainer(callbacks=[ModelCheckpoint(monitor="val_loss"), ArtifactCallback("net", uses=["digits:latest"])])

`ArtifactCallback` is for `lightning.pytorch`, or for `pytorch_lightning` where only that is installed. Where both are,
`begat_lightning.pl.ArtifactCallback` is the one for `pytorch_lightning`.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from begat.errors import MissingExtra

if TYPE_CHECKING or find_spec("lightning") is not None:
    from begat_lightning.unified import ArtifactCallback
elif find_spec("pytorch_lightning") is not None:
    from begat_lightning.pl import ArtifactCallback
else:
    raise MissingExtra(
        'begat_lightning needs lightning, which is not installed: pip install "begat[lightning]"'
    )

__all__ = ["ArtifactCallback"]
