"""Facts as values for JSON, by the names of their attributes; times in microseconds since 1970."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from begat.wording import printable

if TYPE_CHECKING:
    from begat.fingerprints import Fingerprint
    from begat.model import Edge, Json, RunRecord, VersionRecord

# The parameter of a run that says what it trained on, by role.
DATA_KEY = "begat.data"
SHORT_DIGEST = len("b3:") + 12


def version_facts(version: VersionRecord) -> dict[str, Any]:
    """What JSON says of a version: the names of its attributes, and `produced_by` as the id of a run."""
    return {
        "ref": version.ref,
        "name": version.name,
        "type": version.type,
        "number": version.number,
        "version": version.version,
        "digest": version.digest,
        "state": version.state,
        "aliases": list(version.aliases),
        "tags": list(version.tags),
        "description": version.description,
        "metadata": dict(version.metadata),
        "size_bytes": version.size_bytes,
        "new_bytes": version.new_bytes,
        "shared_bytes": version.shared_bytes,
        "file_count": version.file_count,
        "created_at": version.created_at,
        "is_latest": version.is_latest,
        "produced_by": version.run_uid,
    }


def run_facts(run: RunRecord) -> dict[str, Any]:
    """What JSON says of a run: the names of its attributes, without command and environment."""
    return {
        "id": run.uid,
        "name": run.name,
        "job": run.job,
        "status": run.status,
        "parent_id": run.parent_uid,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "params": dict(run.params),
        "metrics": dict(run.metrics),
        "tags": list(run.tags),
        "git": dict(run.git),
        "user": run.user,
        "host": run.host,
    }


def edge_facts(edge: Edge, version: VersionRecord) -> dict[str, Any]:
    """What JSON says of an edge, which names its version by `ref` and its run by `run_id`."""
    return {
        "run_id": edge.run_uid,
        "ref": version.ref,
        "kind": edge.kind,
        "position": edge.position,
        "at": edge.at,
        "role": edge.role,
        "requested": edge.requested,
        "is_declared": edge.is_declared,
        "is_detected": edge.is_detected,
        "mismatch": edge.mismatch,
    }


def data_facts(content: Fingerprint, refs: list[str]) -> dict[str, Any]:
    """What a run keeps of the data that it was given: its fingerprint, and the versions that it is known to be."""
    return {
        "kind": content.kind,
        "digest": content.digest,
        "rows": content.n_rows,
        "schema": content.schema,
        "exact": content.exact,
        "how": content.how,
        "versions": refs,
    }


def data_texts(facts_by_role: object) -> tuple[str, ...]:
    """What a run was given to train on, in words; empty for what this begat did not write."""
    if not isinstance(facts_by_role, Mapping):
        return ()
    by_role = cast("Mapping[str, Any]", facts_by_role)
    return tuple(
        f"{role}: {_data_text(cast('Mapping[str, Any]', facts))}"
        for role, facts in by_role.items()
        if isinstance(facts, Mapping)
    )


def _data_text(facts: Mapping[str, Any]) -> str:
    text = str(facts.get("kind"))
    if facts.get("schema"):
        text += f" of {facts['schema']}"
    if facts.get("rows") is not None:
        text += f", {facts['rows']:,} rows"
    if facts.get("digest"):
        text += f", {facts['digest'][:SHORT_DIGEST]}"
    if not facts.get("exact"):
        text += f" ({facts.get('how')})"
    versions = ", ".join(facts.get("versions") or ())
    known = f"; from {versions}" if versions else "; no version is known to hold it"
    return printable(text) + known


def checkpoint_facts(
    path: str | os.PathLike[str],
    *,
    step: int | None,
    epoch: int | None,
    score: float | None,
    monitor: str | None,
) -> dict[str, Json]:
    """What the metadata of a checkpoint says; what is not known is left out."""
    found: dict[str, Json] = {"path": os.fspath(path)}
    if step is not None:
        found["step"] = int(step)
    if epoch is not None:
        found["epoch"] = int(epoch)
    if monitor is not None:
        found["monitor"] = monitor
    if score is not None:
        # JSON has no NaN and no infinity, and a score of that kind compares with nothing.
        found["score"] = float(score) if math.isfinite(score) else None
    return found
