"""A version's own record, stored beside its manifest, from which a lost catalog can be rebuilt.

JSON in a canonical text, since it is read by people when all else is lost. It says what was true when the version
was committed; labels that moved later are in the catalog and its backups only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import msgspec
from msgspec import structs

from begat.errors import FormatTooNew, ManifestUnreadable
from begat.identity import Digest
from begat.metadata import canonical_json
from begat.model import Json, RunRecord

FORMAT = 1
MAX_RECORD_BYTES = 256 << 20


class InputRecord(msgspec.Struct, frozen=True):
    """A version that the run had used when this version was made."""

    version_uid: str
    ref: str
    position: int
    requested: str | None
    role: str | None
    is_declared: bool
    is_detected: bool
    mismatch: str | None = None


class VersionFile(msgspec.Struct, frozen=True, kw_only=True):
    """All that a catalog needs to know a version again. `expected_number` is what it was going to be.

    `run` comes without command, git state and environment: these are the same for all versions of a run, may be large
    (a diff), and lie in a blob of their own, `run_facts`.
    """

    store_uid: str
    uid: str
    token: str
    name: str
    type: str
    expected_number: int
    digest: Digest
    root: Digest
    semver: str | None
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    description: str | None
    metadata: Mapping[str, Json]
    entry_metadata: Mapping[str, Mapping[str, Json]]
    size_bytes: int
    file_count: int
    created_at: int
    created_by: str
    run: RunRecord | None
    run_facts: Digest | None
    inputs: tuple[InputRecord, ...]


def encode_record(record: VersionFile) -> bytes:
    """The record as canonical JSON in UTF-8."""
    return canonical_json({"format": FORMAT, **msgspec.to_builtins(record)}).encode()


def decode_record(data: bytes) -> VersionFile:
    """The record that these bytes are; `ManifestUnreadable`, or `FormatTooNew` for one of a newer begat."""
    if len(data) > MAX_RECORD_BYTES:
        raise ManifestUnreadable(
            f"a version record has {len(data)} bytes, the limit is {MAX_RECORD_BYTES}"
        )
    try:
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        values = cast("dict[str, Any]", found)
        if values.pop("format") != FORMAT:
            raise FormatTooNew(
                "a version record was written by a newer begat; nothing was changed. Upgrade begat to read it"
            )
        run, inputs = values.pop("run"), values.pop("inputs")
        return VersionFile(
            **_fitting(VersionFile, values),
            run=None if run is None else RunRecord(**_fitting(RunRecord, run)),
            inputs=tuple(InputRecord(**_fitting(InputRecord, item)) for item in inputs),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestUnreadable(
            f"a version record does not parse ({error}); restore it, or log the version again"
        ) from error


def encode_run_facts(run: RunRecord) -> bytes:
    """What never changes about a run, as canonical JSON: command, git state, environment."""
    facts = {"command": run.command, "git": run.git, "environment": run.environment}
    return canonical_json({"format": FORMAT, **facts}).encode()


def without_facts(run: RunRecord) -> RunRecord:
    """The run as it stands in a version's record."""
    return structs.replace(run, command={}, git={}, environment={})


def with_facts(run: RunRecord, data: bytes) -> RunRecord:
    """The whole run again, from its part in a version's record and its facts; `ManifestUnreadable`."""
    try:
        found = json.loads(data)
        if found["format"] != FORMAT:
            raise FormatTooNew(
                "the facts of a run were written by a newer begat; nothing was changed. Upgrade begat to read them"
            )
        return structs.replace(
            run, command=found["command"], git=found["git"], environment=found["environment"]
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ManifestUnreadable(f"the facts of a run do not parse ({error})") from error


def _fitting(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """JSON lists back to tuples; a field that is missing is an error of the class's own."""
    unknown = values.keys() - kind.__annotations__.keys()
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    return {
        name: tuple(cast("list[Any]", v)) if isinstance(v, list) else v
        for name, v in values.items()
    }
