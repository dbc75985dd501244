"""What may change about a version after its commit: aliases, tags, description, state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from sqlalchemy import Connection, select

from begat.catalog.changes import (
    Change,
    TagTarget,
    alias_number,
    check_expected,
    drop_alias,
    locked_version,
    put_alias,
    put_tags,
    refresh_latest,
    set_state,
)
from begat.catalog.engine import Engine
from begat.catalog.states import DELETED_EVENT, not_deleted, with_bytes
from begat.errors import (
    AliasReserved,
    ArtifactNotFound,
    RunNotFound,
    VersionNotFound,
)
from begat.model import AliasMove, Expect, VersionRecord
from begat.tables import alias_history, artifacts, edges, runs, tags, versions


class Labels:
    """Moves names between versions and changes their states, each in one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- aliases ---

    def move_alias(
        self,
        version_uid: str,
        alias: str,
        *,
        expect: Expect | int = Expect.ANY,
        by: str,
        run_uid: str | None = None,
    ) -> AliasMove:
        """Let an alias name a version, if it is where it is expected: at a number, nowhere, or anywhere.

        Raises `AliasMoved` naming where it is, `VersionDeleted`, `BytesRetired`. An alias that is there already moves
        without a line in its history.
        """
        with self._engine.write(f"moving the alias {alias!r}") as connection:
            version = with_bytes(connection, locked_version(connection, version_uid))
            before = alias_number(connection, version.artifact_uid, alias)
            check_expected(version.name, alias, before, expect=expect)
            return put_alias(Change(connection, self._engine.now(), by, run_uid), version, alias)

    def remove_alias(
        self, artifact: str, alias: str, *, expect: Expect | int = Expect.ANY, by: str
    ) -> AliasMove:
        """Remove an alias; `VersionNotFound` if there is none, `AliasMoved` if it is not where it is expected."""
        with self._engine.freeing(f"removing the alias {alias!r}") as connection:
            artifact_uid = _artifact_uid(connection, artifact)
            before = alias_number(connection, artifact_uid, alias)
            if before is None:
                raise VersionNotFound(
                    f"{artifact!r} has no alias {alias!r}; nothing was changed (begat history {artifact})"
                )
            check_expected(artifact, alias, before, expect=expect)
            move = AliasMove(artifact, alias, before, None, self._engine.now(), by, None)
            drop_alias(Change(connection, move.at, by), artifact_uid, move)
            return move

    def alias_history(self, artifact: str, alias: str) -> list[AliasMove]:
        """Every move of an alias, oldest first; empty for an alias that never was."""
        history = alias_history
        with self._engine.read() as connection:
            uid = _artifact_uid(connection, artifact)
            rows = connection.execute(
                select(
                    history.c.from_number,
                    history.c.to_number,
                    history.c.at,
                    history.c.by,
                    history.c.run_uid,
                )
                .where(history.c.artifact_uid == uid, history.c.name == alias)
                .order_by(history.c.position)
            )
            return [AliasMove(artifact, alias, *row) for row in rows]

    # --- tags and descriptions ---

    def add_tags(self, kind: TagTarget, uid: str, labels: Iterable[str], *, by: str) -> None:
        """Put tags on an artifact, a version or a run; those it has already stay."""
        given = list(dict.fromkeys(labels))
        with self._engine.write(f"adding tags to a {kind}") as connection:
            change = Change(connection, self._engine.now(), by)
            subject = _tag_subject(connection, kind, uid)
            if kind == "version":
                # A tag keeps a version's bytes, so it promises that they are there.
                with_bytes(connection, locked_version(connection, uid))
            put_tags(change, kind, uid, labels=given)
            change.note("tags-added", subject, {"tags": given})

    def remove_tags(self, kind: TagTarget, uid: str, labels: Iterable[str], *, by: str) -> None:
        """Take tags off an artifact, a version or a run; those it has not are ignored."""
        given = list(dict.fromkeys(labels))
        with self._engine.freeing(f"removing tags from a {kind}") as connection:
            change = Change(connection, self._engine.now(), by)
            subject = _tag_subject(connection, kind, uid)
            connection.execute(
                tags.delete().where(
                    tags.c.target_kind == kind,
                    tags.c.target_uid == uid,
                    tags.c.tag.in_(given),
                )
            )
            change.note("tags-removed", subject, {"tags": given})

    def set_description(
        self, kind: Literal["artifact", "version"], uid: str, text: str | None, *, by: str
    ) -> None:
        """Describe an artifact or a version; None takes the description away."""
        table = artifacts if kind == "artifact" else versions
        with self._engine.write(f"describing a {kind}") as connection:
            change = Change(connection, self._engine.now(), by)
            subject = _tag_subject(connection, kind, uid)
            connection.execute(table.update().where(table.c.uid == uid).values(description=text))
            change.note("described", subject, {"description": text})

    # --- states ---

    def retire(self, version_uid: str, *, by: str) -> None:
        """Let garbage collection drop the bytes of a version that nothing needs; nothing if that happened already."""
        with self._engine.freeing("retiring a version") as connection:
            version = not_deleted(connection, locked_version(connection, version_uid))
            if version.state == "live":
                change = Change(connection, self._engine.now(), by)
                set_state(change, version, "retired")
                change.note("version-retired", version.ref, {})

    def delete(self, version_uid: str, *, force: bool = False, by: str) -> None:
        """Turn a version into a tombstone: its number stays taken and its lineage stays, its bytes may go.

        Raises `AliasReserved` while it has aliases, unless `force`, which removes them; `VersionDeleted`.
        """
        with self._engine.freeing("deleting a version") as connection:
            version = not_deleted(connection, locked_version(connection, version_uid))
            if version.aliases and not force:
                names = ", ".join(repr(alias) for alias in version.aliases)
                raise AliasReserved(
                    f"{version.ref!r} was not deleted: it has the alias {names}. Nothing was changed; move the alias "
                    f"first (begat alias {version.name}:v<N> {version.aliases[0]}), or say force=True"
                )
            change = Change(connection, self._engine.now(), by)
            for alias in version.aliases:
                move = AliasMove(version.name, alias, version.number, None, change.at, by, None)
                drop_alias(change, version.artifact_uid, move)
            set_state(change, version, "deleted")
            refresh_latest(change, version.artifact_uid)
            change.note(DELETED_EVENT, version.ref, {"aliases": list(version.aliases)})

    def drop_bytes(self, version_uids: Iterable[str], *, by: str = "gc") -> list[str]:
        """Let go of the bytes of retired versions; those really dropped.

        Only garbage collection calls this, under its lock. A version that was reused, aliased, tagged or used by
        another run in the meantime keeps its bytes.
        """
        dropped: list[str] = []
        with self._engine.freeing("dropping the bytes of retired versions") as connection:
            change = Change(connection, self._engine.now(), by)
            for uid in version_uids:
                version = locked_version(connection, uid)
                if version.state != "retired" or kept_because(connection, version):
                    continue
                set_state(change, version, "bytes-gone")
                change.note("bytes-dropped", version.ref, {"size_bytes": version.size_bytes})
                dropped.append(uid)
        return dropped


def kept_because(connection: Connection, version: VersionRecord) -> str | None:
    """Why a retired version keeps its bytes; None if nothing needs them."""
    if version.aliases:
        return f"it has the alias {version.aliases[0]}"
    if version.tags:
        return f"it has the tag {version.tags[0]}"
    user = (
        select(edges.c.run_uid)
        .where(edges.c.version_uid == version.uid, edges.c.kind == "used")
        .order_by(edges.c.at)
    )
    if version.run_uid is not None:
        user = user.where(edges.c.run_uid != version.run_uid)
    run_uid = connection.execute(user.limit(1)).scalar()
    return None if run_uid is None else f"the run {run_uid} used it"


def _artifact_uid(connection: Connection, name: str) -> str:
    uid = connection.execute(select(artifacts.c.uid).where(artifacts.c.name == name)).scalar()
    if uid is None:
        raise ArtifactNotFound(f"there is no artifact {name!r}; begat ls shows what there is")
    return uid


def _tag_subject(connection: Connection, kind: TagTarget, uid: str) -> str:
    """How the history names an artifact, a version or a run; its absence is an error."""
    if kind == "version":
        return not_deleted(connection, locked_version(connection, uid)).ref
    table, column = (artifacts, artifacts.c.name) if kind == "artifact" else (runs, runs.c.uid)
    name = connection.execute(select(column).where(table.c.uid == uid)).scalar()
    if name is None:
        missing = ArtifactNotFound if kind == "artifact" else RunNotFound
        raise missing(f"no {kind} has the id {uid!r}; nothing was changed")
    return name
