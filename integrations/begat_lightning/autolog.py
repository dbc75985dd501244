"""What every Trainer asks for callbacks to add, by an entry point: one of ours, where `BEGAT_AUTOLOG=1` is set.

It is called even where nobody wants it, so nothing is imported before that is known.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from begat_lightning.recording import Recording


def for_lightning() -> list[Recording]:
    """An `ArtifactCallback` for a Trainer of `lightning.pytorch`, if the environment asks for one."""
    if not _is_asked_for():
        return []
    from begat_lightning.unified import ArtifactCallback

    return [ArtifactCallback(is_automatic=True)]  # does nothing beside one of the user's


def for_pytorch_lightning() -> list[Recording]:
    """An `ArtifactCallback` for a Trainer of `pytorch_lightning`, if the environment asks for one."""
    if not _is_asked_for():
        return []
    from begat_lightning.pl import ArtifactCallback

    return [ArtifactCallback(is_automatic=True)]  # does nothing beside one of the user's


def _is_asked_for() -> bool:
    return os.environ.get("BEGAT_AUTOLOG", "").lower() in ("1", "true", "yes", "on")
