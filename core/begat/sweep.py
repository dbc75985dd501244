"""Delete bytes that no version needs; nothing else, and nothing while anyone writes.

What could go is found while others work. It is decided, removed from the catalog and then from the disk in short
slices during which gc is alone in the store: rows always go before bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from begat.blobs import verified
from begat.errors import Corrupt, Refused, StoreFull, warn
from begat.identity import Digest, digest_of
from begat.locks import StoreLocks, SweepLock
from begat.model import BlobLocation, Holder, ObjectRecord, StagedObject, VersionRecord
from begat.needs import Needed
from begat.objects import ObjectStore, read_open
from begat.packs import MAX_BLOBS, TARGET_BYTES, decompress, encode_index
from begat.progress import current as current_progress
from begat.progress import reporting

if TYPE_CHECKING:
    from begat.catalog import Catalog

# A pack is written anew when more than half of it is dead, and enough that a file system's block is gained.
REPACK_DEAD_SHARE = 0.5
REPACK_MIN_BYTES = 4096
# So many blobs are copied before the catalog hears of them: what is known of them fits into memory.
ROUND_BLOBS = 200_000
SLICE_OBJECTS = 64
# So many have room in the reserve, wherever in the catalog's indexes they stand.
FEW_BLOBS = 32
UNKNOWN = Digest("")

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
    """A pack that is mostly dead, and a fingerprint of the versions that keep their bytes and hold it."""

    name: str
    holders: Digest


@dataclass(frozen=True, slots=True)
class _Copied:
    """A new, durable pack that nothing names yet: what is needed of some packs."""

    new: StagedObject | None
    packs: tuple[_Repack, ...]
    moves: tuple[tuple[Digest, str, BlobLocation], ...]


@dataclass(slots=True)
class _Plan:
    needed: Needed
    retired: list[VersionRecord] = field(default_factory=list[VersionRecord])
    kept: list[Kept] = field(default_factory=list[Kept])
    orphans: dict[str, int] = field(default_factory=dict[str, int])
    leftover_bytes: int = 0
    repacks: dict[str, _Repack] = field(default_factory=dict[str, _Repack])
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
    with locks.sweeping(wait_s=wait_s) as lock, reporting("removing what no version needs"):
        return _Sweep(catalog, objects, locks, lock, by).run(plan)


def _plan(catalog: Catalog, objects: ObjectStore) -> _Plan:
    plan = _Plan(Needed(catalog, objects))
    gone: set[str] = set()
    live: list[VersionRecord] = []
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
            live.append(version)
    plan.needed.add(live)
    # Any error here ends gc: a missing listing is not an empty store.
    listed = dict(objects.list()) | dict(objects.list_set_aside())
    plan.leftover_bytes = objects.tmp_bytes()
    known = {record.name: record for record in catalog.bytes.all_objects()}
    plan.orphans = {name: size for name, size in listed.items() if name not in known}
    _plan_objects(plan, catalog, objects, known, listed.keys(), gone)
    return plan


def _plan_objects(
    plan: _Plan,
    catalog: Catalog,
    objects: ObjectStore,
    known: Mapping[str, ObjectRecord],
    listed: AbstractSet[str],
    gone: AbstractSet[str],
) -> None:
    """Which objects go, and which packs are written anew: decided in one pass over what the catalog knows."""
    holders: dict[str, Digest] = {}
    for name, found in catalog.bytes.holders():
        live = [holder for holder in found if holder.uid not in gone]
        if live and name in known:
            is_readable = plan.needed.unreadable.isdisjoint(holder.uid for holder in live)
            holders[name] = _fingerprint(live) if is_readable else UNKNOWN
    for name in known:
        if name not in holders:
            plan.freeable[name] = objects.freed_by_removing(name) if name in listed else 0
    for name, blobs in catalog.bytes.blobs_by_object():
        record = known.get(name)
        if record is None or record.state != "live" or holders.get(name, UNKNOWN) == UNKNOWN:
            continue
        if any(length == record.size_bytes for _, length in blobs):
            continue  # a file of its own, not a pack
        alive_bytes = sum(length for digest, length in blobs if digest in plan.needed)
        if alive_bytes > record.size_bytes * (1 - REPACK_DEAD_SHARE):
            continue
        alive = _alive(plan.needed, catalog, name)
        new_bytes = sum(blob.stored_length for blob in alive) + len(encode_index(alive))
        dead_bytes = record.size_bytes - new_bytes
        if dead_bytes > max(record.size_bytes * REPACK_DEAD_SHARE, REPACK_MIN_BYTES):
            plan.repacks[name] = _Repack(name, holders[name])
            plan.freeable[name] = dead_bytes


def _alive(needed: Needed, catalog: Catalog, name: str) -> list[BlobLocation]:
    return [blob for blob in catalog.bytes.blobs_in(name) if needed.is_needed(blob)]


def _fingerprint(holders: Iterable[Holder]) -> Digest:
    """What tells whether the same versions hold an object as before, in a few bytes.

    With what each is read by: a version that was mended since may rely on a manifest, or a record, that was dead.
    """
    return digest_of("\n".join(f"{uid} {root} {record}" for uid, root, record in holders).encode())


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
        # How many things one transaction is about: one on a disk that has no room for more, until something went.
        self._at_once = SLICE_OBJECTS
        self._is_any_left = False  # of the packs that were to be written anew

    def run(self, plan: _Plan) -> SweepReport:
        waiting = list(plan.repacks.values())
        copied = self._round(waiting, plan)
        self._alone(self._steps(plan, copied, plan.needed))
        while waiting and (copied := self._round(waiting, plan)):
            self._alone(self._steps(None, copied, plan.needed))
        if waiting or self._is_any_left:
            warn(
                "the disk is too full to write packs anew that are mostly dead; nothing is lost, and what was removed "
                "is reported. Free more space and run it again (begat gc --delete)"
            )
        self._catalog.keep_reserve()
        return SweepReport(False, self._freed_bytes, tuple(self._removed), tuple(plan.kept))

    def _round(self, waiting: list[_Repack], plan: _Plan) -> list[_Copied]:
        """Copies of as many of the `waiting` packs as the catalog hears of at once; fewer, or none, on a full disk."""
        copied: list[_Copied] = []
        while waiting and sum(len(each.moves) for each in copied) < ROUND_BLOBS:
            before = list(waiting)
            try:
                copied.append(self._copied(waiting, plan))
            except StoreFull:
                # For the next round: there may be room when what nobody needs is gone.
                waiting[:] = before
                break
        return copied

    def _alone(self, steps: Iterator[None]) -> None:
        """Do all steps while nobody writes, letting writers in between."""
        is_done = False
        while not is_done:
            with self._lock.exclusive() as slice_:
                is_done = True
                for _ in steps:
                    slice_.check()
                    if slice_.is_over:
                        is_done = False
                        break

    def _steps(self, plan: _Plan | None, copied: list[_Copied], needed: Needed) -> Iterator[None]:
        """All that is done while gc is alone, in small steps; between two of them writers may be let in."""
        if plan is not None:
            leftover = self._objects.clean_tmp()
            if leftover:
                self._freed_bytes += leftover
                self._removed.append(Removed("tmp/", "a log ended before its commit", leftover))
            yield
            # The catalog need not be told of these: where the disk was full, there is room for what follows.
            yield from self._remove_orphans(plan.orphans)
            yield from self._drop(plan.retired)
        for each in copied:
            self._move(each, needed)
            yield
        yield from self._remove_dead()

    def _drop(self, retired: list[VersionRecord]) -> Iterator[None]:
        by_uid = {version.uid: version for version in retired}
        waiting = list(by_uid)
        while waiting:
            batch = waiting[: self._at_once]
            try:
                dropped = self._catalog.labels.drop_bytes(batch, by=self._by)
            except StoreFull:
                if self._at_once == 1:
                    raise
                self._at_once = 1
                continue
            waiting = waiting[len(batch) :]
            for uid in dropped:
                version = by_uid[uid]
                self._removed.append(Removed(version.ref, RETIRED, version.size_bytes))
            yield

    def _remove_dead(self) -> Iterator[None]:
        """Objects that nobody holds, some at a time: looked for, forgotten and removed while gc is alone."""
        while dead := self._catalog.bytes.dead_objects(self._at_once):
            names = [record.name for record in dead]
            try:
                forgotten = self._catalog.bytes.forget_objects(names, by=self._by)
            except StoreFull:
                if self._at_once == 1:
                    # One that has too many blobs: these go before it, some at a time.
                    is_any = False
                    while self._catalog.bytes.forget_blobs(names[0], FEW_BLOBS):
                        is_any = True
                        yield
                    if not is_any:
                        raise
                self._at_once = 1
                continue
            self._at_once = SLICE_OBJECTS
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
        size_bytes = self._objects.freed_by_removing(name)
        if self._objects.remove(name):
            current_progress().advance(bytes=size_bytes, files=1)
            self._freed_bytes += size_bytes
            self._removed.append(Removed(name, reason, size_bytes))

    def _copied(self, waiting: list[_Repack], plan: _Plan) -> _Copied:
        """Copy what is needed of the next packs into one new, durable pack, as any writer would; nothing names it yet.

        As many packs as fill the new one are taken from `waiting`. What is damaged is not moved; `verify` names it.
        """
        packs: list[_Repack] = []
        moves: list[tuple[Digest, str, BlobLocation]] = []
        with self._locks.writing(), self._objects.new() as new:
            while waiting:
                blobs = _alive(plan.needed, self._catalog, waiting[-1].name)
                size_bytes = sum(blob.stored_length for blob in blobs)
                is_full = new.size_bytes + size_bytes > TARGET_BYTES
                if packs and (is_full or len(moves) + len(blobs) > MAX_BLOBS):
                    break
                pack = waiting.pop()
                try:
                    # In memory, at most half a pack: what is written is what was verified.
                    sound = list(self._verified(pack.name, blobs))
                except Corrupt:
                    continue
                for blob, stored in sound:
                    place = blob._replace(object="", offset=new.write(stored))
                    moves.append((blob.digest, pack.name, place))
                packs.append(pack)
            if not moves:
                return _Copied(None, tuple(packs), ())
            new.write(encode_index(place for _, _, place in moves))
            name, size = self._objects.publish(new)
        placed = [(digest, old, place._replace(object=name)) for digest, old, place in moves]
        return _Copied(StagedObject(name, size, ()), tuple(packs), tuple(placed))

    def _verified(
        self, name: str, blobs: Sequence[BlobLocation]
    ) -> Iterator[tuple[BlobLocation, bytes]]:
        """These blobs of a pack as they are stored there; `Corrupt` if one is not what it was."""
        if not blobs:
            return
        fd = self._objects.open(name)
        try:
            for blob in blobs:
                stored = read_open(fd, name, offset=blob.offset, length=blob.stored_length)
                verified(decompress(stored, blob.codec, raw_length=blob.raw_length), blob)
                yield blob, stored
        finally:
            os.close(fd)

    def _move(self, copied: _Copied, needed: Needed) -> None:
        """Let the catalog name the new pack instead of the old ones, of those whose needs were all copied.

        Not of one that another version holds, which was logged since, or was to lose its bytes and is needed again.
        Nor of one with parts of a file that was stored in another way since: the log that did so may be deleted again,
        and whoever has the file reads it by those parts.
        """
        is_known = needed.follow_recipes()
        moved = {digest for digest, _, _ in copied.moves}
        same = {
            pack.name
            for pack in copied.packs
            if is_known
            and _fingerprint(self._catalog.bytes.holders_of(pack.name)) == pack.holders
            and moved.issuperset(blob.digest for blob in _alive(needed, self._catalog, pack.name))
        }
        moves = [move for move in copied.moves if move[1] in same]
        if copied.new is not None and not moves:
            self._objects.remove(copied.new.name)
        if same:
            new = [copied.new] if copied.new is not None and moves else []
            try:
                self._catalog.bytes.relocate(moves, new, emptied=sorted(same))
            except StoreFull:
                # They stay where they are, as if they had not been copied.
                for each in new:
                    self._objects.remove(each.name)
                self._is_any_left = True
                return
            self._freed_bytes -= sum(each.size_bytes for each in new)


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
