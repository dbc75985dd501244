"""A large object becomes a file: the kernel copies, and what arrived is hashed while it copies on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from pathlib import Path

from blake3 import blake3

from begat import files
from begat.blobs.hashing import HASH_THREADS, READ_BYTES, untold
from begat.files import read_at
from begat.model import Digest
from begat.threads import ahead, check, cores

# What is copied in one step is hashed while it is still in the processor's cache.
COPY_STEP_BYTES = 4 << 20
_SHARED_READ_BYTES = 8 << 20


def copy_hashed(
    source: int,
    target: int,
    length: int,
    path: Path,
    *,
    offset: int = 0,
    is_alone: bool = True,
    tell: Callable[[int], object] = untold,
) -> Digest:
    """Copy `length` bytes from `offset` of an object to an empty file of ours; the digest of what arrived there.

    Where the file system can share blocks, none is copied, and all are read to be hashed. `is_alone`: nobody else is
    at work, so copying and hashing take a thread each. `tell` is called with how many bytes more are done.
    """
    files.about_to("copy", path)
    hasher = blake3(max_threads=HASH_THREADS if is_alone else 1)
    if offset == 0 and os.fstat(source).st_size == length and files.share_blocks(source, target):
        _hash(hasher, target, 0, length, _SHARED_READ_BYTES, tell)
        return Digest(f"b3:{hasher.hexdigest()}")
    steps: Generator[tuple[int, int]] = _copied(source, target, length, offset)
    if is_alone and cores() > 1:
        steps = ahead(steps, depth=1 << 16)
    with contextlib.closing(steps):
        for at, end in steps:
            _hash(hasher, target, at, end, READ_BYTES, tell)
    return Digest(f"b3:{hasher.hexdigest()}")


def _copied(source: int, target: int, length: int, offset: int) -> Generator[tuple[int, int]]:
    at = 0
    while at < length:
        size = min(COPY_STEP_BYTES, length - at)
        done = files.copy_range(source, target, size, offset=offset + at, at=at)
        if done == 0:
            return  # the object is shorter than it was: what arrived has another digest
        yield at, at + done
        at += done


def _hash(
    hasher: blake3, fd: int, at: int, end: int, step: int, tell: Callable[[int], object]
) -> None:
    buffer = memoryview(bytearray(min(step, end - at)))
    while at < end and (size := read_at(fd, buffer[: end - at], at)):
        check()
        hasher.update(buffer[:size])
        at += size
        tell(size)
