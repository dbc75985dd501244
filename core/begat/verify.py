"""Read stored bytes again and compare them with their digests; say whose they are where they differ."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from begat.blobs import READ_BYTES, BlobReader, other_bytes, verified
from begat.errors import Corrupt, FormatTooNew, ObjectMissing
from begat.identity import Digest, digest_of
from begat.model import BlobLocation, ObjectRecord, StoredFile, VersionRecord
from begat.objects import ObjectStore, digest_in, read_open
from begat.packs import decompress
from begat.pages import read_manifest
from begat.progress import Portion, reporting
from begat.record import decode_record

if TYPE_CHECKING:
    from begat.catalog import Catalog

LOOKUP = 10_000
WITH_BYTES = ("live", "retired")


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not what it was: where (`digits:v3/train.csv`, or an object's name), and what is wrong."""

    place: str
    object: str | None
    problem: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` read and found; `damaged` is empty if all is well."""

    damaged: tuple[Damage, ...]
    checked_versions: int
    checked_objects: int
    checked_bytes: int

    @property
    def is_sound(self) -> bool:
        """True if nothing is damaged."""
        return not self.damaged


@dataclass(frozen=True, slots=True)
class Subset:
    """Part `number` of `count` of the store's objects: all parts together are all of it, whatever is added later."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError(f"a subset is n/t with 1 <= n <= t, not {self.number}/{self.count}")

    def has(self, name: str) -> bool:
        """Whether the object with this name is in this part."""
        return int(digest_of(name.encode())[3:11], 16) % self.count == self.number - 1


def verify_store(
    catalog: Catalog,
    objects: ObjectStore,
    reader: Callable[[], BlobReader],
    *,
    subset: Subset | None = None,
) -> VerifyReport:
    """Read every object (of a subset) and every version's manifest; name all that is damaged.

    What is found damaged is marked, so that it is offered no more and logging the same content again mends it.
    """
    damaged = [Damage("catalog", None, problem) for problem in catalog.check()]
    bad: dict[Digest, tuple[str, str]] = {}
    new: set[str] = set()
    chosen = [
        record
        for record in catalog.bytes.all_objects()
        # What is damaged already is looked at each time: else it would be well in all parts but one.
        if subset is None or subset.has(record.name) or record.state == "damaged"
    ]
    read_bytes = 0
    with reporting(
        "verifying", sum(record.size_bytes for record in chosen), total_files=len(chosen)
    ) as progress:
        for record in chosen:
            portion = Portion(progress, record.size_bytes)
            found = _check_object(record, catalog, objects, portion.tell)
            if found:
                bad |= {digest: (record.name, problem) for digest, problem in found.items()}
                if record.state == "live":
                    new.add(record.name)
                _set_aside(record, catalog, objects)
            elif record.state == "damaged" and objects.stat(record.name) is not None:
                # It was missing once, and is here and sound: its disk was not mounted, perhaps.
                if not catalog.is_read_only:
                    catalog.bytes.mark_sound(record.name)
            read_bytes += record.size_bytes
            portion.complete()
    with_bytes = [version for version in catalog.versions.all() if version.state in WITH_BYTES]
    named: set[str] = set()
    for version in with_bytes:
        found_here = list(_version_damage(version, catalog, reader(), bad))
        # What was deleted, and collected, since the versions were listed is no damage.
        if found_here and catalog.versions.get(version.uid).state in WITH_BYTES:
            named.update(damage.object or "" for damage in found_here)
            damaged += found_here
    # What was set aside before, and is needed by no version (any more), is left to garbage collection.
    damaged += [
        Damage(name, name, problem)
        for name, problem in dict(bad.values()).items()
        if name in new - named
    ]
    return VerifyReport(tuple(damaged), len(with_bytes), len(chosen), read_bytes)


def verify_version(version: VersionRecord, reader: BlobReader) -> tuple[Damage, ...]:
    """Read all bytes of one version; what is damaged, by path."""
    try:
        manifest = read_manifest(reader, version.root)
    except Corrupt as error:
        return (Damage(version.ref, None, f"its manifest cannot be read: {error.message}"),)
    damaged: list[Damage] = []
    if manifest.digest != version.digest:
        damaged.append(Damage(version.ref, None, "its manifest is another one than was committed"))
    files = [entry for entry in manifest.entries if isinstance(entry, StoredFile)]
    with reporting(
        f"verifying {version.ref}", version.size_bytes, total_files=len(files)
    ) as progress:
        for batch in _batches(files):
            reader.prefetch_files(batch)
            for entry in batch:
                portion = Portion(progress, entry.size_bytes)
                try:
                    _read_file(entry, reader, portion.tell)
                except Corrupt as error:
                    damaged.append(Damage(f"{version.ref}/{entry.path}", None, error.message))
                portion.complete()
    return tuple(damaged)


def _read_file(entry: StoredFile, reader: BlobReader, tell: Callable[[int], object]) -> None:
    hasher = blake3()
    size_bytes = 0
    for piece in reader.stream(entry.digest, entry.size_bytes):
        hasher.update(piece)
        size_bytes += len(piece)
        tell(len(piece))
    if size_bytes != entry.size_bytes or hasher.hexdigest() != entry.digest[3:]:
        raise Corrupt("its parts are sound, but together they are not the file that was stored")


def _check_object(
    record: ObjectRecord, catalog: Catalog, objects: ObjectStore, tell: Callable[[int], object]
) -> dict[Digest, str]:
    """What is wrong with an object: damaged blob -> problem; all of its blobs if the object itself is gone."""
    found = _read_object(record, catalog, objects, tell)
    if not found:
        return found
    # gc forgets an object, or lets its blobs lie elsewhere, before it removes it: then nothing was damaged.
    if record.name not in catalog.bytes.objects([record.name]):
        return {}
    here = {blob.digest for blob in catalog.bytes.blobs_in(record.name)}
    return {
        digest: problem
        for digest, problem in found.items()
        if digest in here or digest == record.name
    }


def _read_object(
    record: ObjectRecord, catalog: Catalog, objects: ObjectStore, tell: Callable[[int], object]
) -> dict[Digest, str]:
    blobs = catalog.bytes.blobs_in(record.name)
    try:
        size = objects.stat(record.name, with_damaged=True)
    except ObjectMissing:  # the catalog has a name for it that no object can have
        size = None
    if size is None:
        return dict.fromkeys((b.digest for b in blobs), "its object is missing") or _nameless(
            record, "it is missing"
        )
    try:
        fd = objects.open(record.name)
    except Corrupt as error:
        return dict.fromkeys((b.digest for b in blobs), error.message)
    try:
        problems, digest = _read_blobs(_Reading(fd, record, tell), blobs)
    finally:
        os.close(fd)
    if not problems and (size != record.size_bytes or digest != digest_in(record.name)):
        # All blobs are sound: the damage is in the index or between them, and a rebuild would miss what it lists.
        return _nameless(
            record, "its own bytes are not what was written, though every blob in it is sound"
        )
    return problems


def _read_blobs(
    reading: _Reading, blobs: Sequence[BlobLocation]
) -> tuple[dict[Digest, str], Digest | None]:
    """What is wrong with the blobs of an object, which come by offset, and the digest of the whole of it."""
    problems: dict[Digest, str] = {}
    for blob in blobs:
        if reading.is_of(blob):
            continue
        try:
            stored = reading.take(blob.offset, blob.stored_length)
            verified(decompress(stored, blob.codec, raw_length=blob.raw_length), blob)
        except Corrupt as error:
            problems[blob.digest] = error.message
    digest = reading.digest()
    for blob in blobs:
        if reading.is_of(blob) and digest != blob.digest:
            problems[blob.digest] = reading.lost or other_bytes(blob).message
    return problems, digest


def _nameless(record: ObjectRecord, problem: str) -> dict[Digest, str]:
    return {Digest(record.name): problem}


class _Reading:
    """One object, read once from its beginning to its end and hashed on the way, however large it is."""

    def __init__(self, fd: int, record: ObjectRecord, tell: Callable[[int], object]) -> None:
        self._fd, self._record, self._tell = fd, record, tell
        self._hasher = blake3()
        self._at = 0
        self.lost = ""

    def is_of(self, blob: BlobLocation) -> bool:
        """Whether a blob is all of the object: a large file, whose digest is known when all was read."""
        return (blob.offset, blob.stored_length, blob.codec) == (0, self._record.size_bytes, "none")

    def take(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, after those before it that were not read yet; `Corrupt` if they cannot be."""
        self._pass_to(offset)
        data = read_open(self._fd, self._record.name, offset=offset, length=length)
        if offset == self._at and not self.lost:
            self._count(data)
        return data

    def digest(self) -> Digest | None:
        """The digest of all bytes, or None if some cannot be read."""
        self._pass_to(self._record.size_bytes)
        return None if self.lost else Digest(f"b3:{self._hasher.hexdigest()}")

    def _pass_to(self, end: int) -> None:
        try:
            while self._at < end and not self.lost:
                length = min(READ_BYTES, end - self._at)
                self._count(read_open(self._fd, self._record.name, offset=self._at, length=length))
        except Corrupt as error:  # blobs after that may be sound
            self.lost = error.message

    def _count(self, data: bytes) -> None:
        self._hasher.update(data)
        self._at += len(data)
        self._tell(len(data))


def _set_aside(record: ObjectRecord, catalog: Catalog, objects: ObjectStore) -> None:
    if catalog.is_read_only:
        return
    catalog.bytes.mark_damaged(record.name)
    if record.state == "live" and objects.stat(record.name) is not None:
        objects.set_aside(record.name)


def _version_damage(
    version: VersionRecord,
    catalog: Catalog,
    reader: BlobReader,
    bad: dict[Digest, tuple[str, str]],
) -> Iterator[Damage]:
    try:
        manifest = read_manifest(reader, version.root)
    except Corrupt as error:
        name = next((name for digest, (name, _) in bad.items() if digest == version.root), None)
        yield Damage(version.ref, name, f"its manifest cannot be read: {error.message}")
        return
    if manifest.digest != version.digest:
        yield Damage(version.ref, None, "its manifest is another one than was committed")
    yield from _record_damage(version, catalog, reader, bad)
    files = [entry for entry in manifest.entries if isinstance(entry, StoredFile)]
    for batch in _batches(files):
        known = catalog.bytes.readable_locations(entry.digest for entry in batch)
        for entry in batch:
            if entry.digest in known and entry.digest not in bad:
                continue
            found = _damaged_parts(entry, catalog, reader, bad)
            if found:
                yield Damage(f"{version.ref}/{entry.path}", found[0] or None, found[1])


def _record_damage(
    version: VersionRecord,
    catalog: Catalog,
    reader: BlobReader,
    bad: dict[Digest, tuple[str, str]],
) -> Iterator[Damage]:
    """What is wrong with what a rebuild would need of a version; its files can be read all the same."""
    record = catalog.versions.record_of(version.uid)
    if record is None:
        return
    broken = record
    try:
        facts = decode_record(reader.read(record)).run_facts
        if facts is not None:
            broken = facts
            reader.read(facts)
    except (Corrupt, FormatTooNew) as error:
        name = bad[broken][0] if broken in bad else None
        yield Damage(
            version.ref, name, f"its record, from which a catalog is rebuilt: {error.message}"
        )


def _damaged_parts(
    entry: StoredFile, catalog: Catalog, reader: BlobReader, bad: dict[Digest, tuple[str, str]]
) -> tuple[str, str] | None:
    """What is wrong with a file that is not sound in one piece: (object, problem), or None if its parts are."""
    try:
        recipe = reader.recipe(entry.digest)
    except Corrupt as error:
        return "", f"its recipe cannot be read: {error.message}"
    if recipe is None:
        return bad.get(entry.digest, ("", "its bytes are not in the store"))
    parts = [part for part, _ in recipe.parts]
    known = catalog.bytes.readable_locations(parts)
    for part in parts:
        if part in bad:
            return bad[part]
        if part not in known:
            return "", f"its part {part} is not in the store"
    return None


def _batches(files: list[StoredFile]) -> Iterable[list[StoredFile]]:
    return (files[at : at + LOOKUP] for at in range(0, len(files), LOOKUP))
