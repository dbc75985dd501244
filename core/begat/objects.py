"""Objects on a disk: immutable sequences of bytes, by name, durable before they have one.

    objects/ab/<hex of the BLAKE3 of the bytes>-<8 random hex>     0444
    tmp/                                                           what has no name yet
    damaged/                                                       what was set aside: most of a pack may be sound
    linked/                                                        names of objects that users have hard links of

A name is never used twice, not even for equal bytes: a removal that arrives late, or a late mark of damage, can so
never hit an object that was stored since. Whether bytes are here already is asked of the catalog, never of this
folder. A file's existence, size or mode proves nothing about its bytes; whoever reads checks a digest.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from begat import files
from begat.errors import DigestMismatch, ObjectMissing, StoreUnavailable
from begat.folders import Folder
from begat.model import Digest
from begat.removing import remove_tree

_NAME = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})-[0-9a-f]{8}")
_FOLDER = re.compile(r"[0-9a-f]{2}")
GATHERED_BYTES = 1 << 20
GATHERED_FROM = 8  # fewer pieces are not worth a buffer
_NOT_COUNTED = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES}


class ObjectStore:
    """The objects below the folder of a store. Holds nothing open, so it may cross threads and forks."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "objects"
        self.tmp = root / "tmp"
        self.damaged = root / "damaged"
        self.linked = root / "linked"

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

    def second_name(self, staged: Path) -> files.NewFile | None:
        """A staged file of ours under a temporary name as well; None where the file system cannot do that."""
        with files.told_as("making a temporary file in the store"):
            files.make_directory(self.tmp)
        try:
            return files.NewFile(self.tmp, link_to=staged)
        except OSError:
            return None

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
        """Remove an object, also one that was set aside; False if it was not there. Its rows are gone already.

        Not made durable: an object that returns after a power cut is named by no row, and removed the next time.
        """
        with files.told_as(f"removing the object {name}"):
            was_here = files.remove(self._path(name))
            was_here = files.remove(self._aside(name)) or was_here
            if self.linked.is_dir():
                files.remove(self._mark(name))
            return was_here

    def link(self, name: str, fd: int, folder: Folder, target: str) -> bool:
        """Give an object, open as `fd`, a second name in a user's folder; False where the file system cannot do that.

        From then on somebody else may change its bytes. That is noted before, durably: see `is_linked`.
        """
        mark = self._mark(name)
        with files.told_as(f"linking the object {name}"):
            if not mark.exists():
                files.make_directory(self.linked)
                files.replace_with(mark, b"")
            if stat.S_IMODE(os.fstat(fd).st_mode) != 0o444:  # by an earlier link
                files.set_mode(self._path(name), 0o444)
            try:
                folder.link(self._path(name), target)
            except (
                OSError
            ):  # another file system, too many links, not the owner; or the object went
                return False
            linked = folder.lookup(target)
            if linked is not None and os.path.samestat(linked, os.fstat(fd)):
                return True
            folder.remove(target)
            return False

    def is_linked(self, name: str) -> bool:
        """Whether an object has, or had, another name by which its bytes may have been changed in place."""
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(self._path(name)).st_nlink > 1:
                return True
        return self._mark(name).exists()

    def freed_by_removing(self, name: str) -> int:
        """How many bytes the disk gains when an object goes: none of one that has another name."""
        for path in (self._path(name), self._aside(name)):
            with contextlib.suppress(FileNotFoundError):
                found = os.lstat(path)
                return found.st_size if found.st_nlink == 1 else 0
        return 0

    def set_aside(self, name: str) -> bool:
        """Move a damaged object to `damaged/`; False if it was not there.

        No log relies on it there, but readers still find what is sound in it.
        """
        path = self._path(name)
        with files.told_as(f"setting the damaged object {name} aside"):
            files.make_directory(self.damaged)
            try:
                files.rename(path, self._aside(name))
            except FileNotFoundError:
                return False
            files.sync_directory(self.damaged)
            files.sync_directory(path.parent)
        return True

    def tmp_bytes(self) -> int:
        """Bytes of all files in `tmp/`: of writers at work, and of those that ended before they published.

        What lies deeper than a path can tell is not counted; begat itself makes no folder there.
        """
        total = 0
        with files.told_as("listing the store's temporary files"):
            pending = [str(self.tmp)]
            while pending:
                try:
                    with os.scandir(pending.pop()) as entries:
                        for entry in entries:
                            if entry.is_dir(follow_symlinks=False):
                                pending.append(entry.path)
                            else:
                                with contextlib.suppress(FileNotFoundError):
                                    total += entry.stat(follow_symlinks=False).st_size
                except OSError as error:
                    # Its writer was faster, or somebody planted it.
                    if error.errno not in _NOT_COUNTED:
                        raise
        return total

    def clean_tmp(self) -> int:
        """Remove what writers that ended before they published left in `tmp/`; how many bytes that freed.

        Only for a caller that holds the writer lock exclusively: every file in `tmp/` is then nobody's.
        """
        freed = self.tmp_bytes()
        with files.told_as("cleaning the store's temporary files"):
            if not self.tmp.is_dir():
                return 0
            with os.scandir(self.tmp) as entries:
                listed = list(entries)
            for entry in listed:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(Path(entry.path))
                else:
                    files.remove(Path(entry.path))
        return freed

    # --- reading ---

    def open(self, name: str) -> int:
        """A descriptor for reading an object, also one that was set aside; the caller closes it.

        Raises `ObjectMissing` if it is not there, `StoreUnavailable` if the folder of all objects is not.
        """
        with files.told_as(f"opening the object {name}"):
            try:
                try:
                    fd = files.open_source(self._path(name))
                except FileNotFoundError:
                    fd = files.open_source(self._aside(name))
            except FileNotFoundError as error:
                self._check_folder()
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

    def stat(self, name: str, *, with_damaged: bool = False) -> int | None:
        """The size of an object in bytes, or None if it is not there; `with_damaged` finds what was set aside too.

        Raises `StoreUnavailable` if the folder of all objects is not there.
        """
        with files.told_as(f"looking for the object {name}"):
            for path in (self._path(name), self._aside(name))[: 1 + with_damaged]:
                try:
                    found = os.lstat(path)
                except FileNotFoundError:
                    continue
                return found.st_size if stat.S_ISREG(found.st_mode) else None
        self._check_folder()
        return None

    def list_set_aside(self) -> Iterator[tuple[str, int]]:
        """Name and size in bytes of every object that was set aside, in no order."""
        for file in _names_in(self.damaged) if self.damaged.is_dir() else ():
            name = f"{file[:2]}/{file}"
            size_bytes = self.stat(name, with_damaged=True) if _NAME.fullmatch(name) else None
            if size_bytes is not None:
                yield name, size_bytes

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

    def _mark(self, name: str) -> Path:
        return self.linked / self._path(name).name

    def _aside(self, name: str) -> Path:
        return self.damaged / self._path(name).name

    def _check_folder(self) -> None:
        # A disk that is not mounted is not a thousand damaged objects.
        if not self.folder.is_dir():
            raise StoreUnavailable(
                f"the folder {self.folder}, where all stored bytes are, is not there. Nothing was changed; "
                "is its disk mounted?"
            )


class NewObject:
    """Bytes that are about to become an object; their digest is computed while they are written.

    Leaving the `with` block without `ObjectStore.publish` removes them.
    """

    def __init__(self, file: files.NewFile) -> None:
        self.file = file
        self.size_bytes = 0
        self._hasher = blake3()
        self._buffer: memoryview | None = None

    @property
    def digest(self) -> Digest:
        """BLAKE3 of all that was written so far."""
        return Digest(f"b3:{self._hasher.hexdigest()}")

    def write(self, data: bytes | memoryview) -> int:
        """Append all of `data`; the offset at which it starts."""
        with files.told_as(f"writing to {self.file.path.parent}"):
            self.file.write(data)
        self._hasher.update(data)
        offset = self.size_bytes
        self.size_bytes += len(data)
        return offset

    def write_all(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Append many pieces with few writes; BLAKE3, too, is twice as fast over a large one.

        They pass through one buffer, small enough to stay in the processor's cache until it is written.
        """
        if len(pieces) < GATHERED_FROM:
            for piece in pieces:
                self.write(piece)
            return
        if self._buffer is None:
            self._buffer = memoryview(bytearray(GATHERED_BYTES))
        at = 0
        for piece in pieces:
            end = at + len(piece)
            if end > GATHERED_BYTES:
                if at:
                    self.write(self._buffer[:at])
                at, end = 0, len(piece)
            if end > GATHERED_BYTES:
                self.write(piece)
                end = 0
            else:
                self._buffer[at:end] = piece
            at = end
        if at:
            self.write(self._buffer[:at])

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


def names_for(digest: Digest) -> tuple[str, str]:
    """Between what all names of objects with these bytes lie."""
    hex_digits = digest.removeprefix("b3:")
    return f"{hex_digits[:2]}/{hex_digits}-", f"{hex_digits[:2]}/{hex_digits}-g"


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
        _check_end(fd, name, offset, length)
        if hasattr(os, "pread"):
            with _sectors(name, offset):
                data = os.pread(fd, length, offset)
            if len(data) == length:
                return data
    buffer = bytearray(length)
    read_into(fd, name, memoryview(buffer), offset=offset)
    return bytes(buffer)


def read_into(fd: int, name: str, buffer: memoryview, *, offset: int) -> None:
    """Fill a buffer from `offset` of an object that is open; `DigestMismatch` if the object ends before."""
    with files.told_as(f"reading the object {name}"), _sectors(name, offset):
        done = 0
        while done < len(buffer):
            size = files.read_at(fd, buffer[done:], offset + done)
            if size == 0:
                _check_end(fd, name, offset, len(buffer))
                raise DigestMismatch(
                    f"the object {name} became shorter while it was read. Nothing was handed out"
                )
            done += size


def _check_end(fd: int, name: str, offset: int, length: int) -> None:
    end = os.fstat(fd).st_size
    if offset < 0 or length < 0 or offset + length > end:
        raise DigestMismatch(
            f"the object {name} has {end} bytes, but {length} were stored at {offset}. Nothing was handed out; "
            "run `begat verify` to see which versions need it, and log their files again"
        )


@contextlib.contextmanager
def _sectors(name: str, offset: int) -> Generator[None]:
    """How a disk tells of a sector that it lost (EIO) is damage: these bytes are gone, and others may be sound."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DigestMismatch(
            f"the object {name} cannot be read at {offset} ({error.strerror}). Nothing was handed out; "
            "run `begat verify` to see which versions need it, and log their files again"
        ) from error


def _names_in(folder: Path) -> list[str]:
    with files.told_as(f"listing {folder}"):
        return os.listdir(folder)


def _missing(name: str, problem: str) -> ObjectMissing:
    return ObjectMissing(
        f"the object {name!r} {problem}. What else is stored is safe; "
        "run `begat verify` to see which versions need it, and log their files again"
    )
