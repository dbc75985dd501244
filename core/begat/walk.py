"""Names and kinds below a folder, in the order of a manifest, before the first byte of it is read."""

from __future__ import annotations

import itertools
import os
import re
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from begat.errors import BadPath, BegatError, LimitExceeded, SourceChanged, UnsupportedFile
from begat.files import HAS_DIRECTORY_FDS, open_directory
from begat.ignore import Globs, Ignore, Matcher, is_always_left_out, matcher
from begat.listing import Source, SymlinkPolicy, reading, sources, unsupported
from begat.paths import (
    MAX_DEPTH,
    MAX_PATH_BYTES,
    MAX_SEGMENT_BYTES,
    check_path,
    check_segment,
    check_symlink,
)
from begat.statcache import BLOCK_ENTRIES, Block, Seen, seen_column, seen_of

# Depth is limited by paths.MAX_DEPTH; this bounds memory for a tree that is logged by mistake (a whole disk).
MAX_ENTRIES = 10_000_000

# Nearly all names are plain like these, and one match over a folder costs a tenth of checking each.
_PLAIN = re.compile(r"(?:\w[\w.-]{0,99}+/?\n)*+", re.ASCII)
_KIND = 0o170000
_FILE = stat.S_IFREG
_LINK_NUMBERS = (0, 0, 0, 0, 0, stat.S_IFLNK)
_FOLDER_NUMBERS = (0, 0, 0, 0, 0, stat.S_IFDIR)


def scan(
    root: Path,
    *,
    include: Globs | None = None,
    exclude: Globs | None = None,
    symlinks: SymlinkPolicy = "keep",
    left_out: Callable[[str], None],
) -> Iterator[tuple[str, Source]]:
    """The contents of a folder as (path, source), sorted by path; see `blocks`."""
    for block in blocks(
        root, include=include, exclude=exclude, symlinks=symlinks, left_out=left_out
    ):
        yield from sources(block, str(root), "")


def blocks(
    root: Path,
    prefix: str = "",
    *,
    include: Globs | None = None,
    exclude: Globs | None = None,
    symlinks: SymlinkPolicy = "keep",
    left_out: Callable[[str], None],
) -> Iterator[Block]:
    """The contents of a folder, sorted by path, as columns; nothing is read but names and what stat says.

    `prefix` is put before each path. `.begatignore` at the root is honoured; version control folders and begat stores
    are left out and told to `left_out`. A socket, device or pipe raises `UnsupportedFile`, a bad name `BadPath`. The
    walk is iterative and by name, and links are never walked through unless `symlinks="follow"`, which keeps to the
    inside of `root`.
    """
    chosen = matcher(include, exclude)
    walk = _Walk(root, prefix, Ignore.load(root), chosen, symlinks, left_out)
    columns = _Columns()
    # Folders sort among files as `name/`, so one after the other gives the order of a manifest.
    start = _Folder(str(root), "", frozenset({os.path.realpath(root)}))
    pending: list[Iterator[_Run | _Folder]] = [iter((start,))]
    while pending:
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
        elif isinstance(step, _Folder):
            pending.append(iter(walk.list(step)))
        elif columns.add(step) >= BLOCK_ENTRIES:
            yield columns.take()
    if columns.count:
        yield columns.take()


@dataclass(slots=True)
class _Folder:
    """A folder to be listed: where it is, the paths of what is in it, and the real folders that lead to it."""

    place: str
    path: str  # below the root, with a slash at the end; empty for the root
    above: frozenset[str]


@dataclass(slots=True)
class _Run:
    """Entries of one folder with no folder between them."""

    folder: str
    names: list[str] = field(default_factory=list[str])
    numbers: list[int] = field(default_factory=list[int])
    others: dict[int, bytes] = field(default_factory=dict[int, bytes])

    def add(self, name: str, numbers: Iterable[int]) -> None:
        """One more entry, by what `Seen` says of it."""
        self.names.append(name)
        self.numbers.extend(numbers)


class _Columns:
    """Gathers runs until a block is full."""

    def __init__(self) -> None:
        self.count = 0
        self._texts: list[str] = []
        self._seen = array("q")
        self._others: dict[int, bytes] = {}

    def add(self, run: _Run) -> int:
        self._texts.append(run.folder + f"\n{run.folder}".join(run.names))
        self._seen.extend(seen_column(run.numbers))
        for at, other in run.others.items():
            self._others[self.count + at] = other
        self.count += len(run.names)
        return self.count

    def take(self) -> Block:
        block = Block("\n".join(self._texts), self._seen, self._others)
        self.__init__()
        return block


class _Walk:
    """What is asked of each folder of one walk."""

    def __init__(
        self,
        root: Path,
        prefix: str,
        ignore: Ignore,
        chosen: Matcher,
        symlinks: SymlinkPolicy,
        left_out: Callable[[str], None],
    ) -> None:
        self._root = root
        self._real_root = os.path.realpath(root)
        self._prefix = prefix
        self._ignore = ignore
        self._chosen = chosen
        self._symlinks: SymlinkPolicy = symlinks
        self._left_out = left_out
        self._count = 0
        self._full: set[str] = set()  # folders that were found not to be empty before their turn
        self._links: dict[str, str] = {}  # folders behind links: path -> real path

    def list(self, folder: _Folder) -> list[_Run | _Folder]:
        """The contents of one folder in order: files and links in runs, folders that are still to be listed."""
        with reading(folder.place):
            fd = _open_folder(folder)
        try:
            found, is_empty = self._names_in(folder, fd)
            if is_empty:
                return self._empty(folder)
            self._check_names(folder, found)
            if self._symlinks == "follow":
                found = self._followed(folder, found)
            return self._steps(folder, found, fd)
        finally:
            if fd is not None:
                os.close(fd)

    def _names_in(
        self, folder: _Folder, fd: int | None
    ) -> tuple[dict[str, os.DirEntry[str]], bool]:
        """What was asked for by name, that of a folder with a slash; and whether nothing at all is there."""
        found: dict[str, os.DirEntry[str]] = {}
        may_be_left_out: list[str] = []
        with reading(folder.place), os.scandir(folder.place if fd is None else fd) as listing:
            for item in listing:
                name = item.name
                if item.is_dir(follow_symlinks=False):
                    name += "/"
                    may_be_left_out.append(name)
                elif name[0] == ".":
                    may_be_left_out.append(name)
                found[name] = item
        # Only a folder can be a store; a file or link can only be called `.git`.
        for name in may_be_left_out:
            plain = name.rstrip("/")
            if is_always_left_out(plain, f"{folder.place}/{plain}"):
                self._left_out(folder.path + plain)
                del found[name]
        if self._ignore.has_rules:
            found = {n: i for n, i in found.items() if not self._is_ignored(folder.path + n)}
        is_empty = not found
        if self._chosen.has_globs:
            kept = {n: i for n, i in found.items() if not self._is_left_out(folder.path + n)}
            is_empty = not kept
            found = {n: i for n, i in kept.items() if self._may_be_chosen(folder.path + n, i)}
        return found, is_empty

    def _is_ignored(self, path: str) -> bool:
        return self._ignore.is_ignored(path.rstrip("/"), path.endswith("/"))

    def _is_left_out(self, path: str) -> bool:
        return path.endswith("/") and self._chosen.leaves_out_folder(path[:-1])

    def _may_be_chosen(self, path: str, item: os.DirEntry[str]) -> bool:
        # What was not asked for may have any name and be of any kind. A link that is followed may be a folder.
        may_be_folder = path.endswith("/") or (self._symlinks == "follow" and item.is_symlink())
        return may_be_folder or self._chosen.is_chosen(path)

    def _empty(self, folder: _Folder) -> list[_Run | _Folder]:
        path = folder.path[:-1]
        if folder.path in self._full:
            raise SourceChanged(
                f"{folder.place} is no longer what was listed; no version was made. "
                "Log again when nothing changes the folder"
            )
        if not path or not self._chosen.is_chosen(path):
            return []
        above, slash, name = path.rpartition("/")
        return [_Run(self._prefix + above + slash, [name], list(_FOLDER_NUMBERS))]

    def _check_names(self, folder: _Folder, found: dict[str, os.DirEntry[str]]) -> None:
        self._count += len(found)
        if self._count > MAX_ENTRIES:
            raise LimitExceeded(
                f"{self._root} has more than {MAX_ENTRIES} entries; nothing was stored"
            )
        prefix = self._prefix + folder.path
        text = "\n".join(found) + "\n"
        if text.count("\n") != len(found) or not _PLAIN.fullmatch(text):
            for name in found:
                check_segment(name.rstrip("/"), prefix + name.rstrip("/"))
        # Each segment is sound, so only the whole may still be too long or too deep.
        is_long = len(prefix) * 4 + MAX_SEGMENT_BYTES > MAX_PATH_BYTES
        if is_long or prefix.count("/") >= MAX_DEPTH:
            for name in found:
                path = prefix + name.rstrip("/")
                if path.count("/") >= MAX_DEPTH:
                    raise BadPath(
                        f"{path[:100]!r}... is deeper than {MAX_DEPTH} folders; nothing was stored"
                    )
                check_path(path)

    def _followed(
        self, folder: _Folder, found: dict[str, os.DirEntry[str]]
    ) -> dict[str, os.DirEntry[str]]:
        """The same, with the slash of a folder behind the names of links that lead to one."""
        by_name: dict[str, os.DirEntry[str]] = {}
        for name, item in found.items():
            if item.is_symlink():
                real, seen = self._behind_link(folder, name)
                if stat.S_ISDIR(seen.mode):
                    name += "/"
                    self._links[folder.path + name] = real
            by_name[name] = item
        return by_name

    def _ordered(self, folder: _Folder, found: dict[str, os.DirEntry[str]]) -> list[str]:
        """The names in order, that of a folder with a slash unless it is empty, and so an entry itself."""
        names = sorted(found)
        for before, name in itertools.pairwise(names):
            # `a-b` stands between `a` and `a/`, so here the kind of the entry decides about the order.
            if name[-1] == "/" and before.startswith(name[:-1]):
                child = self._folder_in(folder, name)
                if self._is_empty(child):
                    found[name[:-1]] = found.pop(name)
                else:
                    self._full.add(child.path)
        return sorted(found) if len(found) > 1 else names

    def _is_empty(self, folder: _Folder) -> bool:
        with reading(folder.place):
            fd = _open_folder(folder)
        told, self._left_out = self._left_out, _untold
        try:
            return self._names_in(folder, fd)[1]
        finally:
            self._left_out = told
            if fd is not None:
                os.close(fd)

    def _steps(
        self, folder: _Folder, found: dict[str, os.DirEntry[str]], fd: int | None
    ) -> list[_Run | _Folder]:
        """What a folder comes to; its entries are looked at while it is open."""
        prefix = self._prefix + folder.path
        run = _Run(prefix)
        steps: list[_Run | _Folder] = [run]
        names, numbers, name = run.names, run.numbers, ""
        try:
            for name in self._ordered(folder, found):
                if name[-1] == "/" or len(names) == BLOCK_ENTRIES:
                    run = _Run(prefix)
                    names, numbers = run.names, run.numbers
                    if name[-1] == "/":
                        steps += (self._folder_in(folder, name), run)
                        continue
                    steps.append(run)
                seen = found[name].stat(follow_symlinks=False)
                mode = seen.st_mode
                if mode & _KIND != _FILE:
                    self._take_other(folder, name, mode, run, fd)
                    continue
                ino, dev = seen.st_ino, seen.st_dev
                numbers += (seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, ino, dev, mode)
                names.append(name)
        except OSError as error:
            if isinstance(error, BegatError):
                raise
            with reading(f"{folder.place}/{name}"):
                raise
        return [step for step in steps if isinstance(step, _Folder) or step.names]

    def _folder_in(self, folder: _Folder, name: str) -> _Folder:
        place, path = f"{folder.place}/{name[:-1]}", folder.path + name
        real = self._links.pop(path, None)
        if real is None:
            return _Folder(place, path, folder.above)
        if real in folder.above:
            raise UnsupportedFile(f"the link {path[:-1]!r} leads into itself; nothing was stored")
        return _Folder(real, path, folder.above | {real})

    def _take_other(self, folder: _Folder, name: str, mode: int, run: _Run, fd: int | None) -> None:
        """Add what is no file: a link, or an empty folder."""
        path = folder.path + name
        at = len(run.names)
        if stat.S_ISDIR(mode):
            if self._chosen.is_chosen(path):
                run.add(name, _FOLDER_NUMBERS)
        elif not stat.S_ISLNK(mode):
            raise unsupported(path, mode)
        elif self._symlinks == "refuse":
            raise UnsupportedFile(
                f"{path!r} is a link, and links were to be refused; nothing was stored"
            )
        elif self._symlinks == "keep":
            target = _link_target(folder.place, name, fd)
            check_symlink(path, target)
            run.others[at] = os.fsencode(target)
            run.add(name, _LINK_NUMBERS)
        else:
            real, seen = self._behind_link(folder, name)
            if not stat.S_ISREG(seen.mode):
                raise unsupported(path, seen.mode)
            if self._chosen.is_chosen(path):
                run.others[at] = os.fsencode(real)
                run.add(name, seen)

    def _behind_link(self, folder: _Folder, name: str) -> tuple[str, Seen]:
        path = folder.path + name
        real = os.path.realpath(f"{folder.place}/{name}")
        if os.path.commonpath([real, self._real_root]) != self._real_root:
            raise UnsupportedFile(
                f"the link {path!r} leads out of {self._root}; nothing was stored"
            )
        try:
            return real, seen_of(os.stat(real))
        except OSError:
            raise UnsupportedFile(f"the link {path!r} leads nowhere; nothing was stored") from None


def _open_folder(folder: _Folder) -> int | None:
    """A descriptor of a folder, never through a link that was put in its place; from it names are looked up faster."""
    if not HAS_DIRECTORY_FDS:
        return None
    return open_directory(folder.place, through_link=not folder.path)


def _untold(path: str) -> None:
    """What is left out is told when the folder's turn comes."""


def _link_target(folder: str, name: str, fd: int | None) -> str:
    if fd is None:
        return os.readlink(f"{folder}/{name}")
    return os.readlink(name, dir_fd=fd)
