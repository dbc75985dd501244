"""A large file on its way in is read once: each piece is cut into parts and hashed, for the file and for its parts.

Reading and searching for cuts takes one thread, hashing another, and copying, where the file is copied, a third.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from begat.blobs.copying import copied
from begat.blobs.hashing import untold
from begat.errors import SourceChanged
from begat.files import NewFile, read_at
from begat.identity import digest_of
from begat.model import Digest
from begat.split import Layout, Window, cut
from begat.threads import ahead, check, cores

SEVERAL_THREADS_FROM_BYTES = 16 << 20
# So many windows wait to be hashed; one more is being hashed, and one is being read.
_WAITING = 2


class Placed(NamedTuple):
    """A part of a file, and where it lies in it."""

    digest: Digest
    at: int
    length: int


@dataclass(frozen=True, slots=True)
class Cut:
    """What a large file holds: its digest, and its parts in order."""

    digest: Digest
    parts: list[Placed]


@dataclass(frozen=True, slots=True)
class LargeFile:
    """An open file that is to be stored: how many bytes it had when it was opened, and what it is called."""

    fd: int
    size_bytes: int
    name: str

    def read(self, at: int, length: int) -> memoryview:
        """Bytes from a position; `SourceChanged` if they are not there any more."""
        buffer = memoryview(bytearray(length))
        self.fill(buffer, at)
        return buffer

    def fill(self, buffer: memoryview, at: int) -> None:
        """Fill a buffer from a position; `SourceChanged` if the file ends before."""
        _fill(self.fd, buffer, at, self)

    def read_again(self, part: Placed) -> bytes:
        """A part of a file that was read; `SourceChanged` if it is another one now."""
        data = bytes(self.read(part.at, part.length))
        if digest_of(data) != part.digest:
            raise self.changed()
        return data

    def changed(self) -> SourceChanged:
        """The error to raise where the file is found not to be what it was."""
        return SourceChanged(
            f"{self.name} changed while it was read; no version was made. Log it again when nothing writes to it"
        )


def cut_file(
    file: LargeFile,
    layout: Layout,
    *,
    copy: NewFile | None = None,
    tell: Callable[[int], object] = untold,
) -> Cut:
    """Read all of a file, or copy it and read the copy; `tell` is called with how many bytes more are done."""
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
    is_alone = file.size_bytes >= SEVERAL_THREADS_FROM_BYTES and cores() > 1
    windows = _read(file, layout, copy, is_alone)
    return ahead(windows, _WAITING) if is_alone else windows


def _read(
    file: LargeFile, layout: Layout, copy: NewFile | None, is_alone: bool
) -> Generator[Window]:
    if copy is None:
        yield from _through_buffers(file, file.fd, layout, iter([file.size_bytes]))
        return
    steps = copied(file.fd, copy.fd, file.size_bytes, copy.path, is_alone=is_alone)
    with contextlib.closing(steps):
        yield from _through_buffers(file, copy.fd, layout, steps)


def _through_buffers(
    file: LargeFile, fd: int, layout: Layout, steps: Iterator[int]
) -> Generator[Window]:
    """Read what has arrived, in a few buffers by turns."""
    buffers = [memoryview(b"")] * (_WAITING + 2)
    turn = there = 0

    def read(at: int, length: int) -> memoryview:
        nonlocal there
        while there < at + length:
            there = next(steps, -1)
            if there < 0:
                raise file.changed()
        if len(buffers[turn]) < length:
            buffers[turn] = memoryview(bytearray(length))
        data = buffers[turn][:length]
        _fill(fd, data, at, file)
        return data

    for window in cut(layout, read):
        yield window
        turn = (turn + 1) % len(buffers)


def _fill(fd: int, buffer: memoryview, at: int, file: LargeFile) -> None:
    done = 0
    while done < len(buffer):
        size = read_at(fd, buffer[done:], at + done)
        if size == 0:
            raise file.changed()
        done += size
