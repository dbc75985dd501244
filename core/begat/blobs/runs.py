"""Many small blobs at once: those that lie side by side in a pack are read in one go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from begat.errors import BegatError
from begat.identity import digest_of
from begat.model import BlobLocation, Digest
from begat.objects import ObjectStore, read_into
from begat.packs import decompress

# Enough that the calls cost nothing beside the bytes, and little enough for the processor's cache.
RUN_BYTES = 1 << 20
# More than this is not read at once, whatever the catalog claims.
MAX_BUFFER_BYTES = 64 << 20


class Buffer:
    """Memory that is filled again and again: new memory for each read costs more than the reading. One thread's."""

    def __init__(self) -> None:
        self._bytes = memoryview(bytearray(0))

    def room(self, size_bytes: int) -> memoryview:
        """So many bytes of it; what was handed out before is overwritten."""
        if len(self._bytes) < size_bytes:
            self._bytes = memoryview(bytearray(size_bytes))
        return self._bytes[:size_bytes]


def read_many(
    objects: ObjectStore, places: Sequence[BlobLocation], buffer: Buffer
) -> dict[Digest, bytes | memoryview]:
    """The verified bytes of these blobs, of those that can be read at their place; others are left out.

    Whoever misses one asks `BlobReader`, which knows where else to look, and whose errors tell what is wrong. Each
    object is opened once. What is given may lie in the buffer, and is good until the buffer is used again.
    """
    found: dict[Digest, bytes | memoryview] = {}
    needed = sum(place.stored_length for place in places)
    if needed > MAX_BUFFER_BYTES:
        return found
    room = buffer.room(needed)
    by_object: dict[str, list[BlobLocation]] = {}
    for place in places:
        by_object.setdefault(place.object, []).append(place)
    for name, here in by_object.items():
        try:
            fd = objects.open(name)
        except BegatError:
            continue
        try:
            for run in _runs(sorted(here, key=lambda place: place.offset)):
                size = sum(place.stored_length for place in run)
                _read_run(fd, name, run, room[:size], found)
                room = room[size:]
        finally:
            os.close(fd)
    return found


def _runs(places: Sequence[BlobLocation]) -> Iterator[list[BlobLocation]]:
    """Places that follow each other without a gap, by offset."""
    run: list[BlobLocation] = []
    end = size = 0
    for place in places:
        if run and (place.offset != end or size + place.stored_length > RUN_BYTES):
            yield run
            run, size = [], 0
        run.append(place)
        end = place.offset + place.stored_length
        size += place.stored_length
    if run:
        yield run


def _read_run(
    fd: int,
    name: str,
    run: Sequence[BlobLocation],
    data: memoryview,
    found: dict[Digest, bytes | memoryview],
) -> None:
    start = run[0].offset
    try:
        read_into(fd, name, data, offset=start)
    except BegatError:
        return
    for place in run:
        at = place.offset - start
        try:
            raw = decompress(
                data[at : at + place.stored_length], place.codec, raw_length=place.raw_length
            )
        except BegatError:
            continue
        if digest_of(raw) == place.digest:
            found[place.digest] = raw
