"""A large file on its way in is read once: each piece is cut into parts and hashed, for the file and for its parts.

One thread reads and searches for cuts, another writes our copy, where there is to be one, and a third hashes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from begat import files
from begat.blobs.hashing import hash_fd, untold
from begat.errors import SourceChanged
from begat.files import NewFile
from begat.identity import digest_of
from begat.model import Digest
from begat.split import Layout, Window, cut
from begat.threads import ahead, check, cores

SEVERAL_THREADS_FROM_BYTES = 8 << 20
# So many windows wait for the next thread; and each of the three has one.
_WAITING = 2
_BUFFERS = 2 * _WAITING + 3
# So much of a copy is given to the disk in one go.
SENT_BYTES = 8 << 20


class Placed(NamedTuple):
    """A part of a file, and where it lies in it."""

    digest: Digest
    at: int
    length: int


class Cut(msgspec.Struct, frozen=True):
    """What a large file holds: its digest, and its parts in order."""

    digest: Digest
    parts: list[Placed]


class LargeFile(msgspec.Struct, frozen=True):
    """An open file that is to be stored: how many bytes it had when it was opened, and what it is called.

    `memory` holds all of it where that was read already: then nothing is read from the file again.
    """

    fd: int
    size_bytes: int
    name: str
    memory: memoryview | None = None

    def read(self, at: int, length: int) -> memoryview:
        """Bytes from a position; `SourceChanged` if they are not there any more."""
        if self.memory is not None:
            return self.memory[at : at + length]
        buffer = memoryview(bytearray(length))
        self.fill(buffer, at)
        return buffer

    def fill(self, buffer: memoryview, at: int) -> None:
        """Fill a buffer from a position; `SourceChanged` if the file ends before."""
        done = 0
        while done < len(buffer):
            size = files.read_at(self.fd, buffer[done:], at + done)
            if size == 0:
                raise self.changed()
            done += size

    def read_again(self, part: Placed) -> memoryview:
        """A part of a file that was read; `SourceChanged` if it is another one now."""
        data = self.read(part.at, part.length)
        if self.memory is None and digest_of(data) != part.digest:
            raise self.changed()
        return data

    def changed(self) -> SourceChanged:
        """The error to raise where the file is found not to be what it was."""
        return SourceChanged(
            f"{self.name} changed while it was read; no version was made. Log it again when nothing writes to it"
        )


class CutFile(NamedTuple):
    """A large file that was read, and what is needed to store it; `path` is where it lies, if it is closed by now."""

    file: LargeFile
    layout: Layout
    is_compressed: bool
    cut: Cut
    path: str = ""


def cut_file(
    file: LargeFile,
    layout: Layout,
    *,
    copy: NewFile | None = None,
    tell: Callable[[int], object] = untold,
) -> Cut:
    """Read all of a file; `copy`, empty, then holds what was hashed. `tell` is told how many bytes more are done."""
    hasher = blake3()
    parts: list[Placed] = []
    at = 0
    with contextlib.closing(_windows(file, layout, copy)) as windows:
        for data, lengths in windows:
            check()
            hasher.update(data)
            begin = 0
            for length in lengths:
                parts.append(Placed(digest_of(data[begin : begin + length]), at + begin, length))
                begin += length
            at += begin
            tell(begin)
    return Cut(Digest(f"b3:{hasher.hexdigest()}"), parts)


def _windows(file: LargeFile, layout: Layout, copy: NewFile | None) -> Generator[Window]:
    if file.memory is not None:
        return cut(layout, file.read)
    is_copied = copy is not None and not _shares_blocks(file, copy)
    windows = _read(file if is_copied or copy is None else replace(file, fd=copy.fd), layout)
    is_on_threads = file.size_bytes >= SEVERAL_THREADS_FROM_BYTES and cores() > 1
    if is_on_threads:
        windows = ahead(windows, _WAITING)
    if copy is not None and is_copied:
        windows = _written(windows, copy)
        if is_on_threads:
            windows = ahead(windows, _WAITING)
    return windows


def fill_copy(read: CutFile, copy: NewFile) -> None:
    """Let our copy, empty, hold what was hashed; `SourceChanged` if the file is another one now."""
    file = read.file
    if file.memory is None:
        is_same = cut_file(file, read.layout, copy=copy).digest == read.cut.digest
    elif _shares_closed(read, copy):
        is_same = hash_fd(copy.fd) == read.cut.digest
    else:
        files.write_at(copy.fd, file.memory, 0)
        return
    if not is_same:
        raise file.changed()


def _shares_closed(read: CutFile, copy: NewFile) -> bool:
    fd = files.open_source(read.path)
    try:
        return _shares_blocks(replace(read.file, fd=fd), copy)
    finally:
        os.close(fd)


def _shares_blocks(file: LargeFile, copy: NewFile) -> bool:
    """Whether our copy has the blocks of the file, so that none need be written."""
    files.about_to("copy", copy.path)
    if not files.share_blocks(file.fd, copy.fd):
        return False
    if os.fstat(copy.fd).st_size != file.size_bytes:
        raise file.changed()
    return True


def _read(file: LargeFile, layout: Layout) -> Generator[Window]:
    """Cut a file, through a few buffers by turns."""
    buffers = [memoryview(b"")] * _BUFFERS
    turn = 0

    def read(at: int, length: int) -> memoryview:
        if len(buffers[turn]) < length:
            buffers[turn] = memoryview(bytearray(length))
        data = buffers[turn][:length]
        file.fill(data, at)
        return data

    for window in cut(layout, read):
        yield window
        turn = (turn + 1) % _BUFFERS


def in_groups(parts: Iterable[Placed], least_bytes: int) -> Iterator[list[Placed]]:
    """Parts in their order, as many at a time as have so many bytes."""
    group: list[Placed] = []
    size = 0
    for part in parts:
        group.append(part)
        size += part.length
        if size >= least_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def _written(windows: Generator[Window], copy: NewFile) -> Generator[Window]:
    """Write to our copy what is to be hashed from the same buffers."""
    at = sent = 0
    with contextlib.closing(windows):
        for window in windows:
            files.write_at(copy.fd, window.data, at)
            at += len(window.data)
            # The disk works meanwhile, and there is little left for the fsync.
            if at - sent >= SENT_BYTES:
                files.send(copy.fd, sent, at - sent)
                sent = at
            yield window
