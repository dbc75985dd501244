"""A manifest becomes a directory: every file verified before it has its name, links last.

Files are written under a temporary name in their own folder and renamed when their digest was checked, so an
interrupted checkout leaves no half file under a final name.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from begat.blobs import SMALL_FILE_BYTES, BlobReader, Buffer, hash_fd
from begat.errors import Corrupt, DestinationDiffers, warn
from begat.files import told_as, write_all
from begat.folders import Folder
from begat.model import EmptyDirectory, Entry, RemoteAsset, StoredFile, Symlink
from begat.paths import path_key, portability_problems
from begat.progress import Portion, Progress
from begat.progress import current as current_progress
from begat.remote import fetch
from begat.threads import check, cores, each

Overwrite = Literal["fail", "preserve", "overwrite"]
Link = Literal["hard"]

# How many entries are looked up at a time, and what one thread writes at a time.
WINDOW = 4_096
TASK_FILES = 128
TASK_BYTES = 8 << 20
REPORT_BYTES = 16 << 20
# Of files that are smaller than this on average, one thread writes more than two do where the file system answers at
# once: calls are so short then that threads do little else than wait for each other's Python.
TINY_BYTES = 32 << 10


def checkout(
    entries: Sequence[Entry],
    destination: Path,
    reader: BlobReader,
    *,
    overwrite: Overwrite = "fail",
    remote: bool = False,
    read_only: bool = False,
    link: Link | None = None,
) -> None:
    """Write entries below a folder, which is made if missing; files that are no entries stay as they are.

    `fail` compares what stands there first, and raises `DestinationDiffers` naming the first difference before
    anything is written; `preserve` leaves what differs and warns; `overwrite` replaces each file in one step.
    A link inside the destination is never followed: one in place of a folder is refused. Remote assets are fetched
    only when asked for. `read_only` gives files the mode 0444 (0555 with the executable bit). `link="hard"` makes
    large files that lie verbatim in the store, in the same file system, links of these objects, read-only; whoever
    writes to one all the same damages the store's copy, which is found out before the store relies on it again.
    """
    wanted = [entry for entry in entries if remote or not isinstance(entry, RemoteAsset)]
    with Folder.at(destination) as root, told_as(f"writing to {destination}"):
        _refuse_clashes(wanted, root)
        skipped = _compare(wanted, root, overwrite)
        todo = [entry for entry in wanted if entry.path not in skipped]
        links = [entry for entry in todo if isinstance(entry, Symlink)]
        work = _Checkout(root, reader, read_only=read_only, link=link)
        for window in _windows(entry for entry in todo if not isinstance(entry, Symlink)):
            work.write(window)
        # Links last: until then no name below the destination can lead anywhere else.
        work.write(links)


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


class _Checkout:
    """Writes entries on as many threads as there are cores, if that is faster; a window of them at a time."""

    def __init__(
        self, root: Folder, reader: BlobReader, *, read_only: bool, link: Link | None
    ) -> None:
        self._root = root
        self._reader = reader
        self._read_only = read_only
        self._link: Link | None = link
        self._progress = current_progress()
        self._temporary = _Temporary()
        self._buffers = threading.local()
        # Whether the file system answers at once, as a local one does; known once some files were written.
        self._is_quick: bool | None = None

    def write(self, window: Sequence[Entry]) -> None:
        """Write these entries; what many threads do not serve is left to this one, which does all that is slow."""
        self._reader.prefetch_files(entry for entry in window if isinstance(entry, StoredFile))
        is_lonely = 2 * sum(_is_large(entry) for entry in window) <= cores()
        # Of few large files each is written by several threads, of many each by one.
        later = [entry for entry in window if _is_slow(entry) or (is_lonely and _is_large(entry))]
        aside = {id(entry) for entry in later}
        tasks = _tasks(entry for entry in window if id(entry) not in aside)

        def write(task: Sequence[Entry]) -> None:
            later.extend(self._write_many(task))

        if self._is_quick is None:
            wall, own = time.perf_counter(), time.thread_time()
            each(itertools.islice(tasks, 1), write)
            wall, own = time.perf_counter() - wall, time.thread_time() - own
            self._is_quick = wall < 2 * own
        is_one_enough = self._is_quick and _is_of_tiny_files(window)
        each(tasks, write, most=1 if is_one_enough else None)
        with self._writer(is_alone=True) as writer:
            for entry in sorted(later, key=_order):
                writer.write(entry)
        self._reader.forget()

    def _write_many(self, task: Sequence[Entry]) -> list[Entry]:
        """Write some entries, on any thread; those that did not lie where they were looked for are given back."""
        files = [entry for entry in task if isinstance(entry, StoredFile)]
        if not hasattr(self._buffers, "mine"):
            self._buffers.mine = Buffer()
        found = self._reader.read_many(files, self._buffers.mine) if len(task) > 1 else {}
        left: list[Entry] = []
        with self._writer(is_alone=False) as writer:
            for entry in task:
                check()
                data = found.get(entry.digest) if isinstance(entry, StoredFile) else None
                if isinstance(entry, StoredFile) and data is not None:
                    writer.put(entry, data)
                elif isinstance(entry, StoredFile) and not _is_large(entry):
                    left.append(entry)
                else:
                    try:
                        writer.write(entry)
                    except Corrupt:  # told of in the order of the entries
                        left.append(entry)
        return left

    def _writer(self, *, is_alone: bool) -> _Writer:
        return _Writer(
            self._root,
            self._reader,
            self._temporary,
            read_only=self._read_only,
            link=self._link,
            is_alone=is_alone,
            progress=self._progress,
        )


class _Temporary:
    """Names that nothing else has."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self._count = itertools.count()

    def name(self) -> str:
        return f".begat-{self._token}-{next(self._count)}.tmp"


class _Writer:
    """Writes entries on one thread; in the order of their paths is fastest, since the last one's folder is kept."""

    def __init__(
        self,
        root: Folder,
        reader: BlobReader,
        temporary: _Temporary,
        *,
        read_only: bool,
        link: Link | None,
        is_alone: bool,
        progress: Progress,
    ) -> None:
        self._folders = _Folders(root)
        self._reader = reader
        self._temporary = temporary
        self._read_only = read_only
        self._link: Link | None = link
        self._is_alone = is_alone
        self._progress = progress
        self._done_files = self._done_bytes = 0

    def put(self, entry: StoredFile, data: bytes | memoryview) -> None:
        """Write a small file whose bytes are here, and verified."""
        parent, _, name = entry.path.rpartition("/")
        folder = self._folders.at(parent)
        try:
            folder.put(
                name,
                data,
                temporary=self._temporary.name(),
                mode=self._mode(entry),
                exactly=self._read_only,
            )
        except OSError as error:
            self._explain(folder, name, error)
            raise
        self._done(entry)

    def write(self, entry: Entry) -> None:
        """Write any entry."""
        if isinstance(entry, EmptyDirectory):
            self._folders.at(entry.path)
            return
        parent, _, name = entry.path.rpartition("/")
        folder = self._folders.at(parent)
        if isinstance(entry, Symlink):
            self._replace(folder, name, lambda temporary: folder.symlink(entry.target, temporary))
            self._done(entry)
            return
        portion = Portion(self._progress, entry.size_bytes or 0)
        self._replace(
            folder, name, lambda temporary: self._fill(folder, temporary, entry, portion.tell)
        )
        portion.complete()

    def close(self) -> None:
        """Let go of all folders, and tell how much was done."""
        self._folders.close()
        if self._done_files:
            self._progress.advance(bytes=self._done_bytes, files=self._done_files)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _done(self, entry: Entry) -> None:
        self._done_bytes += entry.size_bytes or 0
        self._done_files += 1
        if self._done_bytes >= REPORT_BYTES:
            self._progress.advance(bytes=self._done_bytes, files=self._done_files)
            self._done_bytes = self._done_files = 0

    def _replace(self, folder: Folder, name: str, make: Callable[[str], None]) -> None:
        temporary = self._temporary.name()
        try:
            make(temporary)
            folder.rename(temporary, name)
            if self._link:  # two links of one file: then renaming does nothing
                with contextlib.suppress(FileNotFoundError):
                    folder.remove(temporary)
        except BaseException as error:
            with contextlib.suppress(OSError):
                folder.remove(temporary)
            self._explain(folder, name, error)
            raise

    def _explain(self, folder: Folder, name: str, error: BaseException) -> None:
        found = folder.lookup(name) if isinstance(error, OSError) else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise DestinationDiffers(
                f"{folder.path / name} is a folder where a file is to be; it was left as it is. "
                "Remove it, or choose another folder"
            ) from error

    def _fill(
        self,
        folder: Folder,
        name: str,
        entry: StoredFile | RemoteAsset,
        tell: Callable[[int], object],
    ) -> None:
        if self._link and isinstance(entry, StoredFile) and not entry.is_executable:
            if self._reader.link(entry, folder, name):
                return
        fd = folder.create(name)
        try:
            if isinstance(entry, RemoteAsset):
                fetch(entry, lambda data: write_all(fd, data, folder.path / name))
            else:
                self._copy(entry, fd, folder.path / name, tell)
            folder.set_mode(fd, name, self._mode(entry))
        finally:
            os.close(fd)

    def _copy(self, entry: StoredFile, fd: int, path: Path, tell: Callable[[int], object]) -> None:
        try:
            self._reader.copy(entry, fd, path, is_alone=self._is_alone, tell=tell)
        except Corrupt as error:
            raise type(error)(f"{entry.path!r} was not written: {error}") from error

    def _mode(self, entry: StoredFile | RemoteAsset) -> int:
        is_executable = isinstance(entry, StoredFile) and entry.is_executable
        if self._read_only:
            return 0o555 if is_executable else 0o444
        return _user_mode(is_executable)


class _Folders:
    """The chain of open folders above the entry that was asked for last."""

    def __init__(self, root: Folder, *, make: bool = True) -> None:
        self._chain: list[tuple[str, Folder]] = [("", root)]
        self._make = make

    def at(self, path: str) -> Folder:
        """The folder at a path, made if missing; else `FileNotFoundError`."""
        while not _is_above(self._chain[-1][0], path):
            self._chain.pop()[1].close()
        at, folder = self._chain[-1]
        for name in path[len(at) :].strip("/").split("/") if path != at else ():
            at = f"{at}/{name}" if at else name
            folder = folder.enter(name, make=self._make)
            self._chain.append((at, folder))
        return folder

    def close(self) -> None:
        while len(self._chain) > 1:
            self._chain.pop()[1].close()

    def __enter__(self) -> _Folders:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _compare(entries: Sequence[Entry], root: Folder, overwrite: Overwrite) -> set[str]:
    """The paths that need no writing, since they are there already or are to be preserved."""
    skipped: set[str] = set()
    differing: list[str] = []
    if not root.list():
        return skipped

    def look(task: Sequence[Entry]) -> None:
        with _Folders(root, make=False) as folders:
            for entry in task:
                check()
                is_there = _is_there(entry, folders)
                if is_there is False and overwrite == "fail":
                    raise DestinationDiffers(
                        f"{root.path / entry.path} is there with other content; nothing was written. "
                        "Choose another folder, or say overwrite='overwrite' or overwrite='preserve'"
                    )
                if is_there or (is_there is False and overwrite == "preserve"):
                    skipped.add(entry.path)
                if is_there is False:
                    differing.append(entry.path)

    each(_tasks(entries), look)
    if differing and overwrite == "preserve":
        differing.sort(key=path_key)
        warn(
            f"{len(differing)} files in {root.path} differ from the version and were preserved, {differing[0]!r} first"
        )
    return skipped


def _is_there(entry: Entry, folders: _Folders) -> bool | None:
    """Whether an entry is in its folder already; None where nothing has its name."""
    parent, _, name = entry.path.rpartition("/")
    try:
        folder = folders.at(parent)
    except FileNotFoundError:
        return None
    return None if folder.lookup(name) is None else matches(entry, folder, name)


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


def _order(entry: Entry) -> bytes:
    return path_key(entry.path + "/")


def _windows(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """So many entries at a time that their places fit into memory, in an order that keeps folders together."""
    ordered = sorted(entries, key=_order)
    for at in range(0, len(ordered), WINDOW):
        yield ordered[at : at + WINDOW]


def _tasks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """What one thread does at a time: one large file, or some small ones."""
    task: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        if _is_large(entry):
            yield [entry]
            continue
        if task and (len(task) >= TASK_FILES or size_bytes >= TASK_BYTES):
            yield task
            task, size_bytes = [], 0
        task.append(entry)
        size_bytes += entry.size_bytes or 0
    if task:
        yield task


def _is_large(entry: Entry) -> bool:
    return isinstance(entry, StoredFile) and entry.size_bytes >= SMALL_FILE_BYTES


def _is_of_tiny_files(entries: Sequence[Entry]) -> bool:
    sizes = [entry.size_bytes for entry in entries if isinstance(entry, StoredFile)]
    return max(sizes, default=0) < SMALL_FILE_BYTES and sum(sizes) <= TINY_BYTES * len(sizes)


def _is_slow(entry: Entry) -> bool:
    return isinstance(entry, RemoteAsset | Symlink)


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
