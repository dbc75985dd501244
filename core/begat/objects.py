"""Objects on a disk: immutable sequences of bytes, by name, durable before they have one.

    objects/ab/<hex of the BLAKE3 of the bytes>-<8 random hex>     0444
    tmp/                                                           what has no name yet
    damaged/                                                       what was set aside, kept to be looked at

A name is never used twice, not even for equal bytes: a removal that arrives late, or a late mark of damage, can so
never hit an object that was stored since. Whether bytes are here already is asked of the catalog, never of this
folder. A file's existence, size or mode proves nothing about its bytes; whoever reads checks a digest.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from begat import files
from begat.errors import DigestMismatch, ObjectMissing
from begat.model import Digest

_NAME = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})-[0-9a-f]{8}")
_FOLDER = re.compile(r"[0-9a-f]{2}")


class ObjectStore:
    """The objects below the folder of a store. Holds nothing open, so it may cross threads and forks."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "objects"
        self.tmp = root / "tmp"
        self.damaged = root / "damaged"

    def make_folders(self) -> None:
        """Make what a new store needs; durable when this returns."""
        with files.told_as("making the folders of the object store"):
            for folder in (self.folder, self.tmp, self.damaged):
                files.make_directory(folder)

    # --- writing ---

    def new(self) -> NewObject:
        """An object to write to, in `tmp/`, which is in the same file system."""
        return NewObject(self.new_file())

    def new_file(self) -> files.NewFile:
        """A temporary file for bytes that become an object as they are; see `publish_file`."""
        with files.told_as("making a temporary file in the store"):
            files.make_directory(self.tmp)
            return files.NewFile(self.tmp)

    def publish(self, new: NewObject) -> tuple[str, int]:
        """Name and size in bytes of the object that was written; it is durable when this returns."""
        return self.publish_file(new.file, new.digest), new.size_bytes

    def publish_file(self, new: files.NewFile, digest: Digest) -> str:
        """The name of the object that a temporary file now is; `digest` is the BLAKE3 of all its bytes."""
        name = name_for(digest)
        path = self._path(name)
        with files.told_as("publishing an object"):
            files.make_directory(path.parent)
            new.publish(path)
        return name

    def remove(self, name: str) -> bool:
        """Remove an object; False if it was not there. Its rows in the catalog are gone already.

        Not made durable: an object that returns after a power cut is named by no row, and removed the next time.
        """
        with files.told_as(f"removing the object {name}"):
            return files.remove(self._path(name))

    def set_aside(self, name: str) -> bool:
        """Move a damaged object to `damaged/`, where nothing offers it again; False if it was not there."""
        path = self._path(name)
        with files.told_as(f"setting the damaged object {name} aside"):
            files.make_directory(self.damaged)
            try:
                files.rename(path, self.damaged / path.name)
            except FileNotFoundError:
                return False
            files.sync_directory(self.damaged)
            files.sync_directory(path.parent)
        return True

    def clean_tmp(self) -> int:
        """Remove what writers that ended before they published left in `tmp/`; how many bytes that freed.

        Only for a caller that holds the writer lock exclusively: every file in `tmp/` is then nobody's.
        """
        freed = 0
        with files.told_as("cleaning the store's temporary files"):
            if not self.tmp.is_dir():
                return 0
            with os.scandir(self.tmp) as entries:
                listed = list(entries)
            for entry in listed:
                if entry.is_dir(follow_symlinks=False):
                    files.remove_tree(Path(entry.path))
                else:
                    freed += entry.stat(follow_symlinks=False).st_size
                    files.remove(Path(entry.path))
        return freed

    # --- reading ---

    def open(self, name: str) -> int:
        """A descriptor for reading an object; the caller closes it. `ObjectMissing` if it is not there."""
        path = self._path(name)
        with files.told_as(f"opening the object {name}"):
            try:
                fd = files.open_source(path)
            except FileNotFoundError as error:
                raise _missing(name, "is not in the object store") from error
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise _missing(name, "is a link, and links are not followed") from error
            # Anything else under the name of an object was put there by something that is not begat.
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise _missing(name, "is not a regular file")
        return fd

    def read(self, name: str, *, offset: int, length: int) -> bytes:
        """`length` bytes of an object, from `offset`; not checked against any digest.

        Raises `ObjectMissing`, or `DigestMismatch` if the object ends before.
        """
        fd = self.open(name)
        try:
            return read_open(fd, name, offset=offset, length=length)
        finally:
            os.close(fd)

    def stat(self, name: str) -> int | None:
        """The size of an object in bytes, or None if it is not there."""
        with files.told_as(f"looking for the object {name}"):
            try:
                found = os.lstat(self._path(name))
            except FileNotFoundError:
                return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def list(self) -> Iterator[tuple[str, int]]:
        """Name and size in bytes of every object, in no order. Files with other names are passed over.

        A folder that cannot be listed is an error, never an empty one: gc and verify believe what this says.
        """
        for folder in _names_in(self.folder):
            if not _FOLDER.fullmatch(folder):
                continue
            for file in _names_in(self.folder / folder):
                name = f"{folder}/{file}"
                if not _NAME.fullmatch(name):
                    continue
                size_bytes = self.stat(name)
                if size_bytes is not None:  # else removed since the folder was listed
                    yield name, size_bytes

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise _missing(name, "is not the name of an object")
        return self.folder / name


class NewObject:
    """Bytes that are about to become an object; their digest is computed while they are written.

    Leaving the `with` block without `ObjectStore.publish` removes them.
    """

    def __init__(self, file: files.NewFile) -> None:
        self.file = file
        self.size_bytes = 0
        self._hasher = blake3()

    @property
    def digest(self) -> Digest:
        """BLAKE3 of all that was written so far."""
        return Digest(f"b3:{self._hasher.hexdigest()}")

    def write(self, data: bytes | memoryview) -> int:
        """Append all of `data`; the offset at which it starts."""
        with files.told_as("writing an object"):
            self.file.write(data)
        self._hasher.update(data)
        offset = self.size_bytes
        self.size_bytes += len(data)
        return offset

    def discard(self) -> None:
        """Remove what was written, if it was not published."""
        with files.told_as("removing a temporary file"):
            self.file.discard()

    def __enter__(self) -> NewObject:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()


def name_for(digest: Digest) -> str:
    """A new name for an object with these bytes: `ab/<hex>-<8 random hex>`."""
    hex_digits = digest.removeprefix("b3:")
    return f"{hex_digits[:2]}/{hex_digits}-{secrets.token_hex(4)}"


def digest_in(name: str) -> Digest:
    """The digest that the bytes of an object have while they are undamaged, read from its name."""
    found = _NAME.fullmatch(name)
    if not found:
        raise _missing(name, "is not the name of an object")
    return Digest(f"b3:{found[2]}")


def read_open(fd: int, name: str, *, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` of an object that is open; for many reads of one pack.

    Raises `DigestMismatch` if the object ends before; nothing is allocated then.
    """
    with files.told_as(f"reading the object {name}"):
        end = os.fstat(fd).st_size
        if offset < 0 or length < 0 or offset + length > end:
            raise DigestMismatch(
                f"the object {name} has {end} bytes, but {length} were stored at {offset}. Nothing was handed out; "
                "run `begat verify` to see which versions need it, and log their files again"
            )
        if hasattr(os, "pread"):
            data = os.pread(fd, length, offset)
            if len(data) == length:
                return data
        buffer = bytearray(length)
        done = 0
        while done < length:
            size = files.read_at(fd, memoryview(buffer)[done:], offset + done)
            if size == 0:
                raise DigestMismatch(
                    f"the object {name} became shorter while it was read. Nothing was handed out"
                )
            done += size
    return bytes(buffer)


def _names_in(folder: Path) -> list[str]:
    with files.told_as(f"listing {folder}"):
        return os.listdir(folder)


def _missing(name: str, problem: str) -> ObjectMissing:
    return ObjectMissing(
        f"the object {name!r} {problem}. What else is stored is safe; "
        "run `begat verify` to see which versions need it, and log their files again"
    )
