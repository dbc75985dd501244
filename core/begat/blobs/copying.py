"""Large files come and go: the kernel copies, and what arrived is read and hashed while it copies on."""

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


def copied(
    source: int,
    target: int,
    length: int,
    path: Path,
    *,
    offset: int = 0,
    is_alone: bool = True,
) -> Generator[int]:
    """Copy `length` bytes from `offset` of an open file to an empty one of ours: how many bytes arrived so far.

    Where the file system can share blocks, none is copied. `is_alone`: nobody else is at work, so a thread copies while
    the caller looks at what arrived. Close it when not all was taken. Ends early if the source is shorter.
    """
    files.about_to("copy", path)
    if offset == 0 and os.fstat(source).st_size == length and files.share_blocks(source, target):
        return (end for end in (length,))
    steps = _copied(source, target, length, offset)
    return ahead(steps, depth=1 << 16) if is_alone and cores() > 1 else steps


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
    """Copy as `copied` does; the digest of what arrived. `tell` is called with how many bytes more are done."""
    hasher = blake3(max_threads=HASH_THREADS if is_alone else 1)
    buffer = memoryview(bytearray(min(READ_BYTES, max(length, 1))))
    steps = copied(source, target, length, path, offset=offset, is_alone=is_alone)
    at = 0
    with contextlib.closing(steps):
        for end in steps:
            while at < end and (size := read_at(target, buffer[: end - at], at)):
                check()
                hasher.update(buffer[:size])
                at += size
                tell(size)
    return Digest(f"b3:{hasher.hexdigest()}")


def _copied(source: int, target: int, length: int, offset: int) -> Generator[int]:
    at = 0
    while at < length:
        size = min(COPY_STEP_BYTES, length - at)
        done = files.copy_range(source, target, size, offset=offset + at, at=at)
        if done == 0:
            return  # the object is shorter than it was: what arrived has another digest
        at += done
        yield at
