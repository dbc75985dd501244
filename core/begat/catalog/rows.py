"""How rows become records: the selects that fetch what a record needs, and the functions that build it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    Text,
    TypeDecorator,
    and_,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.sql.elements import ColumnElement

from begat.catalog.statements import Prepared, chunks
from begat.metadata import canonical_json
from begat.model import (
    BlobLocation,
    Digest,
    Edge,
    ObjectRecord,
    RunRecord,
    VersionRecord,
)
from begat.tables import aliases, artifacts, blobs, edges, objects, runs, tags, versions

Fields = Sequence[Any]  # a row, read by position: by name costs twice the time

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def json_text(value: object) -> str:
    """The canonical text that goes into a column."""
    return canonical_json(value)


def json_value(text: str) -> Any:
    """The value that a column's text says."""
    # Most versions have no metadata, and most runs no metrics yet.
    return {} if text == "{}" else _decode(text)


def is_given(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """The condition that a column has the value of a parameter.

    Statements are built once, at import, with parameters: building one costs as much as running it.
    """
    return column == bindparam(name)


def is_among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """The condition that a column has one of the values of a list parameter."""
    return column.in_(bindparam(name, expanding=True))


class _JsonList(TypeDecorator[Any]):
    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: object) -> str:
        return _encode(value).decode()


def is_among_many(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """The same for long lists, which go to SQLite as one value: its statement has one text, whatever their length."""
    given = func.json_each(bindparam(name, type_=_JsonList)).table_valued("value")
    return column.in_(select(given.c.value))


# --- versions ---

# What a record takes from its own row, in the order of its fields; the artifact's part stands after the uid.
OWN_COLUMNS = (
    versions.c.uid,
    versions.c.number,
    versions.c.digest,
    versions.c.root,
    versions.c.semver,
    versions.c.description,
    versions.c.metadata,
    versions.c.size_bytes,
    versions.c.new_bytes,
    func.coalesce(versions.c.shared_bytes, 0),
    versions.c.file_count,
    versions.c.state,
    versions.c.run_uid,
    versions.c.created_at,
)
_VERSION_COLUMNS: tuple[ColumnElement[Any], ...] = (
    versions.c.uid,
    versions.c.artifact_uid,
    artifacts.c.name,
    artifacts.c.type,
    *OWN_COLUMNS[1:],
)
_FROM_VERSIONS = versions.join(artifacts, artifacts.c.uid == versions.c.artifact_uid)
# Aliases and tags hold no comma, so one column can carry them all. Not a parameter: a statement would not be whole once
# it is compiled (`Prepared`).
COMMA: Any = literal_column("','", Text)
_ALIASES = (
    select(func.aggregate_strings(aliases.c.name, COMMA))
    .where(aliases.c.version_uid == versions.c.uid)
    .correlate(versions)
    .scalar_subquery()
)
_TAGS = (
    select(func.aggregate_strings(tags.c.tag, COMMA))
    .where(tags.c.target_kind == "version", tags.c.target_uid == versions.c.uid)
    .correlate(versions)
    .scalar_subquery()
)
_IS_LATEST = artifacts.c.latest_number == versions.c.number

_RECORD_COLUMNS = (*_VERSION_COLUMNS, _ALIASES, _TAGS, _IS_LATEST)

# Add a `where`; `version_record` builds the record from a row.
VERSIONS = select(*_RECORD_COLUMNS).select_from(_FROM_VERSIONS)
_ONE_VERSION = Prepared(VERSIONS.where(is_given(versions.c.uid, "uid")))
_MANY_VERSIONS = Prepared(VERSIONS.where(is_among_many(versions.c.uid, "uids")))
# An artifact with its latest version, if it has one: a row of `VERSIONS` and two columns more.
STANDING = select(*_RECORD_COLUMNS, artifacts.c.type, artifacts.c.last_number).select_from(
    artifacts.outerjoin(versions, and_(versions.c.artifact_uid == artifacts.c.uid, _IS_LATEST))
)


def version_record(row: Fields) -> VersionRecord:
    """The record of a row of `VERSIONS`."""
    values = list(row)
    values[9] = json_value(row[9])
    values[17], values[18] = labels_of(row[17]), labels_of(row[18])
    values[19] = bool(row[19])
    return VersionRecord(*values)


def labels_of(text: str | None) -> tuple[str, ...]:
    """`"prod,best"` -> `("best", "prod")`."""
    return tuple(sorted(text.split(","))) if text else ()


def fetch_version(connection: Connection, uid: str) -> VersionRecord | None:
    """The version with a uid, if there is one."""
    row = _ONE_VERSION.first(connection, uid=uid)
    return version_record(row) if row else None


def fetch_versions(connection: Connection, uids: Iterable[str]) -> dict[str, VersionRecord]:
    """The versions with these uids, by uid; unknown ones are left out."""
    found: dict[str, VersionRecord] = {}
    for chunk in chunks(uids):
        for row in _MANY_VERSIONS.each(connection, uids=chunk):
            record = version_record(row)
            found[record.uid] = record
    return found


# --- runs ---

_RUN_TAGS = (
    select(func.aggregate_strings(tags.c.tag, COMMA))
    .where(tags.c.target_kind == "run", tags.c.target_uid == runs.c.uid)
    .correlate(runs)
    .scalar_subquery()
)
RUNS = select(
    runs.c.uid,
    runs.c.name,
    runs.c.job,
    runs.c.status,
    runs.c.parent_uid,
    runs.c.started_at,
    runs.c.ended_at,
    runs.c.heartbeat_at,
    runs.c.params,
    runs.c.metrics,
    _RUN_TAGS,
    runs.c.git,
    runs.c.command,
    runs.c.environment,
    runs.c.error,
    runs.c.host,
    runs.c.pid,
    runs.c.process_started,
    runs.c.user,
    runs.c.boot_id,
)

_ONE_RUN = Prepared(RUNS.where(is_given(runs.c.uid, "uid")))
_MANY_RUNS = Prepared(RUNS.where(is_among_many(runs.c.uid, "uids")))
_RUN_JSON = (8, 9, 11, 12, 13)


def run_record(row: Fields) -> RunRecord:
    """The record of a row of `RUNS`."""
    values = list(row)
    for place in _RUN_JSON:
        values[place] = json_value(row[place])
    values[10] = labels_of(row[10])
    values[14] = None if row[14] is None else json_value(row[14])
    return RunRecord(*values)


def fetch_run(connection: Connection, uid: str) -> RunRecord | None:
    """The run with a uid, if there is one."""
    row = _ONE_RUN.first(connection, uid=uid)
    return run_record(row) if row else None


def fetch_runs(connection: Connection, uids: Iterable[str]) -> dict[str, RunRecord]:
    """The runs with these uids, by uid; unknown ones are left out."""
    found: dict[str, RunRecord] = {}
    for chunk in chunks(uids):
        for row in _MANY_RUNS.each(connection, uids=chunk):
            record = run_record(row)
            found[record.uid] = record
    return found


# --- edges and bytes ---

EDGES = select(
    edges.c.run_uid,
    edges.c.version_uid,
    edges.c.kind,
    edges.c.position,
    edges.c.at,
    edges.c.is_declared,
    edges.c.is_detected,
    edges.c.role,
    edges.c.requested,
    edges.c.mismatch,
)


def edge_record(row: Fields) -> Edge:
    """The record of a row of `EDGES`."""
    run, version, kind, position, at, is_declared, is_detected, role, requested, mismatch = row
    return Edge(
        *(run, version, kind, position, at, bool(is_declared), bool(is_detected)),
        *(role, requested or None, mismatch),
    )


def edge_row(edge: Edge) -> tuple[object, ...]:
    """The values of an edge, in the order of the table's columns."""
    return (
        *(edge.run_uid, edge.version_uid, edge.kind, edge.position, edge.at),
        *(int(edge.is_declared), int(edge.is_detected)),
        *(edge.role, edge.requested or "", edge.mismatch),
    )


BLOBS = select(
    blobs.c.digest,
    blobs.c.object,
    blobs.c.offset,
    blobs.c.stored_length,
    blobs.c.raw_length,
    blobs.c.codec,
    blobs.c.kind,
)
OBJECTS = select(objects.c.name, objects.c.size_bytes, objects.c.state)

_ALL_BLOBS = Prepared(BLOBS.where(is_among_many(blobs.c.digest, "digests")))
_LIVE_BLOBS = Prepared(
    BLOBS.select_from(blobs.join(objects, objects.c.name == blobs.c.object)).where(
        objects.c.state == "live", is_among_many(blobs.c.digest, "digests")
    )
)


def blob_location(row: Fields) -> BlobLocation:
    """The record of a row of `BLOBS`."""
    return BlobLocation(*row)


def object_record(row: Fields) -> ObjectRecord:
    """The record of a row of `OBJECTS`."""
    return ObjectRecord(*row)


def blob_locations(
    connection: Connection, digests: Iterable[Digest], *, with_damaged: bool = False
) -> dict[Digest, BlobLocation]:
    """Where these blobs lie, for those that lie in an object that is live (or in any)."""
    statement = _ALL_BLOBS if with_damaged else _LIVE_BLOBS
    found: dict[Digest, BlobLocation] = {}
    for chunk in chunks(digests):
        # All rows of a chunk at once: fetching each by itself costs as much as finding it.
        for row in statement.all(connection, digests=chunk):
            found[row[0]] = BlobLocation(*row)
    return found
