"""The one commit point: a version, its labels, edges and places become visible together, or not at all."""

from __future__ import annotations

from typing import Any

from blake3 import blake3
from msgspec import structs
from sqlalchemy import Connection, Integer, bindparam, literal_column, select, union_all

from begat.catalog.changes import (
    Change,
    check_expected,
    next_position,
    put_alias,
    put_tags,
    refresh_latest,
    set_state,
)
from begat.catalog.engine import Engine
from begat.catalog.placing import (
    hold,
    holds_damaged,
    is_placed,
    let_go_of_damaged,
    place,
    share,
)
from begat.catalog.rows import (
    VERSIONS,
    edge_row,
    fetch_version,
    is_given,
    json_text,
    version_record,
)
from begat.catalog.statements import Prepared, insert_many
from begat.catalog.versions import next_label
from begat.errors import RunFinished, RunNotFound, TypeMismatch, VersionExists
from begat.identity import new_uid
from begat.model import Commit, Edge, EdgeKind, Mend, NewVersion, VersionRecord
from begat.tables import artifacts, edges, entry_metadata, ref_pins, reuses, runs, versions

DEFAULT_TYPE = "data"


class StageAgain(Exception):
    """The commit needs bytes that were not staged, or that are no longer on offer: stage them and commit again.

    `missing` has the digests that have no place; it is empty where nothing was staged because the content seemed to
    be the latest's. Never leaves the store: whoever logs catches it.
    """

    def __init__(self, missing: frozenset[str] = frozenset()) -> None:
        super().__init__(f"{len(missing)} blobs have no place")
        self.missing = missing


class Commits:
    """Makes staged versions visible."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def commit(self, new: NewVersion) -> Commit:
        """Commit a staged version, or find that it is the latest already.

        In one transaction: a token that is known gives the version of that attempt; content and metadata equal to the
        latest version's give that one, with labels and a `confirmed` edge (unless `if_unchanged="new"`); else the next
        number is taken. Raises `StageAgain`, `TypeMismatch`, `VersionExists`, `AliasMoved` (the latest version is not
        the `expected` one), `RunFinished`, `RunNotFound`.
        """
        with self._engine.write(f"committing a version of {new.name!r}") as connection:
            known = _find_token(connection, new.token)
            if known is not None:
                return known
            at = self._engine.now() if new.created_at is None else new.created_at
            change = Change(connection, at, new.created_by, new.run_uid)
            if new.run_uid is not None and new.number is None:
                check_running(connection, new.run_uid, or_ended=new.is_late)
            artifact_uid, last_number = _artifact(change, new)
            # Before anything is decided: what a log brought may heal what the latest version has lost.
            outdated = place(connection, new.staged, at=at)
            latest = _latest(connection, artifact_uid)
            number = None if latest is None else latest.number
            check_expected(new.name, "latest", number, expect=new.expected)
            if (
                new.if_unchanged == "reuse"
                and latest is not None
                and _is_same(connection, latest, new)
            ):
                version, is_new = _reuse(change, new, latest), False
            else:
                is_new = True
                version = _insert(change, new, artifact_uid=artifact_uid, last_number=last_number)
            share(connection, outdated, version.uid)
            for mend in new.mends:
                _mend(change, mend)
            return Commit(version, is_new)

    def find_token(self, token: str) -> Commit | None:
        """What the attempt with this token came to, if it was committed."""
        with self._engine.read() as connection:
            return _find_token(connection, token)


# --- what is there already ---

_BY_TOKEN = Prepared(
    union_all(
        select(versions.c.uid, literal_column("1", Integer)).where(
            is_given(versions.c.token, "token")
        ),
        select(reuses.c.version_uid, literal_column("0", Integer)).where(
            is_given(reuses.c.token, "token")
        ),
    )
)
_ARTIFACT = Prepared(
    select(artifacts.c.uid, artifacts.c.type, artifacts.c.last_number)
    .where(is_given(artifacts.c.name, "name"))
    .with_for_update()
)
_RUN_STATUS = Prepared(select(runs.c.status).where(is_given(runs.c.uid, "uid")))
_LATEST = Prepared(
    VERSIONS.where(
        is_given(versions.c.artifact_uid, "artifact"),
        versions.c.number == artifacts.c.latest_number,
    )
)
_METADATA = Prepared(
    select(versions.c.metadata, versions.c.entry_metadata_digest).where(
        is_given(versions.c.uid, "uid")
    )
)


def _find_token(connection: Connection, token: str) -> Commit | None:
    row = _BY_TOKEN.first(connection, token=token)
    version = None if row is None else fetch_version(connection, row[0])
    return None if row is None or version is None else Commit(version, is_new=bool(row[1]))


def check_running(connection: Connection, run_uid: str, *, or_ended: bool = False) -> None:
    """Raise `RunNotFound`, or `RunFinished` if the run is over and that matters."""
    status = _RUN_STATUS.value(connection, uid=run_uid)
    if status is None:
        raise RunNotFound(f"no run has the id {run_uid!r}; nothing was stored")
    if status != "running" and not or_ended:
        raise RunFinished(
            f"the run {run_uid!r} is over ({status}), so it can use and make nothing more. Nothing was stored; "
            "start a new run (begat.start_run)"
        )


def _artifact(change: Change, new: NewVersion) -> tuple[str, int]:
    row = _ARTIFACT.first(change.connection, name=new.name)
    if row is None:
        uid = new_uid()
        kind = new.type or DEFAULT_TYPE
        fields = (uid, new.name, kind, None, change.at, 0, None)
        insert_many(change.connection, artifacts, [fields])
        change.note("artifact-made", new.name, {"type": kind})
        return uid, 0
    uid, kind, last_number = row
    if new.type is not None and new.type != kind:
        raise TypeMismatch(
            f"{new.name!r} is known with the type {kind!r}, not {new.type!r}. Nothing was stored; "
            f"leave the type out, or choose another name"
        )
    return uid, last_number


def _latest(connection: Connection, artifact_uid: str) -> VersionRecord | None:
    row = _LATEST.first(connection, artifact=artifact_uid)
    return None if row is None else version_record(row)


def _is_same(connection: Connection, latest: VersionRecord, new: NewVersion) -> bool:
    if latest.digest != new.digest:
        return False
    # The texts are canonical, so equal text is equal metadata.
    theirs = _METADATA.first(connection, uid=latest.uid)
    return theirs == (json_text(new.metadata), _digest_of(new.entry_metadata))


def _digest_of(entry_metadata: Any) -> str:
    if not entry_metadata:
        return ""
    return f"b3:{blake3(json_text(entry_metadata).encode('utf-8')).hexdigest()}"


# --- content that is the latest already ---


def _reuse(change: Change, new: NewVersion, latest: VersionRecord) -> VersionRecord:
    connection = change.connection
    if new.recognised is not None and not _is_sound(connection, new.recognised, latest):
        raise StageAgain
    values: dict[str, Any] = {}
    semver = _label_for_reuse(connection, new, latest)
    if semver != latest.version:
        values["semver"] = semver
    if new.description is not None:
        values["description"] = new.description
    values |= _mended(connection, new, latest)
    if values:
        connection.execute(versions.update().where(versions.c.uid == latest.uid).values(values))
    # A record of this attempt is of use only to a version that has lost its own.
    spare = None if "record" in values else new.record
    missing = hold(connection, latest.uid, (each for each in new.needs if each != spare))
    if missing:
        raise StageAgain(frozenset(missing))
    let_go_of_damaged(connection, latest.uid)
    if latest.state != "live":
        set_state(change, latest, "live")
        change.note("version-revived", latest.ref, {"was": latest.state})
    _put_labels(change, new, latest)
    if new.run_uid is not None:
        _confirm(change, new.run_uid, latest)
    insert_many(connection, reuses, [(new.token, latest.uid, change.at)])
    detail = {"run": new.run_uid, "token": new.token}
    change.note("version-confirmed", latest.ref, detail)
    version = fetch_version(connection, latest.uid)
    assert version is not None
    return version


def _is_sound(connection: Connection, recognised: str, latest: VersionRecord) -> bool:
    """Whether a version that was recognised by its content is still the latest one, with all its objects on offer."""
    is_the_one = (latest.uid, latest.state) == (recognised, "live")
    return is_the_one and not holds_damaged(connection, latest.uid)


def _mended(connection: Connection, new: NewVersion, latest: VersionRecord) -> dict[str, Any]:
    """What a version that has lost its bytes, or its record, takes from the log that brought them again."""
    is_gone = latest.state == "bytes-gone"
    if new.root is None:
        if is_gone:
            raise StageAgain
        return {}
    found: dict[str, Any] = {}
    # The same entries may have been written as other pages, by another release.
    if is_gone or not is_placed(connection, latest.root):
        found["root"] = new.root
    if new.record is not None and (is_gone or new.uid == latest.uid):
        found["record"] = new.record
    return found


def _mend(change: Change, mend: Mend) -> None:
    """Let a version that was damaged rely on what was just stored, unless its bytes were given up since."""
    version = fetch_version(change.connection, mend.version_uid)
    if version is None or version.state not in ("live", "retired"):
        return
    missing = hold(change.connection, version.uid, mend.needs)
    if missing:
        raise StageAgain(frozenset(missing))
    change.connection.execute(
        versions.update()
        .where(versions.c.uid == version.uid)
        .values(root=mend.root, record=mend.record)
    )
    let_go_of_damaged(change.connection, version.uid)
    change.note("version-mended", version.ref, {"record": mend.record})


def _confirm(change: Change, run_uid: str, version: VersionRecord) -> None:
    edge = edges.c
    is_made = select(edge.run_uid).where(
        edge.run_uid == run_uid, edge.version_uid == version.uid, edge.kind == "made"
    )
    if change.connection.execute(is_made).first() is None:
        put_edge(change, run_uid, version.uid, kind="confirmed")


def put_edge(change: Change, run_uid: str, version_uid: str, *, kind: EdgeKind) -> None:
    """Add an edge after all edges that the run has, if there is none of this kind yet."""
    position = next_position(change.connection, run_uid)
    edge = Edge(run_uid, version_uid, kind, position, change.at)
    insert_many(change.connection, edges, [edge_row(edge)])


def _put_labels(change: Change, new: NewVersion, version: VersionRecord) -> None:
    for alias in dict.fromkeys(new.aliases):
        put_alias(change, version, alias)
    put_tags(change, "version", version.uid, labels=new.tags)


# --- a new version ---

_COUNT_ON = Prepared(
    artifacts.update()
    .where(is_given(artifacts.c.uid, "artifact"))
    .values(last_number=bindparam("last"), latest_number=bindparam("latest"))
)
_UNPIN = Prepared(
    ref_pins.delete().where(
        is_given(ref_pins.c.run_uid, "run"),
        ref_pins.c.version_uid.in_(
            select(versions.c.uid).where(is_given(versions.c.artifact_uid, "artifact"))
        ),
    )
)


def _insert(
    change: Change, new: NewVersion, *, artifact_uid: str, last_number: int
) -> VersionRecord:
    if new.root is None:
        raise StageAgain
    connection = change.connection
    number = last_number + 1 if new.number is None else new.number
    semver = _label_for_new(connection, new, artifact_uid)
    row = (
        *(new.uid, artifact_uid, number, new.digest, new.root, new.record, semver),
        *(new.description, json_text(new.metadata), _digest_of(new.entry_metadata)),
        *(new.size_bytes, new.new_bytes, new.file_count, "live", new.run_uid, new.token),
        *(change.at, new.created_by, None, None, new.shared_bytes),
    )
    if not insert_many(connection, versions, [row]):
        if fetch_version(connection, new.uid) is not None:
            raise StageAgain  # it was to mend the latest version, and that is another one by now
        raise VersionExists(f"'{new.name}:v{number}' exists already; nothing was stored")
    rows = [(new.uid, path, json_text(value)) for path, value in new.entry_metadata.items()]
    insert_many(connection, entry_metadata, rows)
    _COUNT_ON.change(
        connection, artifact=artifact_uid, last=max(number, last_number), latest=number
    )
    if number < last_number:  # only when a catalog is rebuilt
        refresh_latest(change, artifact_uid)
    missing = hold(connection, new.uid, new.needs)
    if missing:
        raise StageAgain(frozenset(missing))
    # A rebuild knows the positions of edges, and writes them itself.
    if new.run_uid is not None and new.number is None:
        put_edge(change, new.run_uid, new.uid, kind="made")
        # What the run asked for by name may mean this version from now on.
        _UNPIN.change(connection, run=new.run_uid, artifact=artifact_uid)
    version = fetch_version(connection, new.uid)
    assert version is not None
    change.note("version-made", version.ref, {"run": new.run_uid, "token": new.token})
    _put_labels(change, new, version)
    return structs.replace(
        version, aliases=tuple(sorted({*new.aliases})), tags=tuple(sorted({*new.tags}))
    )


# --- SemVer labels ---


def _label_for_reuse(connection: Connection, new: NewVersion, latest: VersionRecord) -> str | None:
    if latest.version is None:
        return _label_for_new(connection, new, latest.artifact_uid)
    if new.bump is None and new.semver is not None and new.semver != latest.version:
        raise VersionExists(
            f"this content is {latest.ref!r} already, with the label {latest.version!r}; it cannot be {new.semver!r} "
            "too. Nothing was stored; leave the label out, or store it again on purpose (if_unchanged='new')"
        )
    return latest.version


def _label_for_new(connection: Connection, new: NewVersion, artifact_uid: str) -> str | None:
    if new.semver is None and new.bump is None:
        return None
    rows = connection.execute(
        select(versions.c.semver, versions.c.number).where(
            versions.c.artifact_uid == artifact_uid, versions.c.semver.is_not(None)
        )
    ).all()
    taken = {row[0]: row[1] for row in rows}
    if new.bump is not None:
        label = next_label(taken, new.bump)
        if new.semver not in (None, label):
            raise StageAgain  # the version's record says another one; somebody was faster
        return label
    if new.semver in taken:
        raise VersionExists(
            f"'{new.name}:{new.semver}' is {new.name}:v{taken[new.semver]} already. Nothing was stored; "
            "choose another label, or let begat choose (bump='minor')"
        )
    return new.semver
