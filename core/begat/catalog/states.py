"""Versions that are gone: what is said, everywhere in the same words, of one that was deleted or has no bytes left."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, select

from begat.catalog.rows import is_given
from begat.catalog.statements import Prepared
from begat.errors import BytesRetired, VersionDeleted
from begat.model import VersionRecord
from begat.tables import artifacts, events

DELETED_EVENT = "version-deleted"

_DELETION = Prepared(
    select(events.c.at, events.c.by)
    .where(is_given(events.c.subject, "ref"), events.c.kind == DELETED_EVENT)
    .order_by(events.c.at.desc())
)
_LATEST = Prepared(select(artifacts.c.latest_number).where(is_given(artifacts.c.uid, "uid")))


def with_bytes(connection: Connection, version: VersionRecord) -> VersionRecord:
    """The version itself, if its bytes are kept; else `VersionDeleted` or `BytesRetired`."""
    if version.state == "bytes-gone":
        raise BytesRetired(
            f"the bytes of {version.ref!r} were dropped by garbage collection; its place in the lineage is kept. "
            f"Nothing was changed; log the same content again to have them back (begat history {version.name})"
        )
    return not_deleted(connection, version)


def not_deleted(connection: Connection, version: VersionRecord) -> VersionRecord:
    """The version itself, if it was not deleted; else `VersionDeleted`, which says when and by whom it was."""
    if version.state != "deleted":
        return version
    latest = _LATEST.value(connection, uid=version.artifact_uid)
    if latest is None:
        rest = f"{version.name} has no version that is not deleted"
    else:
        rest = f"the newest is {version.name}:v{latest}"
    raise VersionDeleted(
        f"{deletion_text(connection, version)}. Nothing was changed; {rest} (begat history {version.name})"
    )


def deletion_text(connection: Connection, version: VersionRecord) -> str:
    """`digits:v1 was deleted on 2026-11-26 at 17:30 UTC by ada; its place in the lineage is kept`."""
    found = _DELETION.first(connection, ref=version.ref)
    when = ""
    if found is not None:  # a catalog that was made anew from the objects does not know
        at, by = found
        moment = datetime.fromtimestamp(at // 1_000_000, UTC)
        when = f" on {moment:%Y-%m-%d} at {moment:%H:%M} UTC by {by}"
    return f"{version.ref} was deleted{when}; its place in the lineage is kept"
