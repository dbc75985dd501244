"""begat - know what begat what: immutable versions of data, models and predictions, and the runs that made them.

    with begat.start_run("train", uses=["digits:latest"]) as run:
        folder = run.use_artifact("digits:latest").path
        run.log_artifact("digits-model", "out/", type="model", aliases=["best"])

Names are loaded when they are first used, so `import begat` costs next to nothing.
"""

from __future__ import annotations

import atexit
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from begat import errors
from begat.errors import BegatError, BegatWarning

if TYPE_CHECKING:
    from begat.artifact import Artifact
    from begat.default import (
        active_run,
        default_store,
        get_artifact,
        log_artifact,
        start_run,
        use_artifact,
    )
    from begat.diff import Diff
    from begat.drawing import Lineage
    from begat.fingerprints import Fingerprint, fingerprint
    from begat.listeners import RunListener, add_run_listener, remove_run_listener
    from begat.model import EmptyDirectory, Entry, RemoteAsset, StoredFile, Symlink
    from begat.opening import open_store
    from begat.recording.predictions import PredictionWriter
    from begat.recording.recorder import Recorder
    from begat.recording.sealing import Predictions
    from begat.run import Run
    from begat.store import ABSENT, ANY, Store
    from begat.version import Version

__version__ = "0.1.0"

__all__ = [
    "ABSENT",
    "ANY",
    "Artifact",
    "BegatError",
    "BegatWarning",
    "Diff",
    "EmptyDirectory",
    "Entry",
    "Fingerprint",
    "Lineage",
    "PredictionWriter",
    "Predictions",
    "Recorder",
    "RemoteAsset",
    "Run",
    "RunListener",
    "Store",
    "StoredFile",
    "Symlink",
    "Version",
    "__version__",
    "active_run",
    "add_run_listener",
    "default_store",
    "errors",
    "fingerprint",
    "get_artifact",
    "log_artifact",
    "open_store",
    "remove_run_listener",
    "start_run",
    "use_artifact",
]

_HOMES = {
    "ABSENT": "store",
    "ANY": "store",
    "Artifact": "artifact",
    "Diff": "diff",
    "EmptyDirectory": "model",
    "Entry": "model",
    "Fingerprint": "fingerprints",
    "Lineage": "drawing",
    "PredictionWriter": "recording.predictions",
    "Predictions": "recording.sealing",
    "Recorder": "recording.recorder",
    "RemoteAsset": "model",
    "Run": "run",
    "RunListener": "listeners",
    "Store": "store",
    "StoredFile": "model",
    "Symlink": "model",
    "Version": "version",
    "active_run": "default",
    "add_run_listener": "listeners",
    "default_store": "default",
    "fingerprint": "fingerprints",
    "get_artifact": "default",
    "log_artifact": "default",
    "open_store": "opening",
    "remove_run_listener": "listeners",
    "start_run": "default",
    "use_artifact": "default",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'begat' has no attribute {name!r}")
    value = getattr(import_module(f"begat.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _end_open_runs() -> None:
    active = sys.modules.get("begat.active")
    if active is not None:  # else no run was ever started here
        active.end_open_runs()


# Here, where every process comes first: exit handlers run last in, first out, so one that is registered after
# `import begat` still finds the run open, and what it logs is made by it.
atexit.register(_end_open_runs)
