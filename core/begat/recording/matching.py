"""Which versions hold the content that a training reads: found by digest, of whole objects and of their parts.

What is found was registered by `Version.recognize`, or is what a stored file of a declared artifact looks like once it
is loaded. Those files are read when content is observed that nothing else explains: each version once, within a
budget, and remembered in the catalog.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from begat import handed_out
from begat.errors import BegatError
from begat.fingerprints import MAX_BYTES, MAX_SECONDS, Fingerprint, fingerprint
from begat.fingerprints.hashing import Budget, Unknown
from begat.fingerprints.stored import (
    MAX_LOADED_BYTES,
    READERS_VERSION,
    is_column,
    read_file,
    seen_of,
    usable_readers,
)
from begat.identity import Digest
from begat.model import Edge, Entry, Seen, StoredFile, VersionRecord
from begat.run import RunHome

# Of the artifacts that were declared, so many versions are read, the declared ones first; and of each so many files.
MOST_VERSIONS = 8
MOST_FILES = 64
MOST_DIGESTS = 2_000
MOST_ENTRIES = 10_000
MOST_ROWS = 10_000

_READ = "read"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that is trained on: known as a whole by its digest, or by all of its columns together."""

    whole: str | None
    columns: tuple[str, ...] = ()


class Matching:
    """The search for content among the versions of a store, for one run."""

    def __init__(self, home: RunHome, used: Mapping[str, VersionRecord], edges: Mapping[str, Edge]):
        self._home = home
        self._used = used
        self._edges = edges
        self._seen: dict[str, dict[str, Seen]] = {}
        self._records: dict[str, VersionRecord] = dict(used)
        self._listed: dict[str, tuple[StoredFile, ...]] = {}
        self._budget = Budget(MAX_BYTES, MAX_SECONDS)

    def versions_with(self, content: Fingerprint, *, is_explained: bool) -> list[VersionRecord]:
        """The versions that explain content best, as few as do; none where nothing has such content.

        What is explained already, by where it lies, is only looked up: no file is read for it.
        """
        digests = dict(list(_digests(content).items())[:MOST_DIGESTS])
        if not digests:
            return []
        self._look_up(digests)
        for version in () if is_explained else self._worth_reading():
            # Those that were declared always: else an older one with the same file would be taken for a mismatch.
            if version.uid not in self._used and not self._unexplained(content):
                break
            if self._read(version):
                self._look_up(digests)
        self._share_with_used()
        return self._fewest([self._holders(item) for item in self._items(content)])

    def is_still(self, value: object, digest: str | None, content: Fingerprint) -> bool:
        """Whether an object that was recognised holds the same as then; where that cannot be known it counts so."""
        return (
            digest is None or digest in _digests(content) or (fingerprint(value).digest == digest)
        )

    # --- what the catalog knows ---

    def _look_up(self, digests: Mapping[str, str]) -> None:
        catalog = self._home.catalog
        for seen in catalog.fingerprints.find_many(digests):
            self._seen.setdefault(seen.fingerprint, {})[seen.version_uid] = seen
        for digest in (digest for digest, kind in digests.items() if kind == "folder"):
            for version in catalog.versions.find_digest(Digest(digest)):
                seen = Seen(digest, version.uid, "", "folder")
                self._seen.setdefault(digest, {})[version.uid] = seen
        wanted = {uid for found in self._seen.values() for uid in found} - set(self._records)
        self._records.update(catalog.versions.get_many(wanted))

    def _holders(self, item: Item) -> set[str]:
        """The versions that have this content; what is a column only counts for artifacts that the run uses."""
        artifacts = {version.artifact_uid for version in self._used.values()}
        found = {
            uid
            for uid, seen in self._seen.get(item.whole or "", {}).items()
            if not is_column(seen) or self._records[uid].artifact_uid in artifacts
        }
        by_column: list[set[str]] = [set(self._seen.get(one, {})) for one in item.columns]
        for uid in by_column[0].intersection(*by_column[1:]) if by_column else ():
            if self._records[uid].artifact_uid in artifacts:
                found.add(uid)
        gone = ("bytes-gone", "deleted")
        return {uid for uid in found if self._records[uid].state not in gone}

    def _share_with_used(self) -> None:
        """Let used versions hold what others of their artifacts hold in the very same file, read or not."""
        for holders in self._seen.values():
            for uid, seen in list(holders.items()):
                for used in self._used.values():
                    if used.uid not in holders and self._has_same(used, self._records[uid], seen):
                        holders[used.uid] = Seen(seen.fingerprint, used.uid, seen.path, seen.kind)

    def _has_same(self, used: VersionRecord, other: VersionRecord, seen: Seen) -> bool:
        if used.digest == other.digest:
            return True
        if used.artifact_uid != other.artifact_uid or not seen.path:
            return False
        file = next((one for one in self._files(other) if one.path == seen.path), None)
        return file is not None and file.digest in {one.digest for one in self._files(used)}

    def _files(self, version: VersionRecord) -> tuple[StoredFile, ...]:
        """The files of a version; none where they cannot be told, or are so many that none holds the data."""
        if version.uid not in self._listed:
            entries: Iterable[Entry] = ()
            with contextlib.suppress(BegatError, OSError):
                if version.file_count <= MOST_ENTRIES:
                    entries = self._home.version_of(version).entries
            files = tuple(one for one in entries if isinstance(one, StoredFile))
            self._listed[version.uid] = files
        return self._listed[version.uid]

    # --- what explains it ---

    def _items(self, content: Fingerprint) -> Iterator[Item]:
        """The content as the largest pieces that are known, and the smallest where nothing is."""
        if content.n_rows == 0 or content.kind == "value":
            return
        columns: tuple[str, ...] = ()
        if content.kind == "table":
            digests = [part.digest for part in content.parts.values()]
            columns = tuple(digest for digest in digests if digest is not None)
            columns = columns if len(columns) == len(digests) else ()
        item = Item(content.digest, columns)
        if content.kind == "table" or not content.parts or self._holders(item):
            if item.whole or item.columns:
                yield item
            return
        for part in content.parts.values():
            yield from self._items(part)

    def _unexplained(self, content: Fingerprint) -> bool:
        return any(not self._holders(item) for item in self._items(content))

    def _fewest(self, claims: list[set[str]]) -> list[VersionRecord]:
        """Versions that explain all claims which can be: the one that explains most first, then of the rest."""
        chosen: list[VersionRecord] = []
        waiting: list[set[str]] = [claim for claim in claims if claim]
        while waiting:
            counts = Counter(uid for claim in waiting for uid in claim)
            best: str = max(counts, key=lambda uid, counts=counts: (counts[uid], *self._rank(uid)))
            chosen.append(self._records[best])
            waiting = [claim for claim in waiting if best not in claim]
        return chosen

    def _rank(self, uid: str) -> tuple[bool, bool, bool, int, str]:
        version, edge = self._records[uid], self._edges.get(uid)
        artifacts = {one.artifact_uid for one in self._used.values()}
        is_detected = edge is not None and edge.is_detected
        is_near = version.artifact_uid in artifacts
        return is_detected, uid in self._used, is_near, version.created_at, uid

    # --- what stored files look like ---

    def _worth_reading(self) -> list[VersionRecord]:
        """Versions whose files may tell: those that are used, then others of the same artifacts, the newest first."""
        given = dict(self._used)
        for name in dict.fromkeys(version.name for version in self._used.values()):
            newest = self._home.catalog.versions.list(name)[-MOST_VERSIONS:]
            given.update((version.uid, version) for version in reversed(newest))
        return [one for one in given.values() if one.state == "live"][:MOST_VERSIONS]

    def _read(self, version: VersionRecord) -> bool:
        """Note what a version's files look like; False if nothing new was found out."""
        by_reader: dict[str, list[StoredFile]] = {}
        for file in self._files(version):
            for reader in usable_readers(file.path):
                by_reader.setdefault(reader, []).append(file)
        fingerprints = self._home.catalog.fingerprints
        marks = {name: f"{_READ}:{READERS_VERSION}:{name}:{version.uid}" for name in by_reader}
        known = {seen.fingerprint for seen in fingerprints.find_many(marks.values())}
        rows: list[Seen] = []
        for reader, files in by_reader.items():
            if marks[reader] not in known and not self._budget.is_late:
                is_all = self._read_with(reader, version, files[:MOST_FILES], rows)
                if is_all and not self._budget.is_late:  # else the next training tries again
                    rows.append(Seen(marks[reader], version.uid, "", _READ))
        if rows:
            fingerprints.add_many(rows)
        return bool(rows)

    def _read_with(
        self, reader: str, version: VersionRecord, files: list[StoredFile], rows: list[Seen]
    ) -> bool:
        """Add what files look like to the rows; False if the store could not give the bytes of all."""
        folder = self._home.cache.intact(version.digest)
        is_all = True
        for file in files:
            if len(rows) >= MOST_ROWS:
                break
            try:
                source = folder / file.path if folder else self._bytes_of(file)
                if source is not None:
                    for found in read_file(source, file.path, reader, self._budget):
                        rows += seen_of(found, version.uid, file.path)
            except Unknown:
                continue
            except (BegatError, OSError):
                is_all = False
            except Exception:  # noqa: BLE001 - a file that a library cannot read, in whatever way it says so
                continue
        return is_all

    def _bytes_of(self, entry: StoredFile) -> bytes | None:
        if entry.size_bytes > MAX_LOADED_BYTES:
            return None
        return b"".join(self._home.reader().stream(entry.digest, entry.size_bytes))


def recognized(home: RunHome, value: object) -> tuple[str, str | None] | None:
    """(version, digest then) of an object that was recognised as one of this store."""
    found = handed_out.find_object(value)
    if found is None or found[0] != home.catalog.store_uid:
        return None
    return found[1], found[2]


def _digests(content: Fingerprint) -> dict[str, str]:
    """Digest -> kind, of all that content is made of."""
    found: dict[str, str] = {}
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if one.digest is not None and one.n_rows != 0 and one.kind != "value":
            found[one.digest] = one.kind
        waiting.extend(one.parts.values())
    return found
