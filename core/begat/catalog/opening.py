"""In which way a catalog file can be opened: on which file systems, and read-only where nothing can be written."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import sys
import time
from collections.abc import Generator
from pathlib import Path
from urllib.parse import quote

import msgspec

from begat import files
from begat.errors import CatalogBusy, StoreUnavailable
from begat.removing import remove_tree

# File systems on which SQLite's locks or its shared memory do not hold between hosts.
NETWORK_FILE_SYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
    }
    | {"orangefs", "panfs", "pvfs2", "smb", "smb2", "smb3", "smbfs", "virtiofs", "wekafs"}
    | {
        "fuse.ceph",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.goofys",
        "fuse.juicefs",
        "fuse.mount-s3",
    }
    | {"fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)
_COPY_ATTEMPTS = 5
_KEEPING_WAIT_S = 60.0


class Way(msgspec.Struct, frozen=True):
    """A SQLite URI and what may be done with it; `private` is a folder of ours to remove in the end."""

    uri: str
    is_read_only: bool
    private: Path | None = None


def sqlite_version() -> str:
    """The version of the SQLite that Python was built with: `3.45.1`."""
    return sqlite3.sqlite_version


def file_system_of(path: Path) -> str | None:
    """The type of the file system that a path (or the nearest folder that exists) lies on, if the system tells."""
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None
    return type_in_table(table, path.resolve())


def type_in_table(mountinfo: str, path: Path) -> str | None:
    """The type of the mount that holds an absolute path, by the lines of `/proc/self/mountinfo` (see proc(5))."""
    best, found = -1, None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        mounted_on = Path(_without_escapes(fields[4]))
        depth = len(mounted_on.parts)
        # Of two mounts on one folder the later line hides the earlier one.
        if depth >= best and path.is_relative_to(mounted_on):
            best, found = depth, after.split(" ")[0]
    return found


def _without_escapes(text: str) -> str:
    for code, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, plain)
    return text


def refuse_network(path: Path, kind: str | None) -> None:
    """Raise `StoreUnavailable` where SQLite would lose commits: on a network file system."""
    if kind is not None and kind.lower() in NETWORK_FILE_SYSTEMS:
        raise StoreUnavailable(
            f"the catalog {path} would lie on a network file system ({kind}), where SQLite can lose commits. "
            "Nothing was changed. Put the catalog on a local disk; the objects may stay where they are "
            "(in Python: begat.open_store(path, catalog='/a/folder/on/a/local/disk'))"
        )


def way_to_write(path: Path) -> Way:
    """The ordinary way: read and write, and never make a file that is not there."""
    return Way(_uri(path, "mode=rw"), is_read_only=False)


def way_to_read(path: Path) -> Way:
    """The first way that works without changing the folder.

    Beside other processes where SQLite can share with them; else as a file that nobody changes, if no commit waits in
    the write-ahead log; else as a private copy of database and log, in which SQLite can put the two together.
    """
    beside_others = Way(_uri(path, "mode=ro"), is_read_only=True)
    if _can_read(beside_others):
        return beside_others
    if not _has_waiting_commits(path):
        return Way(_uri(path, "immutable=1"), is_read_only=True)
    return way_to_read_a_copy(path)


def way_to_read_a_copy(path: Path) -> Way:
    """A private copy of the database and its write-ahead log, which the caller removes."""
    private = _private_copy(path)
    return Way(_uri(private / path.name, "mode=rw"), is_read_only=True, private=private)


@contextlib.contextmanager
def kept_from_writers(path: Path) -> Generator[None]:
    """Let nobody change a catalog inside the block; nothing is held if there is none, or none that can be opened.

    Who wants to write waits, and writes into the file that has the catalog's name when the block ends.
    """
    if not path.is_file():
        yield
        return
    # Closing ends the transaction. If the file was moved, SQLite sees that, and leaves alone what has its name now.
    with contextlib.closing(
        sqlite3.connect(_uri(path, "mode=rw"), uri=True, timeout=0, isolation_level=None)
    ) as connection:
        deadline = time.monotonic() + _KEEPING_WAIT_S
        while not _has_begun(connection):
            if time.monotonic() > deadline:
                raise CatalogBusy(
                    f"other processes change the catalog {path} for longer than {_KEEPING_WAIT_S:.0f} s. "
                    "Nothing was changed; try again when they are done"
                )
            # Short and uneven: SQLite's own pauses grow, and one who writes all the time would always be faster.
            time.sleep(random.uniform(0.001, 0.01))
        yield


def _has_begun(connection: sqlite3.Connection) -> bool:
    """False if others hold the write lock; True also for a file that is too damaged to be locked by anyone."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.Error as error:
        return getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY
    return True


def _uri(path: Path, query: str) -> str:
    name = path.absolute().as_posix()
    return f"file:{'/' if sys.platform == 'win32' else ''}{quote(name)}?{query}"


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _can_read(way: Way) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(way.uri, uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        # Any other failure is not about permissions, and the caller's first statement will meet and name it.
        return error.sqlite_errorcode & 0xFF not in (
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_READONLY,
        )
    except sqlite3.DatabaseError:
        return True
    return True


def _has_waiting_commits(path: Path) -> bool:
    try:
        return _log_of(path).stat().st_size > 0
    except FileNotFoundError:
        return False


def _private_copy(path: Path) -> Path:
    with files.told_as(f"copying the catalog {path} to read it"):
        folder = files.temporary_directory("begat-catalog-")
        try:
            for _ in range(_COPY_ATTEMPTS):
                before = _state(path)
                for source in (path, _log_of(path)):
                    files.remove(folder / source.name)
                    if source.exists():
                        files.copy_file(source, folder / source.name)
                if _state(path) == before:
                    return folder
        except BaseException:
            remove_tree(folder)
            raise
    remove_tree(folder)
    raise StoreUnavailable(
        f"the catalog {path} kept changing while it was copied to be read; nothing was changed, try again"
    )


def _state(path: Path) -> list[tuple[int, int, int] | None]:
    """What shows that a writer was there between two looks: size, mtime_ns and inode of database and log."""
    out: list[tuple[int, int, int] | None] = []
    for each in (path, _log_of(path)):
        try:
            seen = os.stat(each)
        except FileNotFoundError:
            out.append(None)
        else:
            out.append((seen.st_size, seen.st_mtime_ns, seen.st_ino))
    return out
