"""Read stored bytes again and compare them with their digests; say whose they are where they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from begat.blobs import READ_BYTES, BlobReader
from begat.checkout import read_manifest
from begat.errors import Corrupt
from begat.identity import Digest, digest_of
from begat.model import ObjectRecord, StoredFile, VersionRecord
from begat.objects import ObjectStore
from begat.progress import reporting

if TYPE_CHECKING:
    from begat.catalog import Catalog

LOOKUP = 10_000


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
    chosen = [
        record
        for record in catalog.bytes.all_objects()
        if subset is None or subset.has(record.name)
    ]
    read_bytes = 0
    with reporting(
        "verifying", sum(record.size_bytes for record in chosen), total_files=len(chosen)
    ) as progress:
        for record in chosen:
            found = _check_object(record, catalog, objects)
            if found:
                bad |= {digest: (record.name, problem) for digest, problem in found.items()}
                _set_aside(record, catalog, objects)
            read_bytes += record.size_bytes
            progress.advance(bytes=record.size_bytes, files=1)
    with_bytes = [
        version for version in catalog.versions.all() if version.state in ("live", "retired")
    ]
    named: set[str] = set()
    for version in with_bytes:
        for damage in _version_damage(version, catalog, reader(), bad):
            named.add(damage.object or "")
            damaged.append(damage)
    damaged += [
        Damage(name, name, problem)
        for name, problem in dict(bad.values()).items()
        if name not in named
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
        reader.prefetch(entry.digest for entry in batch)
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
    blobs = catalog.bytes.blobs_in(record.name)
    size = objects.stat(record.name)
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
    files = [entry for entry in manifest.entries if isinstance(entry, StoredFile)]
    for batch in _batches(files):
        offered = catalog.bytes.locations(entry.digest for entry in batch)
        for entry in batch:
            found = bad.get(entry.digest)
            if entry.digest in offered and found is None:
                continue
            found = found or _damaged_part(entry, catalog, reader, bad)
            if found:
                yield Damage(f"{version.ref}/{entry.path}", found[0] or None, found[1])


def _damaged_part(
    entry: StoredFile, catalog: Catalog, reader: BlobReader, bad: dict[Digest, tuple[str, str]]
) -> tuple[str, str] | None:
    """What is wrong with a file that is not on offer in one piece: (object, problem), or None."""
    try:
        recipe = reader.recipe(entry.digest)
    except Corrupt as error:
        return "", f"its recipe cannot be read: {error.message}"
    if recipe is None:
        return "", "its bytes are not in the store"
    parts = [part for part, _ in recipe.parts]
    offered = catalog.bytes.locations(parts)
    for part in parts:
        if part in bad:
            return bad[part]
        if part not in offered:
            return "", f"its part {part} is not in the store"
    return None


def _batches(files: list[StoredFile]) -> Iterable[list[StoredFile]]:
    return (files[at : at + LOOKUP] for at in range(0, len(files), LOOKUP))
