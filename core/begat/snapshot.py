"""A listed folder becomes a manifest: what is not stored yet is read and stored.

Two steps, because every path is checked before the first byte is stored: `listing.scan` looks at names and kinds only,
`store` reads.

Small files go in batches: threads read and hash them, the caller looks up what is new, threads compress that, and the
caller packs it in the order of the plan, so packs are the same however many threads there are. A medium file, of a few
megabytes, is a batch of its own, and is cut by the thread that reads it. Only a few batches are on their way at a time,
which bounds memory. Large files are taken one by one, since several threads work on each.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from begat.blobs import SMALL_FILE_BYTES, BlobWriter, CutFile, Encoded, LargeFile
from begat.blobs.cutting import SEVERAL_THREADS_FROM_BYTES
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
# Of at most so many bytes is a file that is read into memory to be cut: a dozen of them may be on their way at a time.
MEDIUM_FILE_BYTES = 16 << 20
# So much of a medium file is read before a thread looks whether it is still wanted.
STEP_BYTES = 1 << 20
# Below both, threads cost more than they gain.
THREADS_FROM_FILES = 128
THREADS_FROM_BYTES = 16 << 20

_TO_READ = (LocalFile, Data)


class Snapshot(msgspec.Struct, frozen=True):
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
        storing.take(plan)
    return Snapshot(storing.needs, frozenset(storing.changed))


class _Read(msgspec.Struct, frozen=True, eq=False):
    """A small file that was read and hashed; `data` lies in the memory of its batch, if it had its size as listed."""

    planned: Planned
    data: bytes | memoryview
    digest: Digest
    is_executable: bool
    is_changed: bool = False


class _Medium(msgspec.Struct, frozen=True, eq=False):
    """A medium file that was read into the memory of its batch, cut and hashed."""

    planned: Planned
    read: CutFile
    is_executable: bool
    is_changed: bool


# What was not read is stored already, or has another size than when it was listed.
_Found: TypeAlias = list[_Read | _Medium | Planned]


class _Batch(msgspec.Struct, frozen=True, eq=False):
    """Small files on their way, and the memory that they are read into, one after the other."""

    plan: list[Planned]
    size_bytes: int
    memory: memoryview

    def joined(self, blobs: Sequence[Encoded]) -> memoryview | None:
        """The stored bytes of these blobs one after the other, if they are all that was read, each as it was read."""
        memory = self.memory.obj
        for blob in blobs:
            if not isinstance(blob.stored, memoryview) or blob.stored.obj is not memory:
                return None
        is_all = sum(blob.raw_length for blob in blobs) == self.size_bytes
        return self.memory[: self.size_bytes] if is_all else None


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
        self._count = 0
        self._bytes = 0
        # Not in use now: new memory costs more than reading into it.
        self._memory: list[memoryview] = []
        self._reading: deque[tuple[_Batch, Task[_Found]]] = deque()
        self._packing: deque[tuple[_Batch, Task[list[Encoded]]]] = deque()

    def take(self, plan: Iterable[Planned]) -> None:
        """Store a plan: small files in batches, large ones by themselves."""
        batch: list[Planned] = []
        batch_bytes = 0
        for planned in plan:
            source = planned.source
            size_bytes = planned.size_bytes if isinstance(source, _TO_READ) else 0
            is_full = len(batch) >= BATCH_FILES or batch_bytes + size_bytes > BATCH_BYTES
            if batch and (is_full or size_bytes >= SMALL_FILE_BYTES):
                self._read_batch(batch, batch_bytes)
                batch, batch_bytes = [], 0
            if _is_medium(planned, is_one_of_many=self._bytes >= THREADS_FROM_BYTES):
                self._read_batch([planned], size_bytes)
            elif size_bytes >= SMALL_FILE_BYTES:
                self._bytes += size_bytes
                self._finish()
                self._give([self._large(planned)])
            else:
                batch.append(planned)
                batch_bytes += size_bytes
        if batch:
            self._read_batch(batch, batch_bytes)
        self._finish()

    def _finish(self) -> None:
        """Store all that was taken so far."""
        self._look_up(ahead=0)
        self._pack(ahead=0)

    # --- small files ---

    def _read_batch(self, plan: list[Planned], size_bytes: int) -> None:
        pool = self._pool
        self._count += len(plan)
        self._bytes += size_bytes
        if self._count >= THREADS_FROM_FILES or self._bytes >= THREADS_FROM_BYTES:
            pool.start()
        batch = _Batch(plan, size_bytes, self._memory_for(size_bytes))
        self._reading.append((batch, pool.submit(lambda: self._read(batch))))
        self._look_up(ahead=pool.ahead)

    def _memory_for(self, size_bytes: int) -> memoryview:
        memory = self._memory.pop() if self._memory else None
        if memory is None or len(memory) <= size_bytes:
            most = max(size_bytes, BATCH_BYTES) if size_bytes > BATCH_BYTES // 2 else size_bytes
            memory = memoryview(bytearray(most + 1))
        return memory

    def _look_up(self, *, ahead: int) -> None:
        """Find what nobody has yet in the batches that were read, until only so many wait to be read."""
        while len(self._reading) > ahead:
            batch, task = self._reading.popleft()
            found = task.result()
            read = {each.digest: each for each in found if isinstance(each, _Read)}
            self._writer.forget()
            new = [read[digest] for digest in self._writer.missing(read)]
            encoding = self._pool.submit(lambda new=new: self._writer.encode(map(_blob, new)))
            self._packing.append((batch, encoding))
            entries, large = self._told(found)
            if large:
                # Those before them come first. The memory of a medium file is used again when the next batch is read.
                self._pack(ahead=0)
                entries += map(self._alone, large)
                entries.sort(key=lambda entry: entry.path)
            self._give(entries)
            self._pack(ahead=(self._pool.ahead + 1) // 2)

    def _told(self, found: _Found) -> tuple[list[Entry], list[_Medium | Planned]]:
        """What a batch holds; and the files that are to be stored by themselves."""
        others = [each for each in found if isinstance(each, Planned)]
        if others:
            self._writer.look_up(e.source for e in others if isinstance(e.source, StoredFile))
        entries: list[Entry] = []
        large: list[_Medium | Planned] = []
        size_bytes = files = 0
        for each in found:
            if isinstance(each, _Read):
                planned, size = each.planned, len(each.data)
                size_bytes += size
                files += 1
                if each.is_changed:
                    self.changed.add(planned.path)
                entries.append(
                    StoredFile(
                        planned.path, size, each.digest, each.is_executable, planned.metadata
                    )
                )
            elif isinstance(each, _Medium):
                large.append(each)
            elif isinstance(each.source, StoredFile):
                size_bytes += each.source.size_bytes
                files += 1
                self._rely_on(each.source.digest, self._writer.require(each.source))
                entries.append(each.entry)
            elif isinstance(each.source, _TO_READ):
                large.append(each)
            else:
                entries.append(each.entry)
        self.needs.extend([each.digest for each in found if isinstance(each, _Read)])
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
            batch, task = self._packing.popleft()
            blobs = task.result()
            self._writer.pack(blobs, joined=batch.joined(blobs))
            self._memory.append(batch.memory)

    # --- what any thread may do ---

    def _read(self, batch: _Batch) -> _Found:
        """Read and hash what is to be read in a batch."""
        found: _Found = []
        at = 0
        for planned in batch.plan:
            if self._pool.is_stopping:
                break
            source = planned.source
            if isinstance(source, LocalFile):
                # One byte more than the size: a file that grew shows itself.
                end = at + source.size_bytes
                room = batch.memory[at : end + 1]
                read = _read_file if source.size_bytes < SMALL_FILE_BYTES else self._read_medium
                try:
                    found.append(read(planned, source, room))
                except OSError as error:
                    with reading(source.path):
                        raise error
                at = end
            elif isinstance(source, Data):
                found.append(_Read(planned, source.data, digest_of(source.data), False))
            else:
                found.append(planned)
        return found

    def _read_medium(
        self, planned: Planned, source: LocalFile, room: memoryview
    ) -> _Medium | Planned:
        with _opened(source) as (fd, before):
            size_bytes = before.st_size
            if size_bytes != source.size_bytes:
                return planned
            file = LargeFile(fd, size_bytes, planned.path)
            for at in range(0, size_bytes, STEP_BYTES):
                if self._pool.is_stopping:
                    return planned
                file.fill(room[at : min(at + STEP_BYTES, size_bytes)], at)
            read = self._writer.cut(room[:size_bytes], planned.path, source.path)
            _check_unchanged(source.path, before, os.fstat(fd), size_bytes)
        is_changed = _is_changed(source, before)
        return _Medium(planned, read, executable_bit(before), is_changed)

    # --- large files ---

    def _alone(self, file: _Medium | Planned) -> Entry:
        return self._medium(file) if isinstance(file, _Medium) else self._large(file)

    def _medium(self, file: _Medium) -> Entry:
        planned, digest = file.planned, file.read.cut.digest
        size_bytes = file.read.file.size_bytes
        if file.is_changed:
            self.changed.add(planned.path)
        with reading(file.read.path):
            needs = self._writer.add_cut(file.read)
        self._rely_on(digest, needs)
        self._progress.advance(bytes=size_bytes, files=1)
        return StoredFile(planned.path, size_bytes, digest, file.is_executable, planned.metadata)

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
        with _opened(source) as (fd, before):
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
        return digest, size_bytes, is_executable, needs


def _is_medium(planned: Planned, *, is_one_of_many: bool) -> bool:
    """Whether a file may be cut and is read into memory as a whole; never one that is our own copy already.

    One that is alone is sooner done by several threads, from the size on where there are such.
    """
    source = planned.source
    most = (
        MEDIUM_FILE_BYTES
        if is_one_of_many
        else min(MEDIUM_FILE_BYTES, SEVERAL_THREADS_FROM_BYTES - 1)
    )
    is_of_that_size = SMALL_FILE_BYTES <= planned.size_bytes <= most
    return is_of_that_size and isinstance(source, LocalFile) and not source.is_staged


@contextlib.contextmanager
def _opened(source: LocalFile) -> Generator[tuple[int, os.stat_result]]:
    """A file that is open for reading, and what it is."""
    fd = open_source(source.path)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise unsupported(source.path, found.st_mode)
        yield fd, found
    finally:
        os.close(fd)


def _read_file(planned: Planned, source: LocalFile, room: memoryview) -> _Read | Planned:
    fd = open_source(source.path)
    try:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise unsupported(source.path, before.st_mode)
        if before.st_size != source.size_bytes:
            if before.st_size >= SMALL_FILE_BYTES:
                return planned
            room = memoryview(bytearray(before.st_size + 1))
        data = _read_all(fd, room)
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


def _read_all(fd: int, room: memoryview) -> memoryview:
    """All bytes of a file, as far as there is room: with one byte more than its size, what grew shows itself."""
    size = os.readv(fd, [room])
    while 0 < size < len(room) - 1:
        more = os.readv(fd, [room[size:]])
        if not more:
            break
        size += more
    return room[:size]


def _blob(read: _Read) -> tuple[Digest, bytes | memoryview, str]:
    path = read.planned.path
    dot = path.rfind(".")
    return read.digest, read.data, path[dot:] if dot > path.rfind("/") else ""


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
