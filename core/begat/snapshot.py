"""A listed folder becomes a manifest: what is not stored yet is read and stored.

Two steps, because every path is checked before the first byte is stored: `listing.scan` looks at names and kinds only,
`store` reads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from begat.blobs import SMALL_FILE_BYTES, BlobWriter
from begat.errors import SourceChanged
from begat.files import open_source
from begat.listing import Data, LocalFile, Planned, executable_bit, reading, unsupported
from begat.model import Digest, Entry, StoredFile
from begat.progress import current as current_progress
from begat.statcache import seen_of

BATCH_FILES = 256
BATCH_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was stored: the entries, and the digests of every blob that they rely on.

    `changed` are the paths of files that were not quite what was listed any more when they were read.
    """

    entries: tuple[Entry, ...]
    needs: tuple[Digest, ...]
    changed: frozenset[str] = frozenset()


def store(plan: Iterable[Planned], writer: BlobWriter) -> Snapshot:
    """Store what is not stored yet, and say what every path now is.

    Small files are read, hashed and packed from one buffer in batches, so that one look-up serves many; large ones
    are taken one by one. An entry kept from an older version is looked up again and not read.
    """
    storing = _Storing(writer)
    for planned in plan:
        storing.take(planned)
    storing.flush()
    return Snapshot(tuple(storing.entries), tuple(storing.needs), frozenset(storing.changed))


class _Storing:
    """The state of one `store`: entries so far, and a batch of small files that waits for its look-up."""

    def __init__(self, writer: BlobWriter) -> None:
        self.entries: list[Entry] = []
        self.needs: dict[Digest, None] = {}  # a set that keeps its order
        self.changed: set[str] = set()
        self._writer = writer
        self._progress = current_progress()
        self._batch: list[tuple[Planned, bytes, bool]] = []
        self._batch_bytes = 0

    def take(self, planned: Planned) -> None:
        source = planned.source
        if isinstance(source, LocalFile):
            self._take_file(planned, source)
        elif isinstance(source, Data):
            self._take_data(planned, source.data)
        else:
            self.entries.append(planned.entry)
            if isinstance(source, StoredFile):
                self.needs.update(dict.fromkeys(self._writer.require(source)))

    def flush(self) -> None:
        digests = self._writer.add([data for _, data, _ in self._batch])
        for (planned, data, is_executable), digest in zip(self._batch, digests, strict=True):
            self._stored(planned, digest, len(data), is_executable, (digest,))
        self._batch.clear()
        self._batch_bytes = 0

    def _take_file(self, planned: Planned, source: LocalFile) -> None:
        with reading(source.path):
            fd = open_source(source.path)
            try:
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    raise unsupported(source.path, before.st_mode)
                is_executable = executable_bit(before)
                if source.seen is not None and seen_of(before) != source.seen:
                    self.changed.add(planned.path)
                if source.is_staged:
                    is_executable = source.is_executable  # a copy has a mode of its own
                if before.st_size >= SMALL_FILE_BYTES:
                    staged = Path(source.path) if source.is_staged else None
                    digest, size_bytes, needs = self._writer.add_file(
                        fd, before.st_size, planned.path, staged=staged
                    )
                    if staged is None:  # a second name changes the inode of a staged one
                        _check_unchanged(source.path, before, os.fstat(fd), size_bytes)
                    self._stored(planned, digest, size_bytes, is_executable, needs)
                    return
                data = _read_all(fd, before.st_size)
                _check_unchanged(source.path, before, os.fstat(fd), len(data))
            finally:
                os.close(fd)
        self._wait(planned, data, is_executable)

    def _take_data(self, planned: Planned, data: bytes) -> None:
        if len(data) < SMALL_FILE_BYTES:
            self._wait(planned, data, False)
            return
        digest, needs = self._writer.add_data(data, planned.path)
        self._stored(planned, digest, len(data), False, needs)

    def _wait(self, planned: Planned, data: bytes, is_executable: bool) -> None:
        self._batch.append((planned, data, is_executable))
        self._batch_bytes += len(data)
        if len(self._batch) >= BATCH_FILES or self._batch_bytes >= BATCH_BYTES:
            self.flush()

    def _stored(
        self,
        planned: Planned,
        digest: Digest,
        size: int,
        is_executable: bool,
        needs: Iterable[Digest],
    ) -> None:
        self.entries.append(StoredFile(planned.path, size, digest, is_executable, planned.metadata))
        self.needs.update(dict.fromkeys(needs))
        self._progress.advance(bytes=size, files=1)


def _read_all(fd: int, size: int) -> bytes:
    # One byte more than the size: a file that grew shows itself.
    data = os.read(fd, size + 1)
    if len(data) in (size, 0):
        return data
    pieces = [data]
    while pieces[-1] and sum(map(len, pieces)) <= size:
        pieces.append(os.read(fd, size + 1))
    return b"".join(pieces)


def _check_unchanged(
    path: str, before: os.stat_result, after: os.stat_result, size_bytes: int
) -> None:
    same = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    if not same or size_bytes != before.st_size:
        raise SourceChanged(
            f"{path} changed while it was read; no version was made. Log it again when nothing writes to it"
        )
