"""A listed folder becomes a manifest: what is not stored yet is read and stored.

Two steps, because every path is checked before the first byte is stored: `listing.scan` looks at names and kinds only,
`store` reads.

Small files go in batches: threads read and hash them, the caller looks up what is new, threads compress that, and the
caller packs it in the order of the plan, so packs are the same however many threads there are. Only a few batches are
on their way at a time, which bounds memory. Large files are taken one by one.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from begat.blobs import SMALL_FILE_BYTES, BlobWriter, Encoded
from begat.errors import SourceChanged
from begat.files import open_source
from begat.identity import Digests, digest_of
from begat.listing import Data, LocalFile, Planned, executable_bit, reading, unsupported
from begat.model import Digest, Entry, StoredFile
from begat.pool import Pool, Task
from begat.progress import Portion
from begat.progress import current as current_progress
from begat.statcache import seen_of

BATCH_FILES = 512
BATCH_BYTES = 4 << 20
# Below both, threads cost more than they gain.
THREADS_FROM_FILES = 128
THREADS_FROM_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was stored: the digests of every blob that it relies on.

    `changed` are the paths of files that were not quite what was listed any more when they were read.
    """

    needs: Digests
    changed: frozenset[str] = frozenset()


def store(
    plan: Iterable[Planned], writer: BlobWriter, take: Callable[[Sequence[Entry]], object]
) -> Snapshot:
    """Store what is not stored yet, and say what every path now is: `take` gets the entries, in the plan's order.

    A small file is hashed and packed from one buffer. An entry kept from an older version is looked up again and not
    read. An error is the first one in the order of the plan.
    """
    with Pool() as pool:
        storing = _Storing(writer, pool, take)
        for planned in plan:
            storing.take(planned)
        storing.finish()
    return Snapshot(storing.needs, frozenset(storing.changed))


class _Read(NamedTuple):
    """A small file that was read and hashed."""

    planned: Planned
    data: bytes
    digest: Digest
    is_executable: bool
    is_changed: bool = False


# What was not read is stored already, or has grown large since it was listed.
_Batch: TypeAlias = list[_Read | Planned]


class _Storing:
    """The state of one `store`: what it relies on so far, and the batches on their way."""

    def __init__(
        self, writer: BlobWriter, pool: Pool, take: Callable[[Sequence[Entry]], object]
    ) -> None:
        self.needs = Digests()
        self._give = take
        self._cut: set[Digest] = set()  # large files, each of which relies on many blobs
        self.changed: set[str] = set()
        self._writer = writer
        self._pool = pool
        self._progress = current_progress()
        self._batch: list[Planned] = []
        self._batch_bytes = 0
        self._count = 0
        self._bytes = 0
        self._reading: deque[Task[_Batch]] = deque()
        self._packing: deque[Task[list[Encoded]]] = deque()

    def take(self, planned: Planned) -> None:
        source = planned.source
        if isinstance(source, LocalFile | Data):
            size_bytes = planned.size_bytes
            if size_bytes >= SMALL_FILE_BYTES:
                self.finish()
                self._give([self._large(planned)])
            else:
                self._wait(planned, size_bytes)
        else:
            self._wait(planned, 0)

    def finish(self) -> None:
        """Store all that was taken so far."""
        self._read_batch()
        self._look_up(ahead=0)
        self._pack(ahead=0)

    # --- small files ---

    def _wait(self, planned: Planned, size_bytes: int) -> None:
        if len(self._batch) >= BATCH_FILES or self._batch_bytes + size_bytes > BATCH_BYTES:
            self._read_batch()
        self._batch.append(planned)
        self._batch_bytes += size_bytes

    def _read_batch(self) -> None:
        batch, pool = self._batch, self._pool
        if not batch:
            return
        self._count += len(batch)
        self._bytes += self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        if self._count >= THREADS_FROM_FILES or self._bytes >= THREADS_FROM_BYTES:
            pool.start()
        self._reading.append(pool.submit(lambda: _read(batch, pool)))
        self._look_up(ahead=pool.ahead)

    def _look_up(self, *, ahead: int) -> None:
        """Find what nobody has yet in the batches that were read, until only so many wait to be read."""
        while len(self._reading) > ahead:
            batch = self._reading.popleft().result()
            read = {each.digest: each for each in batch if isinstance(each, _Read)}
            new = [
                (digest, read[digest].data, os.path.splitext(read[digest].planned.path)[1])
                for digest in self._writer.missing(read)
            ]
            self._packing.append(self._pool.submit(lambda new=new: self._writer.encode(new)))
            entries, large = self._told(batch)
            if large:
                self._pack(ahead=0)
                entries += map(self._large, large)
                entries.sort(key=lambda entry: entry.path)
            self._give(entries)
            self._pack(ahead=(self._pool.ahead + 1) // 2)

    def _told(self, batch: _Batch) -> tuple[list[Entry], list[Planned]]:
        """What a batch holds; and the files that must be taken as large ones."""
        others = [each for each in batch if isinstance(each, Planned)]
        self._writer.look_up(each.source for each in others if isinstance(each.source, StoredFile))
        entries: list[Entry] = []
        large: list[Planned] = []
        size_bytes = files = 0
        for each in batch:
            if isinstance(each, _Read):
                size = len(each.data)
                size_bytes += size
                files += 1
                self.needs.add(each.digest)
                if each.is_changed:
                    self.changed.add(each.planned.path)
                entries.append(
                    StoredFile(
                        *(each.planned.path, size, each.digest, each.is_executable),
                        each.planned.metadata,
                    )
                )
            elif isinstance(each.source, StoredFile):
                size_bytes += each.source.size_bytes
                files += 1
                self._rely_on(each.source.digest, self._writer.require(each.source))
                entries.append(each.entry)
            elif isinstance(each.source, LocalFile | Data):
                large.append(each)
            else:
                entries.append(each.entry)
        self._progress.advance(bytes=size_bytes, files=files)
        return entries, large

    def _rely_on(self, file: Digest, needs: Sequence[Digest]) -> None:
        if len(needs) > 1:
            if file in self._cut:
                return
            self._cut.add(file)
        self.needs.extend(needs)

    def _pack(self, *, ahead: int) -> None:
        """Pack what is new, in the order of the plan, until only so many batches wait to be compressed."""
        while len(self._packing) > ahead:
            self._writer.pack(self._packing.popleft().result())

    # --- large files ---

    def _large(self, planned: Planned) -> Entry:
        source = planned.source
        portion = Portion(self._progress, planned.size_bytes)
        if isinstance(source, Data):
            digest, needs = self._writer.add_data(source.data, planned.path)
            size_bytes, is_executable = len(source.data), False
        elif isinstance(source, LocalFile):
            with reading(source.path):
                digest, size_bytes, is_executable, needs = self._add_file(planned, source, portion)
        else:
            raise TypeError(f"{planned.path!r} is no file to be read")
        self._rely_on(digest, needs)
        portion.complete()
        return StoredFile(planned.path, size_bytes, digest, is_executable, planned.metadata)

    def _add_file(
        self, planned: Planned, source: LocalFile, portion: Portion
    ) -> tuple[Digest, int, bool, tuple[Digest, ...]]:
        fd = open_source(source.path)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise unsupported(source.path, before.st_mode)
            if _is_changed(source, before):
                self.changed.add(planned.path)
            # A staged copy has a mode of its own.
            is_executable = source.is_executable if source.is_staged else executable_bit(before)
            staged = Path(source.path) if source.is_staged else None
            digest, size_bytes, needs = self._writer.add_file(
                fd, before.st_size, planned.path, staged=staged, tell=portion.tell
            )
            if staged is None:  # a second name changes the inode of a staged one
                _check_unchanged(source.path, before, os.fstat(fd), size_bytes)
        finally:
            os.close(fd)
        return digest, size_bytes, is_executable, needs


def _read(batch: Iterable[Planned], pool: Pool) -> _Batch:
    """Read and hash what is to be read in a batch; done by any thread."""
    found: _Batch = []
    for planned in batch:
        if pool.is_stopping:
            break
        source = planned.source
        if isinstance(source, Data):
            found.append(_Read(planned, source.data, digest_of(source.data), False))
        elif isinstance(source, LocalFile):
            try:
                found.append(_read_file(planned, source))
            except OSError as error:
                with reading(source.path):
                    raise error
        else:
            found.append(planned)
    return found


def _read_file(planned: Planned, source: LocalFile) -> _Read | Planned:
    fd = open_source(source.path)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise unsupported(source.path, before.st_mode)
        if before.st_size >= SMALL_FILE_BYTES:
            return planned
        data = _read_all(fd, before.st_size)
        _check_unchanged(source.path, before, os.fstat(fd), len(data))
    finally:
        os.close(fd)
    is_executable = source.is_executable if source.is_staged else executable_bit(before)
    return _Read(planned, data, digest_of(data), is_executable, _is_changed(source, before))


def _is_changed(source: LocalFile, now: os.stat_result) -> bool:
    if source.seen is None:
        return False
    facts = (now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, now.st_dev, now.st_mode)
    # `seen_of` would say the same, but for numbers of 64 bits, at four times the cost.
    return facts != source.seen and seen_of(now) != source.seen


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
    if (
        before.st_mtime_ns != after.st_mtime_ns
        or before.st_ctime_ns != after.st_ctime_ns
        or not before.st_size == after.st_size == size_bytes
    ):
        raise SourceChanged(
            f"{path} changed while it was read; no version was made. Log it again when nothing writes to it"
        )
