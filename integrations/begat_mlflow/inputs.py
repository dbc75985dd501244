"""A version of begat as the input of an MLflow run, and of the active run of begat at once."""

# MLflow's own signatures are untyped.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset

import begat
from begat.errors import Refused
from begat_mlflow.locations import SCHEME

# MLflow's column for digests has this many characters.
MAX_DIGEST_CHARACTERS = 36


def log_input(
    ref: str | begat.Version, context: str | None = None, tags: Mapping[str, str] | None = None
) -> begat.Version:
    """The version that a reference means, recorded as an input of the active MLflow run and of begat's active run.

    `context` is MLflow's word for what it is used for ("training"), and the role of begat's edge. In MLflow the input
    is a dataset with the artifact's name, the source `begat://digits:v3`, the beginning of its digest, and the tag
    `begat.digest` with all of it. Raises `begat.errors.Refused` without an active MLflow run, since none is started
    here, and what a reference raises.
    """
    active = mlflow.active_run()
    if active is None:
        raise Refused(
            f"no MLflow run is active, so {ref} was recorded nowhere; call this inside mlflow.start_run()"
        )
    version = begat.use_artifact(ref, role=context)
    dataset = MetaDataset(
        source=resolve_dataset_source(f"{SCHEME}{version.ref}"),
        name=version.name,
        digest=version.digest[:MAX_DIGEST_CHARACTERS],
    )
    mlflow.log_input(
        dataset, context=context, tags={**(tags or {}), "begat.digest": version.digest}
    )
    return version
