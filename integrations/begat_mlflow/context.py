"""Runs that know each other: an MLflow run is tagged with the run of begat that it belongs to, and the other way."""

# MLflow's own signatures are untyped.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import os
import sys
from typing import Any

from mlflow.tracking.context.abstract_context import RunContextProvider

import begat

RUN_TAG = "begat.run"
INPUTS_TAG = "begat.inputs"
# MLflow refuses tags that are longer than 8,000 characters, its older stores than 5,000.
MAX_TAG_CHARACTERS = 4_500


class BegatRunContext(RunContextProvider):
    """Tags each MLflow run at its creation with the active run of begat, and with what that has used."""

    def in_context(self) -> bool:
        """Whether a run of begat is active. Asked at each MLflow run, so cheap where begat is not in use."""
        if "begat.active" not in sys.modules and "BEGAT_RUN_ID" not in os.environ:
            return False
        run = begat.active_run()
        return run is not None and bool(run.id)

    def tags(self) -> dict[str, str]:
        """`begat.run` (its id) and `begat.inputs` (references, with commas)."""
        run = begat.active_run()
        return {} if run is None else tags_of(run)


class MlflowLink:
    """Told of begat's runs: one that starts inside an MLflow run is linked to it, in both."""

    def run_started(self, run: begat.Run) -> None:
        """Note the MLflow run in the run's params, and tag the MLflow run."""
        active = _active_mlflow_run()
        if active is not None:
            run.log_params(
                {
                    "mlflow.run_id": active.info.run_id,
                    "mlflow.experiment_id": active.info.experiment_id,
                }
            )
            _tag(active.info.run_id, tags_of(run))

    def inputs_changed(self, run: begat.Run) -> None:
        """Tag the MLflow run with what the run uses by now."""
        active = _active_mlflow_run()
        if active is not None:
            _tag(active.info.run_id, tags_of(run))


def tags_of(run: begat.Run) -> dict[str, str]:
    """What an MLflow run is told of a run of begat."""
    inputs = ", ".join(version.ref for version in run.inputs)
    if len(inputs) > MAX_TAG_CHARACTERS:
        inputs = f"{inputs[: MAX_TAG_CHARACTERS - 5].rpartition(', ')[0]}, ..."
    return {RUN_TAG: run.id, **({INPUTS_TAG: inputs} if inputs else {})}


def _active_mlflow_run() -> Any:
    """MLflow's active run in this thread, or None; MLflow is never imported or started for it."""
    fluent = sys.modules.get("mlflow.tracking.fluent")
    return None if fluent is None else fluent.active_run()


def _tag(run_id: str, tags: dict[str, str]) -> None:
    from mlflow import MlflowClient  # not before: this module is loaded while MLflow is

    client = MlflowClient()
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


_link = MlflowLink()
begat.add_run_listener(_link)
