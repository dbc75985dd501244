"""Verified bytes of blobs and files: read from where they lie now, and from elsewhere if they are damaged there."""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from begat.blobs.copying import copy_hashed
from begat.blobs.hashing import hash_fd, untold
from begat.blobs.index import BlobIndex
from begat.blobs.runs import Buffer, read_many
from begat.errors import Corrupt, DigestMismatch, ObjectMissing
from begat.files import about_to, empty_file, write_all, write_at
from begat.folders import Folder
from begat.identity import digest_of
from begat.model import BlobLocation, Digest, RecipeRecord, StoredFile
from begat.objects import ObjectStore
from begat.packs import Recipe, decode_recipe, decompress
from begat.threads import each

# A file from this size on lies in an object of its own, or in parts.
LARGE_FILE_BYTES = 1 << 20
# What one thread holds in memory of a file that is written part by part; a part may have as much by itself.
RUN_OF_PARTS_BYTES = 8 << 20


class BlobReader:
    """Verified bytes of blobs and files; keeps look-ups until it forgets them. Threads may share it."""

    def __init__(
        self, objects: ObjectStore, index: BlobIndex, *, is_read_only: bool = False
    ) -> None:
        self._objects = objects
        self._index = index
        self._is_read_only = is_read_only
        self._places: dict[Digest, BlobLocation] = {}
        # None: looked up, and stored in one piece.
        self._recipes: dict[Digest, RecipeRecord | None] = {}

    def prefetch(self, digests: Iterable[Digest]) -> None:
        """Look up where many blobs are in one go."""
        self._look_up(digests)

    def prefetch_files(self, files: Iterable[StoredFile]) -> None:
        """Look up where many files are in one go, each in one piece or in parts."""
        files = list(files)
        self._look_up(file.digest for file in files)
        # Only large files are cut into parts.
        self._recipes |= dict.fromkeys(file.digest for file in files)
        cut = [file.digest for file in files if file.size_bytes >= LARGE_FILE_BYTES]
        self._recipes |= self._index.recipes(cut)

    def forget(self) -> None:
        """Forget all look-ups: of a million files they would not fit into memory."""
        self._places.clear()
        self._recipes.clear()

    def read_many(
        self, files: Iterable[StoredFile], buffer: Buffer
    ) -> dict[Digest, bytes | memoryview]:
        """The verified bytes of small files whose blobs were prefetched and are sound there; others are left out.

        They are good until the buffer is used again.
        """
        places = {
            file.digest: place
            for file in files
            if (place := self._places.get(file.digest)) is not None
            and place.raw_length == file.size_bytes < LARGE_FILE_BYTES
        }
        return read_many(self._objects, list(places.values()), buffer)

    def read(self, digest: Digest) -> bytes:
        """All bytes of one blob; `Corrupt` if they are not what they were, after other places were tried."""
        tried: set[str] = set()
        problem: Corrupt | None = None
        while (place := self._place(digest, tried)) is not None:
            tried.add(place.object)
            try:
                return self._read_place(place)
            except Corrupt as error:
                problem = error
                self._distrust(place, error)
        raise problem or ObjectMissing(
            f"no object holds {digest}; log the same content again to mend it"
        )

    def recipe(self, file: Digest) -> Recipe | None:
        """How a file is cut into parts, or None if it is stored in one piece."""
        if file not in self._recipes:
            self._recipes[file] = self._index.recipes([file]).get(file)
        record = self._recipes[file]
        return None if record is None else recipe_of(file, self.read(record.recipe))

    def stream(
        self, file: Digest, size_bytes: int, *, offset: int = 0, length: int | None = None
    ) -> Iterator[bytes]:
        """The bytes of a stored file from `offset`, `length` of them (None: to the end), each piece verified first."""
        end = size_bytes if length is None else min(size_bytes, offset + length)
        if offset < end:
            yield from self.ranges(file, size_bytes).pieces(offset, end)

    def ranges(self, file: Digest, size_bytes: int) -> FileRanges:
        """A stored file of which only some bytes may be wanted; `Corrupt` if it is not known where any of it lies."""
        whole, recipe = self._ways(file)
        if recipe is None:
            return FileRanges(
                [(file, size_bytes)], lambda _number, _at: self._whole(file, size_bytes)
            )
        _check_size(file, recipe.size_bytes, size_bytes)
        parts = recipe.parts
        return FileRanges(parts, lambda number, at: self._part(*parts[number], at, whole))

    def _whole(self, file: Digest, size_bytes: int) -> bytes:
        data = self.read(file)
        _check_size(file, len(data), size_bytes)
        return data

    def copy(
        self,
        file: StoredFile,
        fd: int,
        path: Path,
        *,
        is_alone: bool = True,
        tell: Callable[[int], object] = untold,
    ) -> None:
        """Write all bytes of a stored file to an open, empty file, verified.

        A file that lies in the store verbatim is copied by the kernel (shared, where the file system can), and what
        arrived is hashed; if that fails, its parts are tried. `is_alone`: no other thread copies, so several may here.
        `tell` is called with how many bytes more are done.
        """
        place = self._place(file.digest, set())
        is_large = place is not None and place.raw_length == file.size_bytes >= LARGE_FILE_BYTES
        if place is not None and is_large and place.codec == "none":
            try:
                self._copy_verbatim(place, fd, path, is_alone=is_alone, tell=tell)
                return
            except Corrupt as error:
                self._distrust(place, error)
            except OSError as error:
                if (
                    error.errno != errno.EIO
                ):  # which of the two disks it was, reading the parts tells
                    raise
            empty_file(fd, path)
        self._copy_parts(file, fd, path, is_alone=is_alone, tell=tell)

    def link(self, file: StoredFile, folder: Folder, name: str) -> bool:
        """Make `name` a hard link of a large file that lies in the store as it is, verified; False: it is to copy."""
        place = self._place(file.digest, set())
        if self._is_read_only or place is None or place.codec != "none" or place.offset != 0:
            return False
        if not LARGE_FILE_BYTES <= file.size_bytes == place.raw_length:
            return False
        try:
            source = self._objects.open(place.object)
            try:
                # Not a blob inside of an object: the link would have the bytes around it as well.
                if os.fstat(source).st_size != file.size_bytes or hash_fd(source) != file.digest:
                    return False  # copying finds out what is wrong
                return self._objects.link(place.object, source, folder, name)
            finally:
                os.close(source)
        except ObjectMissing:
            return False

    def _copy_parts(
        self,
        file: StoredFile,
        fd: int,
        path: Path,
        *,
        is_alone: bool,
        tell: Callable[[int], object],
    ) -> None:
        whole, recipe = self._ways(file.digest)
        if recipe is None:
            for data in self.stream(file.digest, file.size_bytes):
                write_all(fd, data, path)
            return
        _check_size(file.digest, recipe.size_bytes, file.size_bytes)

        buffers = threading.local()

        def write(run: Sequence[_Placed]) -> None:
            about_to("write", path)
            if not hasattr(buffers, "mine"):
                buffers.mine = Buffer()
            found = self._parts_side_by_side(run, buffers.mine)
            for part in run:
                data = found.get(part.digest)
                if data is None or len(data) != part.length:
                    data = self._part(part.digest, part.length, part.at, whole)
                write_at(fd, data, part.at)
                tell(part.length)

        each(_runs_of_parts(recipe), write, most=None if is_alone else 1)

    def _parts_side_by_side(
        self, run: Sequence[_Placed], buffer: Buffer
    ) -> dict[Digest, bytes | memoryview]:
        self._look_up(part.digest for part in run)
        places = {part.digest: self._places.get(part.digest) for part in run}
        known = [place for place in places.values() if place is not None]
        return read_many(self._objects, known, buffer)

    def _ways(self, file: Digest) -> tuple[BlobLocation | None, Recipe | None]:
        """Where a file lies in one piece, and how it is cut into parts; at least one of them, or `Corrupt`."""
        whole = self._place(file, set())
        try:
            return whole, self.recipe(file)
        except Corrupt:
            if whole is None:
                raise
            return whole, None  # the file is here in one piece as well

    def _part(self, digest: Digest, size: int, at: int, whole: BlobLocation | None) -> bytes:
        """One part: from the verbatim file if there is one, else from where the part itself lies."""
        if whole is not None:
            try:
                data = self._objects.read(whole.object, offset=whole.offset + at, length=size)
                if digest_of(data) == digest:
                    return data
            except Corrupt:
                pass  # the part's own place may be another one
        data = self.read(digest)
        if len(data) != size:
            raise DigestMismatch(
                f"the part {digest} has {len(data)} bytes, and its recipe says {size}; nothing was handed out. "
                "Run `begat verify`, and log the files again"
            )
        return data

    def _look_up(self, digests: Iterable[Digest]) -> None:
        wanted = [digest for digest in digests if digest not in self._places]
        self._places.update(self._index.readable_locations(wanted))

    def _place(self, digest: Digest, tried: set[str]) -> BlobLocation | None:
        place = self._places.get(digest)
        if place is None or place.object in tried:
            # Asked in a new transaction: the object may have been repacked since.
            place = self._index.readable_locations([digest]).get(digest)
        if place is None or place.object in tried:
            return None
        self._places[digest] = place
        return place

    def _read_place(self, place: BlobLocation) -> bytes:
        stored = self._objects.read(place.object, offset=place.offset, length=place.stored_length)
        return verified(decompress(stored, place.codec, raw_length=place.raw_length), place)

    def _copy_verbatim(
        self,
        place: BlobLocation,
        fd: int,
        path: Path,
        *,
        is_alone: bool,
        tell: Callable[[int], object],
    ) -> None:
        source = self._objects.open(place.object)
        try:
            arrived = copy_hashed(
                *(source, fd, place.stored_length, path),
                offset=place.offset,
                is_alone=is_alone,
                tell=tell,
            )
        finally:
            os.close(source)
        if arrived != place.digest:
            raise DigestMismatch(
                f"object {place.object} no longer holds the bytes of {place.digest}"
            )

    def _distrust(self, place: BlobLocation, error: Corrupt) -> None:
        """Forget a place that could not be read, and mark its object, unless the blob was moved from there since."""
        self._places.pop(place.digest, None)
        now = self._index.readable_locations([place.digest]).get(place.digest)
        if self._is_read_only or now != place:
            return
        self._index.mark_damaged(place.object)
        if not isinstance(error, ObjectMissing):
            self._objects.set_aside(place.object)


def verified(raw: bytes | memoryview, place: BlobLocation) -> bytes:
    """The bytes themselves if their digest is the recorded one; else `DigestMismatch`."""
    if digest_of(raw) != place.digest:
        raise other_bytes(place)
    return raw if isinstance(raw, bytes) else bytes(raw)


def other_bytes(place: BlobLocation) -> DigestMismatch:
    """The error for a blob that is not what its digest says."""
    return DigestMismatch(
        f"object {place.object} holds other bytes than were stored as {place.digest}; they were not handed out. "
        "Log the same content again to mend it"
    )


class FileRanges:
    """The bytes of one stored file, of which only the parts that are asked for are read, each verified."""

    def __init__(
        self, parts: Sequence[tuple[Digest, int]], read: Callable[[int, int], bytes]
    ) -> None:
        self._starts = list(accumulate((length for _, length in parts), initial=0))
        self._read = read
        self._last: tuple[int, bytes] | None = None

    def piece(self, offset: int) -> memoryview:
        """The bytes from `offset` to the end of the part that it lies in; nothing at the end of the file."""
        number = bisect_right(self._starts, offset) - 1
        if number >= len(self._starts) - 1:
            return memoryview(b"")
        # Whoever reads a little at a time reads the same part again and again.
        if self._last is None or self._last[0] != number:
            self._last = number, self._read(number, self._starts[number])
        return memoryview(self._last[1])[offset - self._starts[number] :]

    def pieces(self, offset: int, end: int) -> Iterator[bytes]:
        """The bytes from `offset` to `end`, part by part."""
        while offset < end and (piece := self.piece(offset)):
            yield bytes(piece[: end - offset])
            offset += len(piece)


class _Placed(NamedTuple):
    """A part, and where it belongs in its file."""

    digest: Digest
    length: int
    at: int


def _runs_of_parts(recipe: Recipe) -> Iterator[list[_Placed]]:
    run: list[_Placed] = []
    at = size = 0
    for digest, length in recipe.parts:
        if run and size + length > RUN_OF_PARTS_BYTES:
            yield run
            run, size = [], 0
        run.append(_Placed(digest, length, at))
        at, size = at + length, size + length
    if run:
        yield run


def _check_size(file: Digest, size_bytes: int, expected_bytes: int) -> None:
    if size_bytes != expected_bytes:
        raise DigestMismatch(
            f"{file} has {size_bytes} bytes, and the manifest says {expected_bytes}; nothing was handed out. "
            "Run `begat verify`, and log the files again"
        )


def recipe_of(file: Digest, data: bytes) -> Recipe:
    recipe = decode_recipe(data)
    if recipe.file != file:
        raise DigestMismatch(
            f"the recipe found for {file} is the one of {recipe.file}; nothing was read by it"
        )
    return recipe
