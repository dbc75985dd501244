"""Make a lost catalog anew from the objects: what versions there were, and which runs made them from what.

    objects --places, recipes--> version records --merged, numbered--> versions, runs, edges

Each version's record lies beside its manifest. It says what was true when the version was committed, so labels that
moved later and deletions do not come back; those are in a backup only. A version whose log never ended may appear.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3
from msgspec import structs

from begat.blobs import READ_BYTES, BlobReader
from begat.catalog import Catalog, kept_from_writers
from begat.errors import Corrupt, FormatTooNew, StoreUnavailable, VersionExists
from begat.files import make_directory, remove, rename, sync_directory, told_as
from begat.format import FORMAT_FILE, StoreFormat, read_format
from begat.identity import Digest, new_uid
from begat.locks import StoreLocks
from begat.model import (
    BlobLocation,
    Edge,
    NewRun,
    NewVersion,
    RecipeRecord,
    RunRecord,
    StagedObject,
    StoredFile,
)
from begat.needs import blobs_of
from begat.objects import ObjectStore, digest_in
from begat.packs import Recipe, decode_recipe, read_index
from begat.pages import read_manifest
from begat.progress import reporting
from begat.record import InputRecord, VersionFile, decode_record, with_facts
from begat.reference import parse_reference

BATCH_OBJECTS = 64
# What stands beside a database of SQLite as long as it is open, and after a crash.
_BESIDE = ("", "-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """How many versions, runs and objects were found again; `problems` are sentences about what was not."""

    versions: int
    runs: int
    objects: int
    problems: tuple[str, ...]


def rebuild_store(path: Path) -> RebuildReport:
    """Make the catalog of the store at a folder anew; an old one is kept beside it, as `catalog.sqlite.<time>.old`.

    Nothing is written to the objects, and the old catalog is in its place until the new one is complete. A label or a
    run that somebody else changes meanwhile waits, and is changed in the new one, if the old one can be opened at all.
    Raises `StoreUnavailable` if there is no store, `CatalogBusy` while somebody logs.
    """
    store = read_format(path)
    if store is None:
        raise StoreUnavailable(
            f"there is no store at {path}: {FORMAT_FILE} is missing; nothing was changed"
        )
    with told_as(f"rebuilding the catalog of {path}"):
        make_directory(store.catalog_folder)
        locks = StoreLocks(store.lock_folder)
        with (
            locks.sweeping(wait_s=0.0) as lock,
            lock.exclusive(),
            kept_from_writers(store.catalog_file),
        ):
            unfinished = store.catalog_file.with_name(f"{store.catalog_file.name}.new")
            for suffix in _BESIDE:
                remove(unfinished.with_name(unfinished.name + suffix))
            with Catalog.create(unfinished, store.uid) as catalog:
                report = _Rebuild(catalog, ObjectStore(store.objects_folder)).run()
            _put_in_place(store, unfinished)
    return report


def _put_in_place(store: StoreFormat, new: Path) -> None:
    # Closing the only connection has moved all of the log into the file.
    old = store.catalog_file
    aside = f"{old.name}.{time.strftime('%Y%m%dT%H%M%S')}.{new_uid()[-6:]}.old"
    # The database first: whoever opened it without its log would miss commits, and write a log for the new one.
    for suffix in _BESIDE:
        source = old.with_name(old.name + suffix)
        if source.exists():
            rename(source, old.with_name(aside + suffix))
    rename(new, old)
    sync_directory(old.parent)


@dataclass(frozen=True, slots=True)
class _Found:
    """A version's record, and the blob that it lies in."""

    file: VersionFile
    blob: Digest


@dataclass(slots=True)
class _Objects:
    """What was found in the object store: packs by name, other objects by the digest of their bytes."""

    packs: dict[str, StagedObject] = field(default_factory=dict[str, StagedObject])
    others: dict[Digest, tuple[str, int]] = field(default_factory=dict[Digest, tuple[str, int]])
    placed: set[str] = field(default_factory=set[str])


class _Rebuild:
    """One rebuild, into a catalog that is empty."""

    def __init__(self, catalog: Catalog, objects: ObjectStore) -> None:
        self._catalog = catalog
        self._objects = objects
        self._reader = BlobReader(objects, catalog.bytes, is_read_only=True)
        self._found = _Objects()
        self._problems: list[str] = []

    def run(self) -> RebuildReport:
        self._list_objects()
        self._place_packs()
        self._place_recipes()
        records = _numbered(_merged(self._records()))
        for found in records.values():
            self._place_whole_files(found.file)
        self._report_unknown_objects()
        runs = self._add_runs([found.file for found in records.values()])
        for (_, number), found in sorted(records.items()):
            self._add_version(found, number)
        self._add_tombstones(records)
        self._catalog.restoring.add_edges(list(_edges(records)))
        return RebuildReport(
            len(records), len(runs), len(self._found.placed), tuple(self._problems)
        )

    # --- bytes ---

    def _list_objects(self) -> None:
        listed = list(self._objects.list())
        with reporting("reading the objects", total_files=len(listed)) as progress:
            for name, size_bytes in [*listed, *self._objects.list_set_aside()]:
                try:
                    blobs = read_index(
                        name,
                        lambda at, length, name=name: self._objects.read(
                            name, offset=at, length=length
                        ),
                        size_bytes=size_bytes,
                    )
                except (Corrupt, FormatTooNew):
                    # Most often a large file, stored as it is.
                    self._found.others.setdefault(digest_in(name), (name, size_bytes))
                else:
                    self._found.packs[name] = StagedObject(name, size_bytes, tuple(blobs))
                    # A user may have stored a copy of a pack: then it is a file as well.
                    self._found.others.setdefault(digest_in(name), (name, size_bytes))
                progress.advance(files=1)

    def _place_packs(self) -> None:
        packs = list(self._found.packs.values())
        aside = [name for name in self._found.packs if self._objects.stat(name) is None]
        for batch in _batches(packs):
            names = {pack.name for pack in batch}
            self._catalog.restoring.place(batch, damaged=[n for n in aside if n in names])
            self._found.placed |= names

    def _place_recipes(self) -> None:
        """Recipes, and the large files that lie in one piece, with their parts."""
        found: dict[str, tuple[list[BlobLocation], list[RecipeRecord]]] = {}
        for pack in self._found.packs.values():
            for blob in pack.blobs:
                if blob.kind != "recipe":
                    continue
                try:
                    recipe = decode_recipe(self._reader.read(blob.digest))
                except (Corrupt, FormatTooNew) as error:
                    self._problems.append(f"a recipe in {pack.name}: {error}")
                    continue
                record = RecipeRecord(recipe.file, blob.digest, recipe.splitter, recipe.size_bytes)
                found.setdefault(pack.name, ([], []))[1].append(record)
                self._place_file(recipe.file, recipe.size_bytes, recipe)
        for name, (_, records) in found.items():
            pack = self._found.packs[name]
            again = StagedObject(name, pack.size_bytes, (), tuple(records))
            self._catalog.restoring.place([again])

    def _place_whole_files(self, version: VersionFile) -> None:
        """The files of a version that lie in an object of their own and have no recipe."""
        try:
            manifest = read_manifest(self._reader, version.root)
        except (Corrupt, FormatTooNew):
            return  # told when the version is added
        stored = [entry for entry in manifest.entries if isinstance(entry, StoredFile)]
        missing = [entry for entry in stored if entry.digest in self._found.others]
        known = self._catalog.bytes.readable_locations(entry.digest for entry in missing)
        for entry in missing:
            if entry.digest not in known:
                self._place_file(entry.digest, entry.size_bytes, None)

    def _place_file(self, digest: Digest, size_bytes: int, recipe: Recipe | None) -> None:
        name, real_bytes = self._found.others.get(digest, ("", -1))
        if real_bytes != size_bytes:
            return
        blobs = {digest: BlobLocation(digest, name, 0, size_bytes, size_bytes, "none", "file")}
        at = 0
        for part, length in recipe.parts if recipe else ():
            blobs.setdefault(part, BlobLocation(part, name, at, length, length, "none", "part"))
            at += length
        aside = [name] if self._objects.stat(name) is None else []
        staged = StagedObject(name, size_bytes, tuple(blobs.values()))
        self._catalog.restoring.place([staged], damaged=aside)
        self._found.placed.add(name)

    def _report_unknown_objects(self) -> None:
        """Objects that are neither packs nor files of a version: damaged, or of a log that never ended."""
        for digest, (name, size_bytes) in self._found.others.items():
            if name not in self._found.placed and self._hash(name, size_bytes) != digest:
                self._problems.append(
                    f"the object {name} is damaged: what was in it is lost, unless it is stored elsewhere too"
                )

    def _hash(self, name: str, size_bytes: int) -> Digest | None:
        hasher = blake3()
        try:
            for at in range(0, size_bytes, READ_BYTES):
                length = min(READ_BYTES, size_bytes - at)
                hasher.update(self._objects.read(name, offset=at, length=length))
        except Corrupt:
            return None
        return Digest(f"b3:{hasher.hexdigest()}")

    # --- versions ---

    def _records(self) -> Iterator[_Found]:
        seen: set[Digest] = set()
        for pack in self._found.packs.values():
            for blob in pack.blobs:
                if blob.kind != "record" or blob.digest in seen:
                    continue
                seen.add(blob.digest)
                try:
                    yield _Found(decode_record(self._reader.read(blob.digest)), blob.digest)
                except (Corrupt, FormatTooNew) as error:
                    self._problems.append(f"the record of a version, in {pack.name}: {error}")

    def _add_runs(self, versions: Iterable[VersionFile]) -> dict[str, RunRecord]:
        runs: dict[str, RunRecord] = {}
        # The last record of a run knows the most of it.
        for version in sorted(versions, key=lambda version: version.created_at):
            run = version.run
            if run is None:
                continue
            try:
                if version.run_facts is not None:
                    run = with_facts(run, self._reader.read(version.run_facts))
            except (Corrupt, FormatTooNew) as error:
                self._problems.append(
                    f"the command and environment of the run {run.uid} ({run.name}): {error}"
                )
            runs[run.uid] = run
        for run in runs.values():
            parent = run.parent_uid if run.parent_uid in runs else None
            self._catalog.runs.start(_new_run(structs.replace(run, parent_uid=parent)))
        return runs

    def _add_version(self, found: _Found, number: int) -> None:
        file = found.file
        ref = f"{file.name}:v{number}"
        new = NewVersion(
            uid=file.uid,
            token=file.token,
            name=file.name,
            type=None,
            digest=file.digest,
            root=file.root,
            record=found.blob,
            metadata=file.metadata,
            entry_metadata=file.entry_metadata,
            description=file.description,
            size_bytes=file.size_bytes,
            shared_bytes=file.size_bytes,  # they were there when it was found
            file_count=file.file_count,
            semver=file.semver,
            aliases=file.aliases,
            tags=file.tags,
            run_uid=file.run.uid if file.run else None,
            if_unchanged="new",
            created_by=file.created_by,
            created_at=file.created_at,
            number=number,
        )
        if self._catalog.versions.find_artifact(file.name) is None:
            new = structs.replace(new, type=file.type)
        try:
            self._catalog.commits.commit(new)
        except VersionExists:
            # Of two attempts that asked for it, one was refused; which, nothing tells.
            self._problems.append(f"{ref} lost its label {file.semver!r}: another version has it")
            self._catalog.commits.commit(structs.replace(new, semver=None))
        self._catalog.restoring.hold(file.uid, self._needs(found, ref))

    def _needs(self, found: _Found, ref: str) -> set[Digest]:
        """The blobs that a version relies on; what is missing of them is told."""
        needs: set[Digest] = set()
        try:
            for digest in blobs_of(found.file.root, found.blob, self._catalog, self._reader):
                needs.add(digest)
            manifest = read_manifest(self._reader, found.file.root)
        except (Corrupt, FormatTooNew) as error:
            self._problems.append(f"{ref}: its files cannot be read: {error}")
            return needs
        files = [entry for entry in manifest.entries if isinstance(entry, StoredFile)]
        whole = self._catalog.bytes.readable_locations(entry.digest for entry in files)
        recipes = self._catalog.bytes.recipes(entry.digest for entry in files)
        for entry in files:
            if entry.digest not in whole and not self._has_parts(recipes.get(entry.digest)):
                self._problems.append(f"{ref}/{entry.path}: its bytes are in no object")
        return needs

    def _has_parts(self, record: RecipeRecord | None) -> bool:
        if record is None:
            return False
        recipe = self._reader.recipe(record.file)
        parts = {part for part, _ in recipe.parts} if recipe else set[Digest]()
        return len(self._catalog.bytes.readable_locations(parts)) == len(parts)

    def _add_tombstones(self, records: Mapping[tuple[str, int], _Found]) -> None:
        """What was deleted: numbers that are missing, and inputs of which nothing is left but their name."""
        gone: dict[tuple[str, int], tuple[str, int]] = {}
        known = {found.file.uid for found in records.values()}
        for found in records.values():
            for used in found.file.inputs:
                if used.version_uid not in known:
                    asked = parse_reference(used.ref)
                    gone.setdefault(
                        (asked.name, asked.number), (used.version_uid, found.file.created_at)
                    )
        highest: dict[str, int] = {}
        for name, number in [*records, *gone]:
            highest[name] = max(number, highest.get(name, 0))
        for name, last in highest.items():
            for number in range(1, last + 1):
                if (name, number) not in records:
                    uid, at = gone.get((name, number), (new_uid(), 0))
                    self._catalog.restoring.add_tombstone(name, number, uid=uid, at=at)


# --- merging ---


def _merged(records: Iterable[_Found]) -> list[_Found]:
    """One record for each attempt: the last one that it wrote, which is the one that it committed."""
    by_token: dict[str, _Found] = {}
    for found in records:
        known = by_token.get(found.file.token)
        if known is None or _age(known) < _age(found):
            by_token[found.file.token] = found
    # A version whose record was written anew has two, of the same attempt; two attempts are never one version.
    return sorted(by_token.values(), key=_age)


def _age(found: _Found) -> tuple[int, int, str]:
    return found.file.created_at, found.file.expected_number, found.file.uid


def _numbered(records: Sequence[_Found]) -> dict[tuple[str, int], _Found]:
    """The records by name and number.

    A version that others were made from is known by the number that they called it. The rest have the number that
    they expected; of several that expected the same, the oldest has it, and the others what is left.
    """
    called: dict[str, int] = {}
    for found in records:
        for used in found.file.inputs:
            called[used.version_uid] = parse_reference(used.ref).number
    by_number: dict[tuple[str, int], _Found] = {}
    late: list[_Found] = []
    is_called = [found for found in records if found.file.uid in called]
    others = [found for found in records if found.file.uid not in called]
    for found in [*is_called, *sorted(others, key=lambda one: one.file.expected_number)]:
        file = found.file
        key = (file.name, called.get(file.uid, file.expected_number))
        if by_number.setdefault(key, found) is not found:
            late.append(found)
    for found in late:
        number = found.file.expected_number
        while (found.file.name, number) in by_number:
            number += 1
        by_number[(found.file.name, number)] = found
    return by_number


def _edges(records: Mapping[tuple[str, int], _Found]) -> Iterator[Edge]:
    """What each run used and made, in an order that gives every version the inputs that its record names."""
    by_run: dict[str, list[VersionFile]] = {}
    for found in records.values():
        if found.file.run is not None:
            by_run.setdefault(found.file.run.uid, []).append(found.file)
    for run_uid, made in by_run.items():
        order: list[tuple[tuple[int, int, int], Edge]] = []
        for one, at in _uses(made):
            edge = Edge(
                run_uid,
                one.version_uid,
                "used",
                0,
                at,
                one.is_declared,
                one.is_detected,
                one.role,
                one.requested,
                one.mismatch,
            )
            order.append(((one.position, 0, 0), edge))
        for version in made:
            after = max((one.position for one in version.inputs), default=0)
            edge = Edge(run_uid, version.uid, "made", 0, version.created_at)
            order.append(((after, 1, version.created_at), edge))
        order.sort(key=lambda item: item[0])
        for position, (_, edge) in enumerate(order, 1):
            yield structs.replace(edge, position=position)


def _uses(made: Iterable[VersionFile]) -> Iterator[tuple[InputRecord, int]]:
    """What a run used, once for each way it was asked for, as told last; each with when it was told first."""
    used: dict[tuple[str, str | None], InputRecord] = {}
    told_at: dict[tuple[str, int], int] = {}
    for version in sorted(made, key=lambda one: one.created_at):
        for one in version.inputs:
            used[(one.version_uid, one.requested)] = one
            told_at.setdefault((one.version_uid, one.position), version.created_at)
    asked = {uid for uid, requested in used if requested is not None}
    for (uid, requested), one in used.items():
        # What was only detected when an older version was made was asked for later: it is that edge.
        if requested is not None or uid not in asked:
            yield one, told_at[(uid, one.position)]


def _new_run(run: RunRecord) -> NewRun:
    return NewRun(
        uid=run.uid,
        name=run.name,
        job=run.job,
        parent_uid=run.parent_uid,
        params=run.params,
        metrics=run.metrics,
        tags=run.tags,
        git=run.git,
        command=run.command,
        environment=run.environment,
        error=run.error,
        host=run.host,
        pid=run.pid,
        process_started=run.process_started,
        boot_id=run.boot_id,
        user=run.user,
        status=run.status,
        started_at=run.started_at,
        ended_at=run.ended_at,
    )


def _batches(packs: Sequence[StagedObject]) -> Iterator[Sequence[StagedObject]]:
    return (packs[at : at + BATCH_OBJECTS] for at in range(0, len(packs), BATCH_OBJECTS))
