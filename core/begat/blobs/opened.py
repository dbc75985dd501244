"""A stored file as an open file: what is sought and read is fetched and verified, and nothing else."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING

from begat.blobs.reader import BlobReader, FileRanges
from begat.model import Digest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# What small reads are served from; a part is in memory as well.
BUFFER_BYTES = 64 * 1024


def open_stored(
    reader: BlobReader,
    file: Digest,
    size_bytes: int,
    *,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> IO[bytes]:
    """An open binary file with the bytes of a stored one; its first part is read at once, so that trouble shows early.

    It works for as long as the store is open, and belongs to one thread at a time. Each look into the store is made
    inside of `around`, which may say of whose bytes an error is.
    """
    with around():
        ranges = reader.ranges(file, size_bytes)
        ranges.piece(0)
    return io.BufferedReader(_Stored(ranges, size_bytes, around), BUFFER_BYTES)


class _Stored(io.RawIOBase):
    def __init__(
        self,
        ranges: FileRanges,
        size_bytes: int,
        around: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._ranges = ranges
        self._size_bytes = size_bytes
        self._around = around
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._check_open()
        target = memoryview(buffer).cast("B")
        with self._around():
            piece = self._ranges.piece(self._at)[: len(target)]
        target[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def readall(self) -> bytes:
        self._check_open()
        with self._around():
            data = b"".join(self._ranges.pieces(self._at, self._size_bytes))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"a file has no position {start + offset}")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        self._check_open()
        return self._at

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed file")
