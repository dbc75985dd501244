"""A directory becomes a manifest: list what is there, then store it.

Two steps, because every path is checked before the first byte is stored: `scan` looks at names and kinds only,
`store` reads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from begat.blobs import SMALL_FILE_BYTES, BlobWriter
from begat.errors import BadPath, LimitExceeded, SourceChanged, UnsupportedFile
from begat.files import open_source, told_as
from begat.ignore import Globs, Ignore, is_always_left_out, matcher
from begat.model import Digest, EmptyDirectory, Entry, Json, RemoteAsset, StoredFile, Symlink
from begat.paths import MAX_DEPTH, check_path, check_segment, check_symlink
from begat.progress import current as current_progress

SymlinkPolicy = Literal["keep", "follow", "refuse"]

BATCH_FILES = 256
BATCH_BYTES = 16 << 20
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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was stored: the entries, and the digests of every blob that they rely on."""

    entries: tuple[Entry, ...]
    needs: tuple[Digest, ...]


# --- listing ---


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
        with _reading(folder), os.scandir(folder) as listing:
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
        raise _unsupported(str(path), found.st_mode)
    return LocalFile(os.path.realpath(path), found.st_size, _is_executable(found))


def _source_of(
    item: os.DirEntry[str], path: str, root: Path, real_root: str, symlinks: SymlinkPolicy
) -> Source | str:
    with _reading(item.path):
        found = item.stat(follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            return LocalFile(item.path, found.st_size, _is_executable(found))
        if not stat.S_ISLNK(found.st_mode):
            raise _unsupported(path, found.st_mode)
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
        raise _unsupported(path, found.st_mode)
    return LocalFile(real, found.st_size, _is_executable(found))


def _unsupported(path: str, mode: int) -> UnsupportedFile:
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


def _is_executable(found: os.stat_result) -> bool:
    return bool(found.st_mode & stat.S_IXUSR)


# What opening something without following a link says when it is gone, or was replaced: by a link, a socket or a device
# without a driver, or the folder above it by a file.
_NO_LONGER_THERE = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV}


# --- storing ---


def store(plan: Sequence[Planned], writer: BlobWriter) -> Snapshot:
    """Store what is not stored yet, and say what every path now is.

    Small files are read, hashed and packed from one buffer in batches, so that one look-up serves many; large ones
    are taken one by one. An entry kept from an older version is looked up again and not read.
    """
    storing = _Storing(writer)
    for planned in plan:
        storing.take(planned)
    storing.flush()
    return Snapshot(tuple(storing.entries), tuple(storing.needs))


class _Storing:
    """The state of one `store`: entries so far, and a batch of small files that waits for its look-up."""

    def __init__(self, writer: BlobWriter) -> None:
        self.entries: list[Entry] = []
        self.needs: dict[Digest, None] = {}  # a set that keeps its order
        self._writer = writer
        self._progress = current_progress()
        self._batch: list[tuple[Planned, bytes, bool]] = []
        self._batch_bytes = 0

    def take(self, planned: Planned) -> None:
        source = planned.source
        if isinstance(source, LocalFile):
            self._take_file(planned, source)
        elif isinstance(source, Data):
            self._take_data(planned, source.data)
        else:
            self.entries.append(planned.entry)
            if isinstance(source, StoredFile):
                self.needs.update(dict.fromkeys(self._writer.require(source)))

    def flush(self) -> None:
        digests = self._writer.add([data for _, data, _ in self._batch])
        for (planned, data, is_executable), digest in zip(self._batch, digests, strict=True):
            self._stored(planned, digest, len(data), is_executable, (digest,))
        self._batch.clear()
        self._batch_bytes = 0

    def _take_file(self, planned: Planned, source: LocalFile) -> None:
        with _reading(source.path):
            fd = open_source(source.path)
            try:
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    raise _unsupported(source.path, before.st_mode)
                is_executable = _is_executable(before)
                if source.is_staged:
                    is_executable = source.is_executable  # a copy has a mode of its own
                if before.st_size >= SMALL_FILE_BYTES:
                    staged = Path(source.path) if source.is_staged else None
                    digest, size_bytes, needs = self._writer.add_file(
                        fd, before.st_size, planned.path, staged=staged
                    )
                    if staged is None:  # a second name changes the inode of a staged one
                        _check_unchanged(source.path, before, os.fstat(fd), size_bytes)
                    self._stored(planned, digest, size_bytes, is_executable, needs)
                    return
                data = _read_all(fd, before.st_size)
                _check_unchanged(source.path, before, os.fstat(fd), len(data))
            finally:
                os.close(fd)
        self._wait(planned, data, is_executable)

    def _take_data(self, planned: Planned, data: bytes) -> None:
        if len(data) < SMALL_FILE_BYTES:
            self._wait(planned, data, False)
            return
        digest, needs = self._writer.add_data(data, planned.path)
        self._stored(planned, digest, len(data), False, needs)

    def _wait(self, planned: Planned, data: bytes, is_executable: bool) -> None:
        self._batch.append((planned, data, is_executable))
        self._batch_bytes += len(data)
        if len(self._batch) >= BATCH_FILES or self._batch_bytes >= BATCH_BYTES:
            self.flush()

    def _stored(
        self,
        planned: Planned,
        digest: Digest,
        size: int,
        is_executable: bool,
        needs: Iterable[Digest],
    ) -> None:
        self.entries.append(StoredFile(planned.path, size, digest, is_executable, planned.metadata))
        self.needs.update(dict.fromkeys(needs))
        self._progress.advance(bytes=size, files=1)


@contextlib.contextmanager
def _reading(path: str) -> Generator[None]:
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


def _read_all(fd: int, size: int) -> bytes:
    # One byte more than the size: a file that grew shows itself.
    data = os.read(fd, size + 1)
    if len(data) in (size, 0):
        return data
    pieces = [data]
    while pieces[-1] and sum(map(len, pieces)) <= size:
        pieces.append(os.read(fd, size + 1))
    return b"".join(pieces)


def _check_unchanged(
    path: str, before: os.stat_result, after: os.stat_result, size_bytes: int
) -> None:
    same = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
    if not same or size_bytes != before.st_size:
        raise SourceChanged(
            f"{path} changed while it was read; no version was made. Log it again when nothing writes to it"
        )
