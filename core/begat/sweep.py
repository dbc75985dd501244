"""Delete bytes that no version needs; nothing else, and nothing while anyone writes.

What could go is found while others work. It is decided, removed from the catalog and then from the disk in short
slices during which gc is alone in the store: rows always go before bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from begat.blobs import BlobReader, recipes_around
from begat.errors import Corrupt, Refused
from begat.identity import Digest
from begat.locks import StoreLocks, SweepLock
from begat.manifest import decode_root
from begat.model import BlobLocation, ObjectRecord, StagedObject, StoredFile, VersionRecord
from begat.objects import ObjectStore
from begat.packs import encode_index
from begat.pages import read_manifest
from begat.record import decode_record

if TYPE_CHECKING:
    from begat.catalog import Catalog

# A pack is written anew when more than half of it is dead, and enough to be worth the copying.
REPACK_DEAD_SHARE = 0.5
REPACK_MIN_BYTES = 1 << 20
SLICE_OBJECTS = 64

# Only callbacks retire versions, so that most users meet the word here first.
RETIRED = "it is retired: its training removed or replaced it, and nothing names or uses it"


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that keeps its bytes, and why."""

    ref: str
    reason: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Removed:
    """Something that was (or would be) removed, and why: a version's bytes, an object, a repacked pack."""

    what: str
    reason: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What garbage collection did, or would do when `dry_run`; `freed_bytes` are bytes of files really removed."""

    dry_run: bool
    freed_bytes: int
    removed: tuple[Removed, ...]
    kept: tuple[Kept, ...]


@dataclass(frozen=True, slots=True)
class _Repack:
    """A pack that is mostly dead: the blobs that are needed, by the versions (uids) that keep their bytes."""

    name: str
    blobs: tuple[BlobLocation, ...]
    holders: frozenset[str]
    copied: StagedObject | None = None


@dataclass(slots=True)
class _Plan:
    retired: list[VersionRecord] = field(default_factory=list[VersionRecord])
    kept: list[Kept] = field(default_factory=list[Kept])
    orphans: dict[str, int] = field(default_factory=dict[str, int])
    leftover_bytes: int = 0
    repacks: dict[str, _Repack] = field(default_factory=dict[str, "_Repack"])
    freeable: dict[str, int] = field(default_factory=dict[str, int])


def sweep(
    catalog: Catalog,
    objects: ObjectStore,
    locks: StoreLocks,
    *,
    dry_run: bool = True,
    wait_s: float = 0.0,
    by: str = "",
) -> SweepReport:
    """Remove what no version needs: bytes of retired versions, unnamed objects, dead parts of packs, leftovers.

    A dry run changes nothing and takes no lock. Any error while listing ends it before anything is removed.
    Raises `CatalogBusy` when writers do not make room within `wait_s`.
    """
    plan = _plan(catalog, objects)
    if dry_run:
        return _report(plan, dry_run=True)
    with locks.sweeping(wait_s=wait_s) as lock:
        return _Sweep(catalog, objects, locks, lock, by).run(plan)


def _plan(catalog: Catalog, objects: ObjectStore) -> _Plan:
    plan = _Plan()
    gone: set[str] = set()
    reasons = {
        record.uid: (record, reason) for record, reason in catalog.bytes.retired_candidates()
    }
    for version in catalog.versions.all():
        if version.state not in ("live", "retired"):
            continue
        record, reason = reasons.get(version.uid, (version, _why_kept(version)))
        if reason is None:
            plan.retired.append(record)
            gone.add(record.uid)
        else:
            plan.kept.append(Kept(version.ref, reason, version.size_bytes))
    # Any error here ends gc: a missing listing is not an empty store.
    listed = dict(objects.list()) | dict(objects.list_set_aside())
    plan.leftover_bytes = objects.tmp_bytes()
    known = {record.name: record for record in catalog.bytes.all_objects()}
    plan.orphans = {name: size for name, size in listed.items() if name not in known}
    holders = {name: {v.uid: v for v in catalog.bytes.versions_holding(name)} for name in known}
    needs = _Needs(catalog, objects)
    for name, record in known.items():
        live = [version for uid, version in holders[name].items() if uid not in gone]
        if not live:
            plan.freeable[name] = listed.get(name, 0)
        else:
            repack = _repack(record, catalog, needs, live)
            if repack is not None:
                plan.repacks[name] = repack
                kept_bytes = sum(blob.stored_length for blob in repack.blobs)
                plan.freeable[name] = record.size_bytes - kept_bytes
    return plan


class _Needs:
    """Which blobs versions rely on, read from their manifests when it is first asked for."""

    def __init__(self, catalog: Catalog, objects: ObjectStore) -> None:
        self._catalog = catalog
        self._reader = BlobReader(objects, catalog.bytes, is_read_only=True)
        self._known: dict[str, set[Digest] | None] = {}

    def of(self, versions: Iterable[VersionRecord]) -> set[Digest] | None:
        """All blobs of these versions; None where that cannot be read, so that nothing is known to be dead."""
        found: set[Digest] = set()
        for version in versions:
            if version.uid not in self._known:
                try:
                    record = self._catalog.versions.record_of(version.uid)
                    needed = set(blobs_of(version.root, record, self._catalog, self._reader))
                except Corrupt:
                    needed = None
                self._known[version.uid] = needed
            needed = self._known[version.uid]
            if needed is None:
                return None
            found |= needed
        return found


def blobs_of(
    root: Digest, record: Digest | None, catalog: Catalog, reader: BlobReader
) -> Iterator[Digest]:
    """All blobs that a version relies on: root, pages, record, recipes, parts, whole files; `Corrupt`."""
    yield root
    yield from (page.digest for page in decode_root(reader.read(root)).pages)
    if record is not None:
        yield record
        facts = decode_record(reader.read(record)).run_facts
        if facts is not None:
            yield facts
    files = [e.digest for e in read_manifest(reader, root).entries if isinstance(e, StoredFile)]
    yield from files
    for recipe_record in catalog.bytes.recipes(files).values():
        yield recipe_record.recipe
        recipe = reader.recipe(recipe_record.file)
        if recipe is not None:
            parts = {part for part, _ in recipe.parts}
            yield from parts
            yield from recipes_around(
                catalog.bytes.readable_locations(parts).values(), catalog.bytes
            )


def _repack(
    record: ObjectRecord, catalog: Catalog, needs: _Needs, live: list[VersionRecord]
) -> _Repack | None:
    """What is to be kept of an object, if it is a pack that is worth writing anew."""
    if record.state != "live" or record.size_bytes < REPACK_MIN_BYTES:
        return None
    blobs = catalog.bytes.blobs_in(record.name)
    if any(blob.kind == "file" and blob.stored_length == record.size_bytes for blob in blobs):
        return None  # a file of its own, not a pack
    needed = needs.of(live)
    if needed is None:
        return None
    alive = tuple(blob for blob in blobs if blob.digest in needed)
    dead_bytes = record.size_bytes - sum(blob.stored_length for blob in alive)
    if dead_bytes <= record.size_bytes * REPACK_DEAD_SHARE:
        return None
    return _Repack(record.name, alive, frozenset(version.uid for version in live))


def _why_kept(version: VersionRecord) -> str:
    if version.is_latest:
        return "it is the latest"
    if version.aliases:
        return f"aliased {', '.join(version.aliases)}"
    return "nobody deleted it (begat rm)"


class _Sweep:
    """One garbage collection that really removes."""

    def __init__(
        self, catalog: Catalog, objects: ObjectStore, locks: StoreLocks, lock: SweepLock, by: str
    ) -> None:
        self._catalog = catalog
        self._objects = objects
        self._locks = locks
        self._lock = lock
        self._by = by
        self._removed: list[Removed] = []
        self._freed_bytes = 0

    def run(self, plan: _Plan) -> SweepReport:
        repacked = [self._copied(repack) for repack in plan.repacks.values()]
        steps = self._steps(plan, repacked)
        is_done = False
        while not is_done:
            with self._lock.exclusive() as slice_:
                is_done = True
                for _ in steps:
                    slice_.check()
                    if slice_.is_over:
                        is_done = False
                        break
        return SweepReport(False, self._freed_bytes, tuple(self._removed), tuple(plan.kept))

    def _steps(self, plan: _Plan, repacked: list[_Repack]) -> Iterator[None]:
        """All that is done while gc is alone, in small steps; between two of them writers may be let in."""
        leftover = self._objects.clean_tmp()
        if leftover:
            self._freed_bytes += leftover
            self._removed.append(Removed("tmp/", "a log ended before its commit", leftover))
        yield
        self._drop(plan.retired)
        yield
        for each in repacked:
            self._move(each)
            yield
        yield from self._remove_dead()
        yield from self._remove_orphans(plan.orphans)

    def _drop(self, retired: list[VersionRecord]) -> None:
        by_uid = {version.uid: version for version in retired}
        for uid in self._catalog.labels.drop_bytes(list(by_uid), by=self._by):
            version = by_uid[uid]
            self._removed.append(Removed(version.ref, RETIRED, version.size_bytes))

    def _remove_dead(self) -> Iterator[None]:
        """Objects that nobody holds, some at a time: looked for, forgotten and removed while gc is alone."""
        while dead := self._catalog.bytes.dead_objects(SLICE_OBJECTS):
            forgotten = self._catalog.bytes.forget_objects(
                [record.name for record in dead], by=self._by
            )
            for name in forgotten:
                self._remove(name, "no version needs it")
            if not forgotten:
                raise Refused(
                    "objects that nobody holds could not be forgotten; nothing was removed"
                )
            yield

    def _remove_orphans(self, orphans: Iterable[str]) -> Iterator[None]:
        """Files that no row names: written by a log that never committed."""
        waiting = list(orphans)
        while waiting:
            batch, waiting = waiting[:SLICE_OBJECTS], waiting[SLICE_OBJECTS:]
            named = self._catalog.bytes.objects(batch)
            for name in batch:
                if name not in named:
                    self._remove(name, "no row names it: its log never committed")
            yield

    def _remove(self, name: str, reason: str) -> None:
        size_bytes = self._objects.stat(name, with_damaged=True) or 0
        if self._objects.remove(name):
            self._freed_bytes += size_bytes
            self._removed.append(Removed(name, reason, size_bytes))

    def _copied(self, repack: _Repack) -> _Repack:
        """Copy the live blobs of a pack into a new, durable one, as any writer would; nothing names it yet."""
        reader = BlobReader(self._objects, self._catalog.bytes)
        moved: list[BlobLocation] = []
        with self._locks.writing(), self._objects.new() as new:
            for blob in repack.blobs:
                try:
                    reader.check_place(blob)
                except Corrupt:
                    return repack  # `verify` names it; what is damaged is not moved
                stored = self._objects.read(
                    blob.object, offset=blob.offset, length=blob.stored_length
                )
                moved.append(blob._replace(object="", offset=new.write(stored)))
            new.write(encode_index(moved))
            name, size = self._objects.publish(new)
        placed = tuple(blob._replace(object=name) for blob in moved)
        return replace(repack, copied=StagedObject(name, size, placed))

    def _move(self, repack: _Repack) -> None:
        """Let the catalog name the new pack, unless a version relies on the old one whose needs were not copied.

        That is one that was logged since, or one that was to lose its bytes and is needed again.
        """
        copied = repack.copied
        if copied is None:
            return
        now = {version.uid for version in self._catalog.bytes.versions_holding(repack.name)}
        if now - repack.holders:
            self._objects.remove(copied.name)
            return
        moves = [(blob.digest, repack.name, blob) for blob in copied.blobs]
        self._catalog.bytes.relocate(moves, [copied], emptied=[repack.name])
        self._freed_bytes -= copied.size_bytes


def _report(plan: _Plan, *, dry_run: bool) -> SweepReport:
    removed = [Removed(v.ref, RETIRED, v.size_bytes) for v in plan.retired]
    removed += [
        Removed(
            name,
            "more than half of it is dead" if name in plan.repacks else "no version needs it",
            size,
        )
        for name, size in plan.freeable.items()
    ]
    removed += [
        Removed(name, "no row names it: its log never committed, or is at work", size)
        for name, size in plan.orphans.items()
    ]
    if plan.leftover_bytes:
        removed.append(
            Removed("tmp/", "a log ended before its commit, or is at work", plan.leftover_bytes)
        )
    freed = sum(plan.freeable.values()) + sum(plan.orphans.values()) + plan.leftover_bytes
    return SweepReport(dry_run, freed, tuple(removed), tuple(plan.kept))
