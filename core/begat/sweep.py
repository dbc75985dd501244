"""Delete bytes that no version needs; nothing else, and nothing while anyone writes.

What could go is found while others work. It is decided, removed from the catalog and then from the disk in short
slices during which gc is alone in the store: rows always go before bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from begat.blobs import BlobReader
from begat.checkout import read_manifest
from begat.errors import Corrupt, Refused
from begat.identity import Digest
from begat.locks import StoreLocks, SweepLock
from begat.manifest import decode_root
from begat.model import BlobLocation, ObjectRecord, StagedObject, StoredFile, VersionRecord
from begat.objects import ObjectStore
from begat.packs import encode_index
from begat.record import decode_record

if TYPE_CHECKING:
    from begat.catalog import Catalog

# A pack is written anew when more than half of it is dead, and enough to be worth the copying.
REPACK_DEAD_SHARE = 0.5
REPACK_MIN_BYTES = 1 << 20
SLICE_OBJECTS = 64


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


@dataclass(slots=True)
class _Plan:
    retired: list[VersionRecord] = field(default_factory=list[VersionRecord])
    kept: list[Kept] = field(default_factory=list[Kept])
    orphans: dict[str, int] = field(default_factory=dict[str, int])
    repacks: list[ObjectRecord] = field(default_factory=list[ObjectRecord])
    live: dict[str, set[Digest]] = field(default_factory=dict[str, set[Digest]])
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
    listed = dict(objects.list())  # any error here ends gc: a missing listing is not an empty store
    known = {record.name: record for record in catalog.bytes.all_objects()}
    plan.orphans = {name: size for name, size in listed.items() if name not in known}
    holders = {name: {v.uid: v for v in catalog.bytes.versions_holding(name)} for name in known}
    needs = _needs(plan, holders, gone, catalog, objects)
    for name, record in known.items():
        live = [uid for uid in holders[name] if uid not in gone]
        if not live:
            plan.freeable[name] = record.size_bytes
        elif _is_worth_repacking(record, catalog, needs, live, plan):
            plan.repacks.append(record)
    return plan


def _needs(
    plan: _Plan,
    holders: dict[str, dict[str, VersionRecord]],
    gone: set[str],
    catalog: Catalog,
    objects: ObjectStore,
) -> dict[str, set[Digest]]:
    """Version uid -> all blobs that it relies on, for the versions that stay."""
    staying = {uid: v for held in holders.values() for uid, v in held.items() if uid not in gone}
    needs: dict[str, set[Digest]] = {}
    for uid, version in staying.items():
        reader = BlobReader(objects, catalog.bytes, is_read_only=True)
        try:
            needs[uid] = set(blobs_of(version, catalog, reader))
        except Corrupt:
            # Not readable: nothing that it holds is known to be dead.
            needs[uid] = {Digest("")}
    return needs


def blobs_of(version: VersionRecord, catalog: Catalog, reader: BlobReader) -> Iterator[Digest]:
    """All blobs that a version relies on: root, pages, record, recipes, parts, whole files."""
    yield version.root
    root = decode_root(reader.read(version.root))
    yield from (page.digest for page in root.pages)
    record = catalog.versions.record_of(version.uid)
    if record is not None:
        yield record
        facts = decode_record(reader.read(record)).run_facts
        if facts is not None:
            yield facts
    files = [
        e.digest for e in read_manifest(reader, version.root).entries if isinstance(e, StoredFile)
    ]
    yield from files
    for recipe_record in catalog.bytes.recipes(files).values():
        yield recipe_record.recipe
        recipe = reader.recipe(recipe_record.file)
        if recipe is not None:
            yield from (part for part, _ in recipe.parts)


def _is_worth_repacking(
    record: ObjectRecord,
    catalog: Catalog,
    needs: dict[str, set[Digest]],
    live: list[str],
    plan: _Plan,
) -> bool:
    if record.state != "live" or record.size_bytes < REPACK_MIN_BYTES:
        return False
    needed: set[Digest] = set[Digest]().union(*(needs[uid] for uid in live))
    if Digest("") in needed:
        return False
    blobs = catalog.bytes.blobs_in(record.name)
    if any(blob.kind == "file" and blob.stored_length == record.size_bytes for blob in blobs):
        return False  # a file of its own, not a pack
    alive = sum(blob.stored_length for blob in blobs if blob.digest in needed)
    if record.size_bytes - alive <= record.size_bytes * REPACK_DEAD_SHARE:
        return False
    plan.live[record.name] = needed
    plan.freeable[record.name] = record.size_bytes - alive
    return True


def _why_kept(version: VersionRecord) -> str:
    if version.is_latest:
        return "it is the latest"
    if version.aliases:
        return f"aliased {', '.join(version.aliases)}"
    return "it is live; retire or delete it to let its bytes go"


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
        repacked = [self._repack(record, plan.live[record.name]) for record in plan.repacks]
        with self._lock.exclusive():
            self._objects.clean_tmp()
            self._drop(plan.retired)
        for staged in repacked:
            with self._lock.exclusive():
                self._move(*staged)
        self._remove_dead()
        self._remove_orphans(plan.orphans)
        return SweepReport(False, self._freed_bytes, tuple(self._removed), tuple(plan.kept))

    def _drop(self, retired: list[VersionRecord]) -> None:
        by_uid = {version.uid: version for version in retired}
        for uid in self._catalog.labels.drop_bytes(list(by_uid), by=self._by):
            version = by_uid[uid]
            self._removed.append(
                Removed(
                    version.ref, "it was retired, and nothing names or uses it", version.size_bytes
                )
            )

    def _remove_dead(self) -> None:
        """Objects that nobody holds, in slices: looked for, forgotten and removed while gc is alone."""
        while True:
            with self._lock.exclusive() as slice_:
                while True:
                    dead = self._catalog.bytes.dead_objects(SLICE_OBJECTS)
                    if not dead:
                        return
                    sizes = {record.name: record.size_bytes for record in dead}
                    forgotten = self._catalog.bytes.forget_objects(list(sizes))
                    for name in forgotten:
                        self._remove(name, "no version needs it")
                    if not forgotten:
                        raise Refused(
                            "objects that nobody holds could not be forgotten; nothing was removed"
                        )
                    if slice_.is_over:
                        break

    def _remove_orphans(self, orphans: Iterable[str]) -> None:
        """Files that no row names: written by a log that never committed."""
        waiting = list(orphans)
        while waiting:
            with self._lock.exclusive() as slice_:
                while waiting and not slice_.is_over:
                    batch, waiting = waiting[:SLICE_OBJECTS], waiting[SLICE_OBJECTS:]
                    named = self._catalog.bytes.objects(batch)
                    for name in batch:
                        if name not in named:
                            self._remove(name, "no row names it: its log never committed")

    def _remove(self, name: str, reason: str) -> None:
        size_bytes = self._objects.stat(name) or 0
        if self._objects.remove(name):
            self._freed_bytes += size_bytes
            self._removed.append(Removed(name, reason, size_bytes))

    def _repack(
        self, record: ObjectRecord, needed: set[Digest]
    ) -> tuple[ObjectRecord, set[str], StagedObject | None]:
        """Copy the live blobs of a pack into a new, durable one, as any writer would; nothing names it yet."""
        holders = {version.uid for version in self._catalog.bytes.versions_holding(record.name)}
        alive = [
            blob for blob in self._catalog.bytes.blobs_in(record.name) if blob.digest in needed
        ]
        reader = BlobReader(self._objects, self._catalog.bytes)
        moved: list[BlobLocation] = []
        with self._locks.writing(), self._objects.new() as new:
            for blob in alive:
                try:
                    reader.check_place(blob)
                except Corrupt:
                    return record, holders, None  # verify names it; what is damaged is not moved
                stored = self._objects.read(
                    blob.object, offset=blob.offset, length=blob.stored_length
                )
                moved.append(replace(blob, object="", offset=new.write(stored)))
            new.write(encode_index(moved))
            name, size = self._objects.publish(new)
        return (
            record,
            holders,
            StagedObject(name, size, tuple(replace(blob, object=name) for blob in moved)),
        )

    def _move(self, record: ObjectRecord, holders: set[str], staged: StagedObject | None) -> None:
        """Let the catalog name the new pack, unless somebody came to rely on the old one since."""
        if staged is None:
            return
        now = {version.uid for version in self._catalog.bytes.versions_holding(record.name)}
        if now - holders:
            return
        moves = [(blob.digest, record.name, blob) for blob in staged.blobs]
        self._catalog.bytes.relocate(moves, [staged], emptied=[record.name])


def _report(plan: _Plan, *, dry_run: bool) -> SweepReport:
    removed = [
        Removed(v.ref, "it is retired, and nothing names or uses it", v.size_bytes)
        for v in plan.retired
    ]
    removed += [
        Removed(
            name,
            "more than half of it is dead" if name in plan.live else "no version needs it",
            size,
        )
        for name, size in plan.freeable.items()
    ]
    removed += [
        Removed(name, "no row names it: its log never committed, or is at work", size)
        for name, size in plan.orphans.items()
    ]
    freed = sum(plan.freeable.values()) + sum(plan.orphans.values())
    return SweepReport(dry_run, freed, tuple(removed), tuple(plan.kept))
