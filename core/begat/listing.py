"""What is there to be logged: names and kinds below a folder, before the first byte of it is read."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from begat.errors import BadPath, LimitExceeded, SourceChanged, UnsupportedFile
from begat.files import told_as
from begat.ignore import Globs, Ignore, is_always_left_out, matcher
from begat.model import EmptyDirectory, Entry, Json, RemoteAsset, StoredFile, Symlink
from begat.paths import MAX_DEPTH, check_path, check_segment, check_symlink

SymlinkPolicy = Literal["keep", "follow", "refuse"]

# Depth is limited by paths.MAX_DEPTH; this bounds memory for a tree that is logged by mistake (a whole disk).
MAX_ENTRIES = 10_000_000


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A user's file that is still to be read, with its size and executable bit when it was listed.

    Or a copy of one that was staged for this log alone: nobody else writes to it, so it is not copied again.
    """

    path: str
    size_bytes: int
    is_executable: bool
    is_staged: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes given in memory."""

    data: bytes


Source: TypeAlias = LocalFile | Data | StoredFile | Symlink | EmptyDirectory | RemoteAsset


@dataclass(frozen=True, slots=True)
class Planned:
    """One path of a version to come, where its content comes from, and its metadata."""

    path: str
    source: Source
    metadata: Mapping[str, Json] | None = None

    @property
    def size_bytes(self) -> int:
        """How many bytes it has, as far as that is known before it is read."""
        return (
            len(self.source.data) if isinstance(self.source, Data) else self.source.size_bytes or 0
        )

    @property
    def entry(self) -> Entry:
        """The entry that it will be, where nothing needs to be read for it."""
        if isinstance(self.source, LocalFile | Data):
            raise TypeError(f"{self.path!r} has no digest before it is stored")
        return replace(self.source, path=self.path, metadata=self.metadata)


def scan(
    root: Path,
    *,
    include: Globs | None = None,
    exclude: Globs | None = None,
    symlinks: SymlinkPolicy = "keep",
    left_out: Callable[[str], None],
) -> Iterator[tuple[str, Source]]:
    """The contents of a folder as (path, source), unsorted; nothing is read but names and kinds.

    `.begatignore` at the root is honoured; version control folders and begat stores are left out and told to
    `left_out`. A socket, device or pipe raises `UnsupportedFile`, a bad name `BadPath`. The walk is iterative and by
    name, and links are never walked through unless `symlinks="follow"`, which keeps to the inside of `root`.
    """
    ignore = Ignore.load(root)
    chosen = matcher(include, exclude)
    real_root = os.path.realpath(root)
    pending: list[tuple[str, str, frozenset[str]]] = [(str(root), "", frozenset({real_root}))]
    count = 0
    while pending:
        folder, prefix, above = pending.pop()
        with reading(folder), os.scandir(folder) as listing:
            listed = list(listing)
        is_empty = True
        for item in listed:
            path = f"{prefix}{item.name}"
            is_folder = item.is_dir(follow_symlinks=False)
            # Only a folder can be a store; a file or link can only be called `.git`.
            may_be = is_folder or item.name[0] == "."
            if may_be and is_always_left_out(item.name, item.path):
                left_out(path)
                continue
            if ignore.is_ignored(path, is_folder) or (is_folder and chosen.leaves_out_folder(path)):
                continue
            is_empty = False
            # What was not asked for may have any name and be of any kind. A link that is followed may be a folder.
            may_be_folder = is_folder or (symlinks == "follow" and item.is_symlink())
            if not may_be_folder and not chosen.is_chosen(path):
                continue
            check_segment(item.name, path)
            count += 1
            if count > MAX_ENTRIES:
                raise LimitExceeded(
                    f"{root} has more than {MAX_ENTRIES} entries; nothing was stored"
                )
            if is_folder:
                if path.count("/") + 1 > MAX_DEPTH:
                    raise BadPath(
                        f"{path[:100]!r}... is deeper than {MAX_DEPTH} folders; nothing was stored"
                    )
                pending.append((item.path, f"{path}/", above))
                continue
            found = _source_of(item, path, root, real_root, symlinks)
            if isinstance(found, str):  # a folder behind a link that is followed
                if found in above:
                    raise UnsupportedFile(
                        f"the link {path!r} leads into itself; nothing was stored"
                    )
                pending.append((found, f"{path}/", above | {found}))
            elif chosen.is_chosen(path):
                yield check_path(path), found
        if is_empty and prefix and chosen.is_chosen(prefix[:-1]):
            yield check_path(prefix[:-1]), EmptyDirectory(prefix[:-1])


def source_of_file(path: Path) -> LocalFile:
    """A single file as the caller named it; a link to one is followed, since it was named. Else `UnsupportedFile`."""
    with told_as(f"looking at {path}"):
        found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise unsupported(str(path), found.st_mode)
    return LocalFile(os.path.realpath(path), found.st_size, executable_bit(found))


def _source_of(
    item: os.DirEntry[str], path: str, root: Path, real_root: str, symlinks: SymlinkPolicy
) -> Source | str:
    with reading(item.path):
        found = item.stat(follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            return LocalFile(item.path, found.st_size, executable_bit(found))
        if not stat.S_ISLNK(found.st_mode):
            raise unsupported(path, found.st_mode)
        if symlinks == "refuse":
            raise UnsupportedFile(
                f"{path!r} is a link, and links were to be refused; nothing was stored"
            )
        if symlinks == "keep":
            target = os.readlink(item.path)
            check_symlink(path, target)
            return Symlink(path, target)
        return _behind_link(item, path, root, real_root)


def _behind_link(item: os.DirEntry[str], path: str, root: Path, real_root: str) -> Source | str:
    real = os.path.realpath(item.path)
    if os.path.commonpath([real, real_root]) != real_root:
        raise UnsupportedFile(f"the link {path!r} leads out of {root}; nothing was stored")
    try:
        found = os.stat(real)
    except OSError:
        raise UnsupportedFile(f"the link {path!r} leads nowhere; nothing was stored") from None
    if stat.S_ISDIR(found.st_mode):
        return real
    if not stat.S_ISREG(found.st_mode):
        raise unsupported(path, found.st_mode)
    return LocalFile(real, found.st_size, executable_bit(found))


def unsupported(path: str, mode: int) -> UnsupportedFile:
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFDIR: "a folder",
    }
    kind = kinds.get(stat.S_IFMT(mode), "neither a file nor a folder")
    return UnsupportedFile(
        f"{path!r} is {kind}, which cannot be stored; nothing was stored. Leave it out with .begatignore"
    )


def executable_bit(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_IXUSR)


# What opening something without following a link says when it is gone, or was replaced: by a link, a socket or a device
# without a driver, or the folder above it by a file.
_NO_LONGER_THERE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV}


@contextlib.contextmanager
def reading(path: str) -> Generator[None]:
    with told_as(f"reading {path}"):
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise BadPath(
                    f"the path {path[:100]!r}... is too long for this system; nothing was stored. "
                    "Log from inside its folder, or move it nearer to the root"
                ) from error
            if error.errno not in _NO_LONGER_THERE:
                raise
            raise SourceChanged(
                f"{path} is no longer what was listed; no version was made. Log again when nothing changes the folder"
            ) from error
