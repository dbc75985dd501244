"""The changes that commits and labels share, each a step inside a transaction that the caller holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, func, select

from begat.catalog.rows import VERSIONS, is_given, json_text, version_record
from begat.catalog.statements import Prepared, insert, insert_many
from begat.errors import AliasMoved, VersionNotFound
from begat.identity import new_uid
from begat.model import AliasMove, Expect, VersionRecord, VersionState
from begat.tables import alias_history, aliases, artifacts, edges, events, holds, tags, versions

TagTarget = Literal["artifact", "version", "run"]


class Change(msgspec.Struct, frozen=True):
    """Who changes something, when (microseconds, the catalog's clock), and the transaction it happens in."""

    connection: Connection
    at: int
    by: str
    run_uid: str | None = None

    def note(self, kind: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Write a line of the store's history."""
        row = (new_uid(), self.at, kind, subject, json_text(detail), self.by)
        insert_many(self.connection, events, [row])


# --- what somebody expects ---


def check_expected(artifact: str, alias: str, number: int | None, *, expect: Expect | int) -> None:
    """Raise `AliasMoved` unless an alias is where it is expected; `number` is where it is, None for nowhere."""
    if expect is Expect.ANY or expect == number or (expect is Expect.ABSENT and number is None):
        return
    expected = "nowhere" if expect is Expect.ABSENT else f"at v{expect}"
    now = "does not exist" if number is None else f"is at {artifact}:v{number}"
    raise AliasMoved(
        f"the alias {artifact}:{alias} {now}, and not {expected} as expected. Nothing was changed; "
        f"look at its history and decide again (begat history {artifact})"
    )


# --- the version that is changed ---

_LOCKED_VERSION = Prepared(
    VERSIONS.where(is_given(versions.c.uid, "uid")).with_for_update(of=versions)
)


def locked_version(connection: Connection, uid: str) -> VersionRecord:
    """The version as it is now, locked until the transaction ends (SQLite: by the transaction itself)."""
    row = _LOCKED_VERSION.first(connection, uid=uid)
    if row is None:
        raise VersionNotFound(f"no version has the id {uid!r}; nothing was changed")
    return version_record(row)


def set_state(change: Change, version: VersionRecord, state: VersionState) -> None:
    """Move a version to another state; without bytes it holds no objects."""
    change.connection.execute(
        versions.update().where(versions.c.uid == version.uid).values(state=state)
    )
    if state in ("bytes-gone", "deleted"):
        change.connection.execute(holds.delete().where(holds.c.version_uid == version.uid))


# --- aliases ---

_ALIAS_NUMBER = Prepared(
    select(versions.c.number)
    .select_from(aliases.join(versions, versions.c.uid == aliases.c.version_uid))
    .where(is_given(aliases.c.artifact_uid, "artifact"), is_given(aliases.c.name, "name"))
)
_NEW_ALIAS = insert(aliases)
_PUT_ALIAS = Prepared(
    _NEW_ALIAS.on_conflict_do_update(
        index_elements=[aliases.c.artifact_uid, aliases.c.name],
        set_={
            "version_uid": _NEW_ALIAS.excluded.version_uid,
            "moved_at": _NEW_ALIAS.excluded.moved_at,
        },
    )
)
_LAST_POSITION = Prepared(
    select(func.coalesce(func.max(alias_history.c.position), 0)).where(
        is_given(alias_history.c.artifact_uid, "artifact"), is_given(alias_history.c.name, "name")
    )
)


def alias_number(connection: Connection, artifact_uid: str, alias: str) -> int | None:
    """The number of the version that an alias names; None if there is no such alias."""
    return _ALIAS_NUMBER.value(connection, artifact=artifact_uid, name=alias)


def put_alias(change: Change, version: VersionRecord, alias: str) -> AliasMove:
    """Let an alias name a version; the history gains a line if that is a change."""
    before = alias_number(change.connection, version.artifact_uid, alias)
    move = AliasMove(
        version.name, alias, before, version.number, change.at, change.by, change.run_uid
    )
    if before != version.number:
        _PUT_ALIAS.change(
            change.connection,
            artifact_uid=version.artifact_uid,
            name=alias,
            version_uid=version.uid,
            moved_at=change.at,
        )
        _write_history(change, version.artifact_uid, move)
    return move


def drop_alias(change: Change, artifact_uid: str, move: AliasMove) -> None:
    """Remove an alias, as the move (whose `to_number` is None) says."""
    change.connection.execute(
        aliases.delete().where(aliases.c.artifact_uid == artifact_uid, aliases.c.name == move.alias)
    )
    _write_history(change, artifact_uid, move)


def _write_history(change: Change, artifact_uid: str, move: AliasMove) -> None:
    last = _LAST_POSITION.value(change.connection, artifact=artifact_uid, name=move.alias)
    row = (artifact_uid, move.alias, last + 1, move.from_number, move.to_number)
    insert_many(change.connection, alias_history, [(*row, move.at, move.by, move.run_uid)])
    change.note(
        "alias-removed" if move.to_number is None else "alias-moved",
        f"{move.artifact}:{move.alias}",
        {"from": move.from_number, "to": move.to_number},
    )


# --- tags, edges, numbers ---


def put_tags(change: Change, kind: TagTarget, uid: str, *, labels: Sequence[str]) -> None:
    """Put tags on something; those it has already stay."""
    rows = [(kind, uid, tag) for tag in dict.fromkeys(labels)]
    insert_many(change.connection, tags, rows)


_NEXT_POSITION = Prepared(
    select(func.coalesce(func.max(edges.c.position), 0) + 1).where(is_given(edges.c.run_uid, "run"))
)


def next_position(connection: Connection, run_uid: str) -> int:
    """The position of the next edge of a run."""
    return _NEXT_POSITION.value(connection, run=run_uid)


def refresh_latest(change: Change, artifact_uid: str) -> None:
    """Note again which number of an artifact is its latest."""
    highest = (
        select(func.max(versions.c.number))
        .where(versions.c.artifact_uid == artifact_uid, versions.c.state != "deleted")
        .scalar_subquery()
    )
    change.connection.execute(
        artifacts.update().where(artifacts.c.uid == artifact_uid).values(latest_number=highest)
    )
