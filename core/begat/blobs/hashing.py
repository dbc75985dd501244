"""The digest of all bytes of an open file."""

from __future__ import annotations

import os
from collections.abc import Callable

from blake3 import blake3

from begat.files import read_at
from begat.model import Digest
from begat.threads import cores

READ_BYTES = 1 << 20
_SHARED_READ_BYTES = 8 << 20
# An integer, never AUTO: blake3's own pool hangs in a forked child.
HASH_THREADS = min(cores(), 8)


def untold(size_bytes: int) -> None:
    """Nobody is told how many bytes are done."""


def hash_fd(fd: int, tell: Callable[[int], object] = untold) -> Digest:
    """The digest of all bytes of an open file, read through one buffer; its position does not move."""
    return _hashed(fd, blake3(), READ_BYTES, tell)


def hash_own(fd: int, tell: Callable[[int], object] = untold) -> Digest:
    """The digest of all bytes of an open file of ours, hashed by several threads."""
    step = min(_SHARED_READ_BYTES, max(os.fstat(fd).st_size, 1))
    return _hashed(fd, blake3(max_threads=HASH_THREADS), step, tell)


def _hashed(fd: int, hasher: blake3, step: int, tell: Callable[[int], object]) -> Digest:
    buffer = memoryview(bytearray(step))
    at = 0
    while size := read_at(fd, buffer, at):
        hasher.update(buffer[:size])
        at += size
        tell(size)
    return Digest(f"b3:{hasher.hexdigest()}")
