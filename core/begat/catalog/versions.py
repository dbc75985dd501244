"""Artifacts and versions as they are read: by name, by reference, by id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, overload

from sqlalchemy import Connection, and_, case, func, or_, select
from sqlalchemy.sql.elements import ColumnElement

from begat.catalog.engine import Engine
from begat.catalog.rows import (
    COMMA,
    OWN_COLUMNS,
    STANDING,
    VERSIONS,
    fetch_version,
    fetch_versions,
    is_among,
    is_given,
    json_value,
    labels_of,
    version_record,
)
from begat.catalog.statements import Prepared, chunks
from begat.catalog.states import deletion_text, not_deleted, with_bytes
from begat.errors import AmbiguousReference, ArtifactNotFound, VersionNotFound
from begat.model import ArtifactRecord, Digest, Json, Standing, VersionRecord
from begat.reference import Bump, Reference, SemVer
from begat.tables import aliases, artifacts, entry_metadata, holds, objects, tags, versions

_MAX_SUGGESTIONS = 3

_RECORDS = select(versions.c.uid, versions.c.record).where(is_among(versions.c.uid, "uids"))

_ARTIFACT_TAGS = (
    select(func.aggregate_strings(tags.c.tag, COMMA))
    .where(tags.c.target_kind == "artifact", tags.c.target_uid == artifacts.c.uid)
    .correlate(artifacts)
    .scalar_subquery()
)


def _sum(column: ColumnElement[Any]) -> ColumnElement[int]:
    """A sum over the versions whose bytes are kept."""
    kept = case((versions.c.state.in_(("live", "retired")), column), else_=0)
    return func.coalesce(func.sum(kept), 0)


_ARTIFACTS = (
    select(
        artifacts.c.uid,
        artifacts.c.name,
        artifacts.c.type,
        artifacts.c.description,
        _ARTIFACT_TAGS,
        artifacts.c.created_at,
        artifacts.c.latest_number,
        func.count(versions.c.uid),
        _sum(versions.c.size_bytes),
        _sum(versions.c.new_bytes),
        _sum(versions.c.shared_bytes),
    )
    .select_from(
        artifacts.outerjoin(
            versions,
            and_(versions.c.artifact_uid == artifacts.c.uid, versions.c.state != "deleted"),
        )
    )
    .group_by(artifacts.c.uid)
)
_BY_NAME = _ARTIFACTS.where(is_given(artifacts.c.name, "name"))
_STANDING = Prepared(STANDING.where(is_given(artifacts.c.name, "name")))

_DAMAGED = Prepared(
    VERSIONS.where(
        is_given(versions.c.digest, "digest"),
        or_(versions.c.state == "live", versions.c.state == "retired"),
        select(holds.c.object)
        .join(objects, objects.c.name == holds.c.object)
        .where(holds.c.version_uid == versions.c.uid, objects.c.state != "live")
        .exists(),
    )
)

_NAMED = VERSIONS.where(is_given(artifacts.c.name, "name"))
_RESOLVE = {
    "latest": Prepared(_NAMED.where(versions.c.number == artifacts.c.latest_number)),
    "number": Prepared(_NAMED.where(is_given(versions.c.number, "value"))),
    "semver": Prepared(_NAMED.where(is_given(versions.c.semver, "value"))),
    "alias": Prepared(
        _NAMED.join(aliases, aliases.c.version_uid == versions.c.uid).where(
            aliases.c.artifact_uid == artifacts.c.uid, is_given(aliases.c.name, "value")
        )
    ),
}


class Versions:
    """What the catalog knows of artifacts and their versions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- artifacts ---

    def artifact(self, name: str) -> ArtifactRecord:
        """The artifact with a name; `ArtifactNotFound` names the nearest ones."""
        with self._engine.read() as connection:
            return _artifact(connection, name) or _no_artifact(connection, name)

    def find_artifact(self, name: str) -> ArtifactRecord | None:
        """The artifact with a name, if there is one."""
        with self._engine.read() as connection:
            return _artifact(connection, name)

    def standing(self, name: str) -> Standing:
        """How an artifact stands, or a name that has none yet; what comes next if nobody is faster."""
        with self._engine.read() as connection:
            row = _STANDING.first(connection, name=name)
        if row is None:
            return Standing()
        *version, kind, last_number = row
        # Numbers are never given again, so there may be more than the latest's.
        return Standing(
            None if version[0] is None else version_record(version), kind, last_number + 1
        )

    def list_artifacts(
        self, *, type: str | None = None, tag: str | None = None, query: str | None = None
    ) -> list[ArtifactRecord]:
        """Artifacts sorted by name, those of a type, with a tag, with a text in name or description (any case)."""
        statement = _ARTIFACTS.order_by(artifacts.c.name)
        if type is not None:
            statement = statement.where(artifacts.c.type == type)
        with self._engine.read() as connection:
            found = [_artifact_record(row) for row in connection.execute(statement)]
        if tag is not None:
            found = [artifact for artifact in found if tag in artifact.tags]
        if query is not None:
            # Compared here: SQLite knows only the cases of ASCII.
            wanted = query.casefold()
            found = [
                artifact
                for artifact in found
                if wanted in f"{artifact.name}\n{artifact.description or ''}".casefold()
            ]
        return found

    # --- versions ---

    def resolve(self, ref: Reference, *, with_deleted: bool = False) -> VersionRecord:
        """The version that a reference means now; one that was deleted only `with_deleted`, by number, label or digest.

        Raises `ArtifactNotFound`, `VersionNotFound`, `VersionDeleted`, or `AmbiguousReference` for a digest prefix
        that fits different contents.
        """
        with self._engine.read() as connection:
            if ref.kind == "digest":
                return _by_digest(connection, ref, with_deleted=with_deleted)
            value = ref.number if ref.kind == "number" else ref.value
            row = _RESOLVE[ref.kind].first(connection, name=ref.name, value=value)
            if row is None:
                return _no_version(connection, ref)
            version = version_record(row)
            return version if with_deleted else not_deleted(connection, version)

    def get(self, uid: str) -> VersionRecord:
        """The version with a uid, in any state."""
        with self._engine.read() as connection:
            return _version(connection, uid)

    def get_with_bytes(self, uid: str) -> VersionRecord:
        """The version with a uid, if its bytes are kept; else `VersionDeleted` or `BytesRetired`."""
        with self._engine.read() as connection:
            return with_bytes(connection, _version(connection, uid))

    def deletion_text(self, version: VersionRecord) -> str:
        """That a deleted version was deleted, when and by whom."""
        with self._engine.read() as connection:
            return deletion_text(connection, version)

    def get_many(self, uids: Iterable[str]) -> dict[str, VersionRecord]:
        """The versions with these uids, by uid; unknown ones are left out."""
        with self._engine.read() as connection:
            return fetch_versions(connection, uids)

    def all_heads(self) -> list[VersionRecord]:
        """Every version that is the latest of its artifact or has an alias, by name and number."""
        is_aliased = (
            select(aliases.c.name)
            .where(aliases.c.version_uid == versions.c.uid)
            .correlate(versions)
            .exists()
        )
        statement = (
            VERSIONS.where(
                versions.c.state != "deleted",
                (versions.c.number == artifacts.c.latest_number) | is_aliased,
            )
        ).order_by(artifacts.c.name, versions.c.number)
        with self._engine.read() as connection:
            return [version_record(row) for row in connection.execute(statement)]

    def all(self) -> Iterator[VersionRecord]:
        """Every version in any state, by name and number; artifact by artifact, each in a transaction of its own."""
        for artifact in self.list_artifacts():
            yield from self.list(artifact.name, with_deleted=True)

    def made_by(self, uid: str) -> tuple[str, str]:
        """The token of the attempt that made a version, and who that was; empty for a version that is not there."""
        wanted = select(versions.c.token, versions.c.created_by).where(versions.c.uid == uid)
        with self._engine.read() as connection:
            found = connection.execute(wanted).first()
            return ("", "") if found is None else (found[0], found[1])

    def bumped(self, name: str, part: Bump) -> str:
        """The SemVer label that the next version of an artifact gets by `bump=`, if nobody is faster."""
        with self._engine.read() as connection:
            labels = select(versions.c.semver).join(
                artifacts, artifacts.c.uid == versions.c.artifact_uid
            )
            rows = connection.execute(
                labels.where(artifacts.c.name == name, versions.c.semver.is_not(None))
            )
            return next_label([row[0] for row in rows], part)

    def record_of(self, uid: str) -> Digest | None:
        """The blob that holds a version's own record, or None if it has none."""
        with self._engine.read() as connection:
            found = connection.execute(select(versions.c.record).where(versions.c.uid == uid))
            return found.scalar()

    def records_of(self, uids: Sequence[str]) -> dict[str, Digest | None]:
        """The blobs that hold the records of these versions, by uid; None for a version that has none."""
        found: dict[str, Digest | None] = {}
        with self._engine.read() as connection:
            for chunk in chunks(uids):
                for row in connection.execute(_RECORDS, {"uids": chunk}):
                    found[row[0]] = row[1]
        return found

    def find_digest(self, digest: Digest) -> list[VersionRecord]:
        """The versions with this content that are not deleted, by name and number."""
        statement = VERSIONS.where(versions.c.digest == digest, versions.c.state != "deleted")
        with self._engine.read() as connection:
            rows = connection.execute(statement.order_by(artifacts.c.name, versions.c.number))
            return [version_record(row) for row in rows]

    def find_damaged(self, digest: Digest) -> list[VersionRecord]:
        """The versions with this content that have their bytes and hold an object that is damaged."""
        with self._engine.read() as connection:
            rows = _DAMAGED.all(connection, digest=digest)
            return [version_record(row) for row in rows]

    def entry_metadata(self, uid: str) -> dict[str, dict[str, Json]]:
        """The metadata of a version's entries, by path, of those that have any."""
        statement = select(entry_metadata.c.path, entry_metadata.c.metadata).where(
            entry_metadata.c.version_uid == uid
        )
        with self._engine.read() as connection:
            return {row[0]: json_value(row[1]) for row in connection.execute(statement)}

    def list(self, name: str, *, with_deleted: bool = False) -> Listing:
        """All versions of an artifact, by ascending number; `ArtifactNotFound` names the nearest names."""
        with self._engine.read() as connection:
            found = _listed(connection, name, with_deleted=with_deleted)
            return _no_artifact(connection, name) if found is None else found


_FIRST_LABELS = {"major": "1.0.0", "minor": "0.1.0", "patch": "0.0.1"}


def next_label(taken: Iterable[str], part: Bump) -> str:
    """The SemVer label after the highest of those that are taken."""
    highest = max((SemVer.parse(label) for label in taken), default=None)
    return _FIRST_LABELS[part] if highest is None else str(highest.bump(part))


# --- artifacts ---


def _artifact_record(row: Sequence[Any]) -> ArtifactRecord:
    values = list(row)
    values[4] = labels_of(row[4])
    return ArtifactRecord(*values)


def _artifact(connection: Connection, name: str) -> ArtifactRecord | None:
    row = connection.execute(_BY_NAME, {"name": name}).first()
    return _artifact_record(row) if row else None


def _no_artifact(connection: Connection, name: str) -> NoReturn:
    names = [row[0] for row in connection.execute(select(artifacts.c.name))]
    near = _nearest(name, names)
    if near:
        advice = (
            f"the nearest names are {', '.join(near)}" if near[1:] else f"did you mean {near[0]}?"
        )
    else:
        advice = (
            "begat ls shows what there is"
            if names
            else "this store is empty; begat doctor says which one it is, and why"
        )
    raise ArtifactNotFound(f"there is no artifact {name!r}; {advice}")


# --- versions ---

_ALIASES_OF = Prepared(
    select(aliases.c.name, aliases.c.version_uid).where(
        is_given(aliases.c.artifact_uid, "artifact")
    )
)
_TAGS_OF = Prepared(
    select(tags.c.tag, tags.c.target_uid)
    .select_from(tags.join(versions, versions.c.uid == tags.c.target_uid))
    .where(tags.c.target_kind == "version", is_given(versions.c.artifact_uid, "artifact"))
)
_ALL_OF = (
    select(*OWN_COLUMNS)
    .where(is_given(versions.c.artifact_uid, "artifact"))
    .order_by(versions.c.number)
)
_LIST = Prepared(_ALL_OF.where(versions.c.state != "deleted"))
_LIST_ALL = Prepared(_ALL_OF)
_ARTIFACT_OF_LIST = Prepared(
    select(artifacts.c.uid, artifacts.c.name, artifacts.c.type, artifacts.c.latest_number).where(
        is_given(artifacts.c.name, "name")
    )
)


class Listing(Sequence[VersionRecord]):
    """The versions of one artifact; each record is built when it is asked for.

    A list of 2,000 is there in 5 ms, and most callers show the last few.
    """

    def __init__(
        self,
        artifact: Sequence[Any],
        rows: Sequence[Sequence[Any]],
        *,
        aliases: Mapping[str, tuple[str, ...]],
        tags: Mapping[str, tuple[str, ...]],
    ) -> None:
        self._artifact = tuple(artifact)
        self._rows = rows
        self._aliases = aliases
        self._tags = tags

    @overload
    def __getitem__(self, index: int) -> VersionRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[VersionRecord]: ...
    def __getitem__(self, index: int | slice) -> VersionRecord | Sequence[VersionRecord]:
        if isinstance(index, slice):
            return Listing(
                self._artifact, self._rows[index], aliases=self._aliases, tags=self._tags
            )
        return self._record(self._rows[index])

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[VersionRecord]:
        return map(self._record, self._rows)

    def _record(self, row: Sequence[Any]) -> VersionRecord:
        artifact_uid, name, type_, latest = self._artifact
        values = list(row)
        uid, number = values[:2]
        values[1:1] = (artifact_uid, name, type_)
        values[9] = json_value(values[9])
        values += (self._aliases.get(uid, ()), self._tags.get(uid, ()), number == latest)
        return VersionRecord(*values)


def _listed(connection: Connection, name: str, *, with_deleted: bool) -> Listing | None:
    """The versions of an artifact; None if there is no such artifact."""
    artifact = _ARTIFACT_OF_LIST.first(connection, name=name)
    if artifact is None:
        return None
    # Labels for all versions at once: a look-up for each would cost more than all the rest.
    uid = artifact[0]
    statement = _LIST_ALL if with_deleted else _LIST
    return Listing(
        artifact,
        statement.all(connection, artifact=uid),
        aliases=_grouped(_ALIASES_OF.all(connection, artifact=uid)),
        tags=_grouped(_TAGS_OF.all(connection, artifact=uid)),
    )


def _grouped(rows: Iterable[Sequence[Any]]) -> dict[str, tuple[str, ...]]:
    """(label, uid) -> labels of each uid, sorted."""
    found: dict[str, list[str]] = {}
    for label, uid in rows:
        found.setdefault(uid, []).append(label)
    return {uid: tuple(sorted(labels)) for uid, labels in found.items()}


def _version(connection: Connection, uid: str) -> VersionRecord:
    found = fetch_version(connection, uid)
    if found is None:
        raise VersionNotFound(f"no version has the id {uid!r}; nothing was changed")
    return found


def _by_digest(connection: Connection, ref: Reference, *, with_deleted: bool) -> VersionRecord:
    # "g" is what comes after the last hexadecimal digit.
    statement = _NAMED.where(
        versions.c.digest >= ref.value, versions.c.digest < ref.value + "g"
    ).order_by(versions.c.number.desc())
    found = [version_record(row) for row in connection.execute(statement, {"name": ref.name})]
    kept = [version for version in found if version.state != "deleted"]
    if not kept and with_deleted:
        kept = found
    if not kept:
        return not_deleted(connection, found[0]) if found else _no_version(connection, ref)
    if any(version.digest != kept[0].digest for version in kept):
        first, other = kept[0], next(v for v in kept if v.digest != kept[0].digest)
        raise AmbiguousReference(
            f"{str(ref)!r} fits versions with different content, such as {first.ref} ({first.digest[:19]}...) and "
            f"{other.ref} ({other.digest[:19]}...); give more digits or a number"
        )
    return kept[0]


def _no_version(connection: Connection, ref: Reference) -> NoReturn:
    artifact = _artifact(connection, ref.name) or _no_artifact(connection, ref.name)
    raise VersionNotFound(
        f"{str(ref)!r} does not exist; {_what_there_is(connection, artifact, ref)}"
    )


def _what_there_is(connection: Connection, artifact: ArtifactRecord, ref: Reference) -> str:
    history = f"(begat history {artifact.name})"
    if artifact.latest_number is None:
        return f"{artifact.name} has no version that is not deleted {history}"
    newest = f"the newest is {artifact.name}:v{artifact.latest_number}"
    if ref.kind == "alias":
        rows = _ALIASES_OF.all(connection, artifact=artifact.uid)
        known = sorted(row[0] for row in rows)
        if not known:
            return f"{artifact.name} has no aliases; {newest} {history}"
        near = _nearest(ref.value, known, cutoff=0.0)
        return f"its aliases are {', '.join(sorted(near))}; {newest} {history}"
    return f"{newest} {history}"


def _nearest(name: str, known: list[str], *, cutoff: float = 0.6) -> list[str]:
    import difflib  # for those who mistyped only

    return difflib.get_close_matches(name, known, _MAX_SUGGESTIONS, cutoff)
