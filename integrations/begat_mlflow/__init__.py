"""MLflow with begat: `begat://` as an artifact location, and runs that know each other.

    mlflow.create_experiment("digits", artifact_location="begat://digits/mlflow")

Everything that MLflow stores in this experiment is then deduplicated, verified and versioned in the default store of
begat; the code stays as it is. MLflow finds this package by its entry points, and loads it while it is itself being
imported: so nothing of MLflow is imported here before it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from begat_mlflow.context import BegatRunContext
    from begat_mlflow.inputs import log_input
    from begat_mlflow.repository import BegatArtifactRepository

__all__ = ["BegatArtifactRepository", "BegatRunContext", "log_input"]

_HOMES = {
    "BegatArtifactRepository": "repository",
    "BegatRunContext": "context",
    "log_input": "inputs",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'begat_mlflow' has no attribute {name!r}")
    try:
        return getattr(import_module(f"begat_mlflow.{home}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mlflow":
            raise
        from begat.errors import MissingExtra

        raise MissingExtra(
            'begat_mlflow needs mlflow 3 or later: pip install "begat[mlflow]"'
        ) from error
