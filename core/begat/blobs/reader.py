"""Verified bytes of blobs and files: read from where they lie now, and from elsewhere if they are damaged there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from begat.blobs.hashing import hash_fd
from begat.blobs.index import BlobIndex
from begat.errors import Corrupt, DigestMismatch, ObjectMissing
from begat.files import copy_bytes, empty_file, write_all
from begat.identity import digest_of
from begat.model import BlobLocation, Digest, RecipeRecord, StoredFile
from begat.objects import ObjectStore
from begat.packs import Recipe, decode_recipe, decompress

# A file from this size on lies in an object of its own, or in parts.
_LARGE_FILE_BYTES = 1 << 20


class BlobReader:
    """Verified bytes of blobs and files; keeps look-ups for as long as it lives. Each thread makes its own."""

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
        """Look up many blobs and recipes in one go."""
        wanted = [digest for digest in digests if digest not in self._places]
        self._places.update(self._index.readable_locations(wanted))
        self._recipes |= dict.fromkeys(wanted) | dict(self._index.recipes(wanted))

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
        if offset >= end:
            return
        whole = self._place(file, set())
        try:
            recipe = self.recipe(file)
        except Corrupt:
            if whole is None:
                raise
            recipe = None  # the file is here in one piece as well
        if recipe is None:
            data = self.read(file)
            _check_size(file, len(data), size_bytes)
            yield data[offset:end]
            return
        _check_size(file, recipe.size_bytes, size_bytes)
        at = 0
        for digest, part_bytes in recipe.parts:
            if at + part_bytes > offset and at < end:
                data = self._part(digest, part_bytes, at, whole)
                yield data[max(0, offset - at) : end - at]
            at += part_bytes

    def copy(self, file: StoredFile, fd: int, path: Path) -> None:
        """Write all bytes of a stored file to an open, empty file, verified.

        A file that lies in the store verbatim is copied by the kernel (shared, where the file system can), and what
        arrived is hashed; if that fails, its parts are tried.
        """
        place = self._place(file.digest, set())
        is_large = place is not None and place.raw_length == file.size_bytes >= _LARGE_FILE_BYTES
        if place is not None and is_large and place.codec == "none":
            try:
                self._copy_verbatim(place, fd, path)
                return
            except Corrupt as error:
                self._distrust(place, error)
            except OSError as error:
                if (
                    error.errno != errno.EIO
                ):  # which of the two disks it was, reading the parts tells
                    raise
            empty_file(fd, path)
        for data in self.stream(file.digest, file.size_bytes):
            write_all(fd, data, path)

    def check_place(self, place: BlobLocation) -> None:
        """Read one blob at one place; `Corrupt` if it is not what it was."""
        self._read_place(place)

    def _part(self, digest: Digest, size: int, at: int, whole: BlobLocation | None) -> bytes:
        """One part: from the verbatim file if there is one, else from where the part itself lies."""
        if whole is not None:
            try:
                data = self._objects.read(whole.object, offset=whole.offset + at, length=size)
                if digest_of(data) == digest:
                    return data
            except Corrupt:
                pass  # the part's own place may be another one
        return self.read(digest)

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

    def _copy_verbatim(self, place: BlobLocation, fd: int, path: Path) -> None:
        source = self._objects.open(place.object)
        try:
            copied = copy_bytes(source, fd, place.stored_length, path, offset=place.offset)
        finally:
            os.close(source)
        if copied != place.raw_length or hash_fd(fd) != place.digest:
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
        raise DigestMismatch(
            f"object {place.object} holds other bytes than were stored as {place.digest}; they were not handed out. "
            "Log the same content again to mend it"
        )
    return raw if isinstance(raw, bytes) else bytes(raw)


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
