"""Read stored bytes again and compare them with their digests; say whose they are where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from begat.blobs import READ_BYTES, BlobReader
from begat.errors import Corrupt, FormatTooNew, ObjectMissing
from begat.identity import Digest, digest_of
from begat.model import ObjectRecord, StoredFile, VersionRecord
from begat.objects import ObjectStore
from begat.pages import read_manifest
from begat.progress import reporting
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
            found = _check_object(record, catalog, objects)
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
            progress.advance(bytes=record.size_bytes, files=1)
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
    for batch in _batches(files):
        reader.prefetch_files(batch)
        for entry in batch:
            try:
                _read_file(entry, reader)
            except Corrupt as error:
                damaged.append(Damage(f"{version.ref}/{entry.path}", None, error.message))
    return tuple(damaged)


def _read_file(entry: StoredFile, reader: BlobReader) -> None:
    hasher = blake3()
    size_bytes = 0
    for piece in reader.stream(entry.digest, entry.size_bytes):
        hasher.update(piece)
        size_bytes += len(piece)
    if size_bytes != entry.size_bytes or hasher.hexdigest() != entry.digest[3:]:
        raise Corrupt("its parts are sound, but together they are not the file that was stored")


def _check_object(
    record: ObjectRecord, catalog: Catalog, objects: ObjectStore
) -> dict[Digest, str]:
    """What is wrong with an object: damaged blob -> problem; all of its blobs if the object itself is gone."""
    found = _read_object(record, catalog, objects)
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


def _read_object(record: ObjectRecord, catalog: Catalog, objects: ObjectStore) -> dict[Digest, str]:
    blobs = catalog.bytes.blobs_in(record.name)
    try:
        size = objects.stat(record.name, with_damaged=True)
    except ObjectMissing:  # the catalog has a name for it that no object can have
        size = None
    if size is None:
        return dict.fromkeys((b.digest for b in blobs), "its object is missing") or _nameless(
            record, "it is missing"
        )
    reader = BlobReader(objects, catalog.bytes, is_read_only=True)
    problems: dict[Digest, str] = {}
    for blob in blobs:
        try:
            reader.check_place(blob)
        except Corrupt as error:
            problems[blob.digest] = error.message
    if not problems and (
        size != record.size_bytes or _hash(record, objects) != _hex_of(record.name)
    ):
        # All blobs are sound: the damage is in the index or between them, and a rebuild would miss what it lists.
        return _nameless(
            record, "its own bytes are not what was written, though every blob in it is sound"
        )
    return problems


def _nameless(record: ObjectRecord, problem: str) -> dict[Digest, str]:
    return {Digest(record.name): problem}


def _hex_of(name: str) -> str:
    return name.rpartition("/")[2].partition("-")[0]


def _hash(record: ObjectRecord, objects: ObjectStore) -> str:
    hasher = blake3()
    for at in range(0, record.size_bytes, READ_BYTES):
        try:
            hasher.update(
                objects.read(record.name, offset=at, length=min(READ_BYTES, record.size_bytes - at))
            )
        except Corrupt:
            return ""
    return hasher.hexdigest()


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
