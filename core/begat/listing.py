"""What is there to be logged: files, folders and bytes, by the path that each gets, before the first byte is read."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from begat.errors import BadPath, SourceChanged, UnsupportedFile
from begat.files import is_full, told_as, translated
from begat.identity import Digest
from begat.model import EmptyDirectory, Entry, Json, RemoteAsset, StoredFile, Symlink
from begat.statcache import SEEN_NUMBERS, UNKNOWN, Block, Numbers

SymlinkPolicy = Literal["keep", "follow", "refuse"]

_KIND = 0o170000


class LocalFile(msgspec.Struct, frozen=True, eq=False):
    """A user's file that is still to be read, with its size and executable bit when it was listed.

    Or a copy of one that was staged for this log alone: nobody else writes to it, so it is not copied again. `seen` is
    what stat said when a folder was listed, and `digest` what the stat cache says that such a file holds: it is looked
    up before it is relied on, and where those bytes are not on offer, the file is read.

    A Struct, as `Planned` is: a dataclass that cannot be changed takes six times as long to make.
    """

    path: str
    size_bytes: int
    is_executable: bool
    is_staged: bool = False
    seen: Numbers | None = None
    digest: Digest | None = None


class Data(msgspec.Struct, frozen=True):
    """Bytes given in memory."""

    data: bytes


Source: TypeAlias = LocalFile | Data | StoredFile | Symlink | EmptyDirectory | RemoteAsset


class Planned(msgspec.Struct, frozen=True, eq=False):
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


class Tree:
    """The contents of a folder as they were listed, in order of their paths; compact, and planned as often as asked.

    `prefix` stands before each path in the version: empty, or a path that ends with a slash.
    """

    def __init__(
        self,
        root: str,
        prefix: str,
        blocks: Sequence[Block],
        metadata: Mapping[str, Json] | None = None,
    ) -> None:
        self.root = root
        self.prefix = prefix
        self.blocks = blocks
        self.metadata = metadata
        self._length = sum(map(len, blocks))

    @functools.cached_property
    def real_root(self) -> str:
        """The root with all links followed."""
        return os.path.realpath(self.root)

    @property
    def size_bytes(self) -> int:
        """How many bytes all files had when they were listed."""
        return sum(sum(block.seen[::SEEN_NUMBERS]) for block in self.blocks)

    def unknown(self) -> Tree:
        """The same listing, of which no digest is known yet."""
        blocks = [Block(block.paths, block.seen, block.others) for block in self.blocks]
        return Tree(self.root, self.prefix, blocks, self.metadata)

    def paths(self) -> Iterator[str]:
        """The paths alone."""
        return itertools.chain.from_iterable(block.paths.split("\n") for block in self.blocks)

    def sources_of(self, block: Block) -> Iterator[tuple[str, Source]]:
        """What lies at each path of one of its blocks."""
        return sources(block, self.root, self.prefix)

    def sources(self) -> Iterator[tuple[str, Source]]:
        """What lies at each path."""
        return itertools.chain.from_iterable(map(self.sources_of, self.blocks))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Planned]:
        return (Planned(path, source, self.metadata) for path, source in self.sources())


class Forest:
    """Folders and single entries, in order, of which no entry lies in a folder, and no folder in another.

    As compact as the folders are, and planned as often as asked: all paths of a folder stand together in the order of
    paths, so one part after the other gives that order.
    """

    def __init__(self, trees: Sequence[Tree], others: Iterable[Planned]) -> None:
        self.trees = tuple(trees)
        self.others = tuple(others)
        # Text compares as its UTF-8 does: no path holds a surrogate.
        folders = [(tree.prefix, tree) for tree in self.trees]
        singles = [(planned.path, planned) for planned in self.others]
        self.parts = [part for _, part in sorted([*folders, *singles], key=itemgetter(0))]

    @property
    def size_bytes(self) -> int:
        """How many bytes there were when the folders were listed."""
        return sum(part.size_bytes for part in self.parts)

    def __len__(self) -> int:
        return sum(map(len, self.trees)) + len(self.others)

    def __iter__(self) -> Iterator[Planned]:
        for part in self.parts:
            if isinstance(part, Tree):
                yield from part
            else:
                yield part


# What is to be logged, in order of the paths; as often as asked.
Plan: TypeAlias = Sequence[Planned] | Tree | Forest


def paths_of(plan: Plan) -> Iterator[str]:
    """The paths of a plan, in their order."""
    if isinstance(plan, Forest):
        return itertools.chain.from_iterable(
            part.paths() if isinstance(part, Tree) else (part.path,) for part in plan.parts
        )
    return plan.paths() if isinstance(plan, Tree) else (planned.path for planned in plan)


def size_of(plan: Plan) -> int:
    """How many bytes a plan has, as far as that is known before it is read."""
    if isinstance(plan, Tree | Forest):
        return plan.size_bytes
    return sum(planned.size_bytes for planned in plan)


def sources(block: Block, root: str, prefix: str) -> Iterator[tuple[str, Source]]:
    """What lies at each path of a block, which has rows of the folder `root`."""
    cut, others = len(prefix), block.others
    digests = block.raw_digests() if block.digests else itertools.repeat(UNKNOWN)
    for at, ((path, seen), raw) in enumerate(zip(block.rows(), digests, strict=False)):
        mode = seen[5]
        kind = mode & _KIND
        if kind == stat.S_IFREG:
            real = os.fsdecode(others[at]) if at in others else f"{root}/{path[cut:]}"
            digest = None if raw == UNKNOWN else Digest(f"b3:{raw.hex()}")
            yield path, LocalFile(real, seen[0], mode & stat.S_IXUSR != 0, False, seen, digest)
        elif kind == stat.S_IFLNK:
            yield path, Symlink(path, os.fsdecode(others[at]))
        else:
            yield path, EmptyDirectory(path)


def source_of_file(path: Path) -> LocalFile:
    """A single file as the caller named it; a link to one is followed, since it was named. Else `UnsupportedFile`."""
    with told_as(f"looking at {path}"):
        found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise unsupported(str(path), found.st_mode)
    return LocalFile(os.path.realpath(path), found.st_size, executable_bit(found))


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
    """Errors of the operating system inside the block say that this path could not be read, or has changed."""
    with told_as(f"reading {path}"):
        try:
            yield
        except OSError as error:
            if is_full(error):  # what is read is copied into the store at once
                raise translated(error, f"storing {path}") from error
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
