"""What versions and runs are called in a drawing: short, and safe to show anywhere."""

from __future__ import annotations

from begat.model import RunRecord, VersionRecord
from begat.wording import duration_text


def state_text(version: VersionRecord) -> str:
    """`deleted`, `retired`, `bytes gone`; empty for a live version."""
    return "" if version.state == "live" else version.state.replace("-", " ")


def run_state(run: RunRecord) -> str:
    """`finished, 2 s`, or only the status while the run goes on."""
    if run.ended_at is None:
        return run.status
    return f"{run.status}, {duration_text(run.ended_at - run.started_at)}"
