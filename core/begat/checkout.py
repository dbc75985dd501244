"""A manifest becomes a directory: every file verified before it has its name, links last.

Files are written under a temporary name in their own folder and renamed when their digest was checked, so an
interrupted checkout leaves no half file under a final name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from begat.blobs import BlobReader, hash_fd
from begat.errors import BegatWarning, Corrupt, DestinationDiffers
from begat.files import Folder, told_as, write_all
from begat.identity import Digest
from begat.manifest import Manifest, assemble, decode_root
from begat.model import EmptyDirectory, Entry, RemoteAsset, StoredFile, Symlink
from begat.paths import path_key, portability_problems
from begat.progress import current as current_progress
from begat.remote import fetch

Overwrite = Literal["fail", "preserve", "overwrite"]

PREFETCH = 2_000


def checkout(
    entries: Sequence[Entry],
    destination: Path,
    reader: BlobReader,
    *,
    overwrite: Overwrite = "fail",
    remote: bool = False,
    read_only: bool = False,
) -> None:
    """Write entries below a folder, which is made if missing; files that are no entries stay as they are.

    `fail` compares what stands there first, and raises `DestinationDiffers` naming the first difference before
    anything is written; `preserve` leaves what differs and warns; `overwrite` replaces each file in one step.
    A link inside the destination is never followed: one in place of a folder is refused. Remote assets are fetched
    only when asked for. `read_only` gives files the mode 0444 (0555 with the executable bit).
    """
    wanted = [entry for entry in entries if remote or not isinstance(entry, RemoteAsset)]
    with Folder.at(destination) as root, told_as(f"writing to {destination}"):
        _refuse_clashes(wanted, root)
        skipped = _compare(wanted, root, overwrite)
        writer = _Writer(root, reader, read_only=read_only)
        todo = [entry for entry in wanted if entry.path not in skipped]
        try:
            for batch in _batches([entry for entry in todo if not isinstance(entry, Symlink)]):
                reader.prefetch(entry.digest for entry in batch if isinstance(entry, StoredFile))
                for entry in batch:
                    writer.write(entry)
            # Links last: until then no name below the destination can lead anywhere else.
            for entry in todo:
                if isinstance(entry, Symlink):
                    writer.write(entry)
        finally:
            writer.close()


def read_manifest(reader: BlobReader, root_digest: Digest) -> Manifest:
    """The manifest whose root has this digest, read back and verified."""
    root = decode_root(reader.read(root_digest))
    reader.prefetch(page.digest for page in root.pages)
    return assemble(root, (reader.read(page.digest) for page in root.pages))


def matches(entry: Entry, folder: Folder, name: str) -> bool:
    """True if `name` in the folder is this entry already: kind, bytes and executable bit, or target."""
    found = folder.lookup(name)
    if found is None:
        return False
    if isinstance(entry, EmptyDirectory):
        return stat.S_ISDIR(found.st_mode)
    if isinstance(entry, Symlink):
        return stat.S_ISLNK(found.st_mode) and folder.read_link(name) == entry.target
    if not stat.S_ISREG(found.st_mode) or found.st_size != entry.size_bytes:
        return False
    if isinstance(entry, RemoteAsset):
        return False  # nothing here proves that it is what is there now
    if bool(found.st_mode & stat.S_IXUSR) != entry.is_executable:
        return False
    fd = folder.open(name)
    try:
        return hash_fd(fd) == entry.digest
    finally:
        os.close(fd)


class _Writer:
    """Writes entries in path order; keeps the chain of open folders above the last one."""

    def __init__(self, root: Folder, reader: BlobReader, *, read_only: bool) -> None:
        self._chain: list[tuple[str, Folder]] = [("", root)]
        self._reader = reader
        self._read_only = read_only
        self._progress = current_progress()

    def write(self, entry: Entry) -> None:
        parent, _, name = entry.path.rpartition("/")
        if isinstance(entry, EmptyDirectory):
            self._folder(entry.path)
            return
        folder = self._folder(parent)
        if isinstance(entry, Symlink):
            self._replace(folder, name, lambda temporary: folder.symlink(entry.target, temporary))
        else:
            self._replace(folder, name, lambda temporary: self._fill(folder, temporary, entry))
        self._progress.advance(bytes=entry.size_bytes or 0, files=1)

    def close(self) -> None:
        while len(self._chain) > 1:
            self._chain.pop()[1].close()

    def _folder(self, path: str) -> Folder:
        while not _is_above(self._chain[-1][0], path):
            self._chain.pop()[1].close()
        at, folder = self._chain[-1]
        for name in path[len(at) :].strip("/").split("/") if path != at else ():
            at = f"{at}/{name}" if at else name
            folder = folder.enter(name)
            self._chain.append((at, folder))
        return folder

    def _replace(self, folder: Folder, name: str, make: Callable[[str], None]) -> None:
        found = folder.lookup(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise DestinationDiffers(
                f"{folder.path / name} is a folder where a file is to be; it was left as it is. "
                "Remove it, or choose another folder"
            )
        temporary = f".begat-{secrets.token_hex(8)}.tmp"
        try:
            make(temporary)
            folder.rename(temporary, name)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.remove(temporary)
            raise

    def _fill(self, folder: Folder, name: str, entry: StoredFile | RemoteAsset) -> None:
        fd = folder.create(name)
        try:
            if isinstance(entry, RemoteAsset):
                fetch(entry, lambda data: write_all(fd, data, folder.path / name))
            else:
                self._copy(entry, fd, folder.path / name)
            is_executable = isinstance(entry, StoredFile) and entry.is_executable
            mode = 0o555 if is_executable else 0o444
            folder.set_mode(fd, name, mode if self._read_only else _user_mode(is_executable))
        finally:
            os.close(fd)

    def _copy(self, entry: StoredFile, fd: int, path: Path) -> None:
        try:
            self._reader.copy(entry, fd, path)
        except Corrupt as error:
            raise type(error)(f"{entry.path!r} was not written: {error}") from error


def _compare(entries: Iterable[Entry], root: Folder, overwrite: Overwrite) -> set[str]:
    """The paths that need no writing, since they are there already or are to be preserved."""
    skipped: set[str] = set()
    differing: list[str] = []
    if not root.list():
        return skipped
    for entry in entries:
        folder, name = _existing_parent(root, entry.path)
        if folder is None:
            continue
        with folder if folder is not root else contextlib.nullcontext():
            if folder.lookup(name) is None:
                continue
            if matches(entry, folder, name):
                skipped.add(entry.path)
                continue
        if overwrite == "fail":
            raise DestinationDiffers(
                f"{root.path / entry.path} is there with other content; nothing was written. "
                "Choose another folder, or say overwrite='overwrite' or overwrite='preserve'"
            )
        if overwrite == "preserve":
            skipped.add(entry.path)
            differing.append(entry.path)
    if differing:
        warnings.warn(
            f"{len(differing)} files in {root.path} differ from the version and were preserved, {differing[0]!r} first",
            BegatWarning,
            stacklevel=4,
        )
    return skipped


def _existing_parent(root: Folder, path: str) -> tuple[Folder | None, str]:
    """The folder that would hold a path, opened, or None where it is not there yet."""
    *above, name = path.split("/")
    folder = root
    for segment in above:
        try:
            inner = folder.enter(segment, make=False)
        except FileNotFoundError:
            inner = None
        finally:
            if folder is not root:
                folder.close()
        if inner is None:
            return None, name
        folder = inner
    return folder, name


def _refuse_clashes(entries: Sequence[Entry], root: Folder) -> None:
    """On a file system that folds names, two entries could become one file: refused before anything is written."""
    if not _folds_case(root):
        return
    problem = next(
        (p for p in portability_problems(e.path for e in entries) if "are one name" in p), None
    )
    if problem:
        raise DestinationDiffers(
            f"{root.path} cannot hold this version: {problem}. Nothing was written"
        )


def _folds_case(root: Folder) -> bool:
    probe = f".begat-{secrets.token_hex(8)}.tmp"
    os.close(root.create(probe))
    try:
        return root.lookup(probe.upper()) is not None
    finally:
        root.remove(probe)


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    for entry in sorted(entries, key=lambda e: path_key(e.path + "/")):
        batch.append(entry)
        if len(batch) == PREFETCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _is_above(folder: str, path: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def _umask() -> int:
    # There is no call that only asks; the value is read from Linux's procfs, and else by setting it twice.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_MASK = _umask()


def _user_mode(is_executable: bool) -> int:
    return (0o777 if is_executable else 0o666) & ~_MASK
