"""The first schema.

Revision 0001. It stands on its own: what `begat.tables` says later must not change what this makes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_INTEGER = sa.Integer().with_variant(sa.BigInteger(), "postgresql")


def _text(name: str, *, key: bool = False, optional: bool = False) -> sa.Column[str]:
    return sa.Column(name, _TEXT, primary_key=key, nullable=optional)


def _integer(name: str, *, key: bool = False, optional: bool = False) -> sa.Column[int]:
    return sa.Column(name, _INTEGER, primary_key=key, nullable=optional, autoincrement=False)


def _table(
    name: str,
    *parts: sa.Column[str] | sa.Column[int] | sa.UniqueConstraint,
    clustered: bool = False,
) -> None:
    op.create_table(name, *parts, sqlite_strict=True, sqlite_with_rowid=not clustered)


def _check(name: str, table: str, *columns: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.create_index(f"{name}_check", table, [*columns])


def upgrade() -> None:
    _create_names()
    _create_lineage()
    _create_bytes()
    _create_history()
    _create_checks()


def _create_names() -> None:
    _table(
        "settings",
        _text("key", key=True),
        _text("value"),
    )
    _table(
        "artifacts",
        _text("uid", key=True),
        _text("name"),
        _text("type"),
        _text("description", optional=True),
        _integer("created_at"),
        _integer("last_number"),
        _integer("latest_number", optional=True),
        sa.UniqueConstraint("name"),
    )
    _table(
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
        sa.UniqueConstraint("artifact_uid", "number"),
        sa.UniqueConstraint("artifact_uid", "semver"),
        sa.UniqueConstraint("token"),
    )
    op.create_index("versions_by_digest", "versions", ["digest"])
    op.create_index("versions_by_run", "versions", ["run_uid"])
    op.create_index("versions_by_state", "versions", ["state"])
    _table(
        "entry_metadata",
        _text("version_uid", key=True),
        _text("path", key=True),
        _text("metadata"),
        clustered=True,
    )
    _table(
        "reuses",
        _text("token", key=True),
        _text("version_uid"),
        _integer("at"),
    )
    _table(
        "aliases",
        _text("artifact_uid", key=True),
        _text("name", key=True),
        _text("version_uid"),
        _integer("moved_at"),
        clustered=True,
    )
    op.create_index("aliases_by_version", "aliases", ["version_uid", "moved_at"])
    _table(
        "alias_history",
        _text("artifact_uid", key=True),
        _text("name", key=True),
        _integer("position", key=True),
        _integer("from_number", optional=True),
        _integer("to_number", optional=True),
        _integer("at"),
        _text("by"),
        _text("run_uid", optional=True),
        clustered=True,
    )
    _table(
        "tags",
        _text("target_kind", key=True),
        _text("target_uid", key=True),
        _text("tag", key=True),
        clustered=True,
    )
    op.create_index("tags_by_tag", "tags", ["target_kind", "tag"])


def _create_lineage() -> None:
    _table(
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
    )
    op.create_index("runs_by_job", "runs", ["job", "started_at"])
    op.create_index("runs_by_parent", "runs", ["parent_uid"])
    op.create_index("runs_by_start", "runs", ["started_at"])
    op.create_index("runs_by_status", "runs", ["status"])
    _table(
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
        clustered=True,
    )
    op.create_index(
        "edges_by_run",
        "edges",
        [
            "run_uid",
            "kind",
            "position",
            "version_uid",
            "at",
            "is_declared",
            "is_detected",
            "role",
            "mismatch",
        ],
    )
    op.create_index("edges_by_version", "edges", ["version_uid", "kind", "run_uid", "position"])
    _table(
        "ref_pins",
        _text("run_uid", key=True),
        _text("reference", key=True),
        _text("version_uid"),
        clustered=True,
    )


def _create_bytes() -> None:
    _table(
        "objects",
        _text("name", key=True),
        _integer("size_bytes"),
        _text("state"),
        _integer("created_at"),
    )
    _table(
        "blobs",
        _text("digest", key=True),
        _text("object"),
        _integer("offset"),
        _integer("stored_length"),
        _integer("raw_length"),
        _text("codec"),
        _text("kind"),
    )
    op.create_index("blobs_by_length", "blobs", ["raw_length"])
    op.create_index(
        "blobs_by_object",
        "blobs",
        ["object", "offset", "digest", "stored_length", "raw_length", "codec", "kind"],
    )
    _table(
        "recipes",
        _text("file", key=True),
        _text("recipe"),
        _text("splitter"),
        _integer("size_bytes"),
    )
    op.create_index("recipes_by_recipe", "recipes", ["recipe"])
    op.create_index("recipes_by_size", "recipes", ["size_bytes", "splitter"])
    _table(
        "holds",
        _text("version_uid", key=True),
        _text("object", key=True),
        clustered=True,
    )
    op.create_index("holds_by_object", "holds", ["object"])
    _table(
        "fingerprints",
        _text("fingerprint", key=True),
        _text("version_uid", key=True),
        _text("path", key=True),
        _text("kind"),
        _integer("at"),
        clustered=True,
    )


def _create_history() -> None:
    _table(
        "events",
        _text("uid", key=True),
        _integer("at"),
        _text("kind"),
        _text("subject"),
        _text("detail"),
        _text("by"),
    )
    op.create_index("events_by_subject", "events", ["subject", "at"])
    op.create_index("events_by_time", "events", ["at", "uid"])


def _create_checks() -> None:
    """Indexes over what lies in no other one, which SQLite compares with the rows."""
    _check("settings", "settings", "value")
    _check(
        "artifacts",
        "artifacts",
        "created_at",
        "type",
        "description",
        "last_number",
        "latest_number",
    )
    _check(
        "versions",
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
    )
    _check("entry_metadata", "entry_metadata", "version_uid", "metadata")
    _check("reuses", "reuses", "at", "version_uid")
    _check("alias_history", "alias_history", "at", "from_number", "to_number", "by", "run_uid")
    _check("runs_facts", "runs", "started_at", "git", "command", "environment")
    _check(
        "runs",
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
    )
    _check("ref_pins", "ref_pins", "run_uid", "version_uid")
    _check("objects", "objects", "created_at", "size_bytes", "state")
    _check("fingerprints", "fingerprints", "at", "kind")
    _check("events", "events", "at", "kind", "detail", "by")
