"""The catalog's tables, for SQLite and PostgreSQL alike.

Columns are text, integers and bytes only: types that mean the same in every database. Times are microseconds since
1970-01-01 UTC, flags are 0 or 1, JSON is its canonical text, uids are UUIDv7 as text, digests are `b3:<hex>`.
No foreign keys: rows are never deleted but by garbage collection, which checks what it deletes.

Each column lies in an index too, which makes damage to it seen (`_check`); a test proves that as well.

A change here needs a migration (`migrations/versions`); a test proves that both ways give the very same schema.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text, UniqueConstraint

# The revisions that this begat knows, oldest first. A catalog at another one was written by a newer begat.
REVISIONS = ("0001", "0002")
HEAD = REVISIONS[-1]

METADATA = MetaData()

# PostgreSQL sorts text by the rules of a language unless told otherwise, and has 32 bits in an integer.
_TEXT = Text().with_variant(Text(collation="C"), "postgresql")
_INTEGER = Integer().with_variant(BigInteger(), "postgresql")


def _text(name: str, *, key: bool = False, optional: bool = False) -> Column[str]:
    return Column(name, _TEXT, primary_key=key, nullable=optional)


def _integer(name: str, *, key: bool = False, optional: bool = False) -> Column[int]:
    return Column(name, _INTEGER, primary_key=key, nullable=optional, autoincrement=False)


def _check(name: str, *columns: str) -> Index:
    """An index over what no other index has: SQLite compares each row with it (`PRAGMA integrity_check`).

    Its pages have no checksums, so a bit that flips in the text of a row would go unseen. The first column is one that
    grows, so that a commit changes few pages. PostgreSQL has checksums of its own, and limits what an index may hold.
    """
    return Index(f"{name}_check", *columns).ddl_if(dialect="sqlite")


def _table(
    name: str, *parts: Column[str] | Column[int] | Index | UniqueConstraint, clustered: bool = False
) -> Table:
    # STRICT: SQLite refuses a value of another type instead of keeping it. A clustered table (WITHOUT ROWID) lies in
    # the order of its key: right for narrow rows that are read by the beginning of their key.
    return Table(name, METADATA, *parts, sqlite_strict=True, sqlite_with_rowid=not clustered)


# Under the name and column that Alembic keeps its place in; made by us, so that it is strict like the others.
schema_version = _table("schema_version", _text("version_num", key=True))

settings = _table("settings", _text("key", key=True), _text("value"), _check("settings", "value"))

# `last_number` was given last and never goes back; `latest_number` is the highest that is not deleted.
artifacts = _table(
    "artifacts",
    _text("uid", key=True),
    _text("name"),
    _text("type"),
    _text("description", optional=True),
    _integer("created_at"),
    _integer("last_number"),
    _integer("latest_number", optional=True),
    UniqueConstraint("name"),
    _check("artifacts", "created_at", "type", "description", "last_number", "latest_number"),
)

# `entry_metadata_digest` is empty where no entry has metadata: two versions compare by one column.
versions = _table(
    "versions",
    _text("uid", key=True),
    _text("artifact_uid"),
    _integer("number"),
    _text("digest"),
    _text("root"),
    _text("record", optional=True),
    _text("semver", optional=True),
    _text("description", optional=True),
    _text("metadata"),
    _text("entry_metadata_digest"),
    _integer("size_bytes"),
    _integer("new_bytes"),
    _integer("file_count"),
    _text("state"),
    _text("run_uid", optional=True),
    _text("token"),
    _integer("created_at"),
    _text("created_by"),
    _text("origin_store", optional=True),
    _text("origin_uid", optional=True),
    _integer("shared_bytes", optional=True),
    UniqueConstraint("artifact_uid", "number"),
    UniqueConstraint("artifact_uid", "semver"),
    UniqueConstraint("token"),
    Index("versions_by_digest", "digest"),
    Index("versions_by_run", "run_uid"),
    Index("versions_by_state", "state"),
    _check(
        "versions",
        "created_at",
        "root",
        "record",
        "description",
        "metadata",
        "entry_metadata_digest",
        "size_bytes",
        "new_bytes",
        "file_count",
        "created_by",
        "origin_store",
        "origin_uid",
        "shared_bytes",
    ),
)

entry_metadata = _table(
    "entry_metadata",
    _text("version_uid", key=True),
    _text("path", key=True),
    _text("metadata"),
    _check("entry_metadata", "version_uid", "metadata"),
    clustered=True,
)

# Commits that found their content to be the latest already: the token of such an attempt finds its version again.
reuses = _table(
    "reuses",
    _text("token", key=True),
    _text("version_uid"),
    _integer("at"),
    _check("reuses", "at", "version_uid"),
)

aliases = _table(
    "aliases",
    _text("artifact_uid", key=True),
    _text("name", key=True),
    _text("version_uid"),
    _integer("moved_at"),
    Index("aliases_by_version", "version_uid", "moved_at"),
    clustered=True,
)

alias_history = _table(
    "alias_history",
    _text("artifact_uid", key=True),
    _text("name", key=True),
    _integer("position", key=True),
    _integer("from_number", optional=True),
    _integer("to_number", optional=True),
    _integer("at"),
    _text("by"),
    _text("run_uid", optional=True),
    _check("alias_history", "at", "from_number", "to_number", "by", "run_uid"),
    clustered=True,
)

tags = _table(
    "tags",
    _text("target_kind", key=True),
    _text("target_uid", key=True),
    _text("tag", key=True),
    Index("tags_by_tag", "target_kind", "tag"),
    clustered=True,
)

runs = _table(
    "runs",
    _text("uid", key=True),
    _text("name"),
    _text("job", optional=True),
    _text("status"),
    _text("parent_uid", optional=True),
    _integer("started_at"),
    _integer("ended_at", optional=True),
    _integer("heartbeat_at"),
    _text("params"),
    _text("metrics"),
    _text("git"),
    _text("command"),
    _text("environment"),
    _text("error", optional=True),
    _text("host"),
    _integer("pid"),
    _text("process_started"),
    _text("boot_id"),
    _text("user"),
    _text("origin_store", optional=True),
    _text("origin_uid", optional=True),
    Index("runs_by_start", "started_at"),
    Index("runs_by_job", "job", "started_at"),
    Index("runs_by_status", "status"),
    Index("runs_by_parent", "parent_uid"),
    # What may be large and never changes is apart, so that a heartbeat does not write it again.
    _check("runs_facts", "started_at", "git", "command", "environment"),
    _check(
        "runs",
        "started_at",
        "name",
        "ended_at",
        "heartbeat_at",
        "params",
        "metrics",
        "error",
        "host",
        "pid",
        "process_started",
        "boot_id",
        "user",
        "origin_store",
        "origin_uid",
    ),
)

# `requested` is empty where nothing was asked for: a run may ask for one version in several ways, each an edge.
# Both indexes hold all that a walk through the lineage asks for, one for each direction.
edges = _table(
    "edges",
    _text("run_uid", key=True),
    _text("version_uid", key=True),
    _text("kind", key=True),
    _integer("position"),
    _integer("at"),
    _integer("is_declared"),
    _integer("is_detected"),
    _text("role", optional=True),
    _text("requested", key=True),
    _text("mismatch", optional=True),
    Index(
        "edges_by_run",
        "run_uid",
        "kind",
        "position",
        "version_uid",
        "at",
        "is_declared",
        "is_detected",
        "role",
        "mismatch",
    ),
    Index("edges_by_version", "version_uid", "kind", "run_uid", "position"),
    clustered=True,
)

ref_pins = _table(
    "ref_pins",
    _text("run_uid", key=True),
    _text("reference", key=True),
    _text("version_uid"),
    _check("ref_pins", "run_uid", "version_uid"),
    clustered=True,
)

objects = _table(
    "objects",
    _text("name", key=True),
    _integer("size_bytes"),
    _text("state"),
    _integer("created_at"),
    _check("objects", "created_at", "size_bytes", "state"),
)

blobs = _table(
    "blobs",
    _text("digest", key=True),
    _text("object"),
    _integer("offset"),
    _integer("stored_length"),
    _integer("raw_length"),
    _text("codec"),
    _text("kind"),
    Index(
        "blobs_by_object",
        "object",
        "offset",
        "digest",
        "stored_length",
        "raw_length",
        "codec",
        "kind",
    ),
    Index("blobs_by_length", "raw_length"),
)

recipes = _table(
    "recipes",
    _text("file", key=True),
    _text("recipe"),
    _text("splitter"),
    _integer("size_bytes"),
    Index("recipes_by_recipe", "recipe"),
    Index("recipes_by_size", "size_bytes", "splitter"),
)

holds = _table(
    "holds",
    _text("version_uid", key=True),
    _text("object", key=True),
    Index("holds_by_object", "object"),
    clustered=True,
)

fingerprints = _table(
    "fingerprints",
    _text("fingerprint", key=True),
    _text("version_uid", key=True),
    _text("path", key=True),
    _text("kind"),
    _integer("at"),
    _check("fingerprints", "at", "kind"),
    clustered=True,
)

events = _table(
    "events",
    _text("uid", key=True),
    _integer("at"),
    _text("kind"),
    _text("subject"),
    _text("detail"),
    _text("by"),
    Index("events_by_time", "at", "uid"),
    Index("events_by_subject", "subject", "at"),
    _check("events", "at", "kind", "detail", "by"),
)
