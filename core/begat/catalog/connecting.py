"""One connection to a catalog's file: how SQLite is told to write it, and to read it, also on a full disk."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Generator

from begat.catalog.opening import Way
from begat.catalog.trouble import BUSY, BUSY_WAIT_S, code_of, lacks_index
from begat.errors import StoreUnavailable

_BUSY_STEP_S = 2.0  # one wait inside SQLite, which Ctrl-C cannot interrupt
_CACHE_KIB = 16 * 1024
# A small version changes about 40: the log is emptied, by two fsyncs, after a hundred of them.
_LOG_PAGES = 4000


class Alone(sqlite3.Connection):
    """One that shares nothing with others, since the disk is too full for what they would share.

    While others have the file open, SQLite's readers and writers share an index of the log: 32 KiB in a file (-shm),
    which the last one to close removes. With the locking mode EXCLUSIVE, set before the first read, SQLite keeps the
    index in its own memory and makes no such file (https://sqlite.org/wal.html, "Use of WAL Without Shared-Memory").
    What a writer that crashed left in the log is read as ever.

    It is safe beside others because the catalog's file itself is locked, from the first read to the closing: who opens
    it meanwhile waits. Where anyone has it open it is not had at all, and not needed: for that one there is an index.
    So it is closed after one transaction, that nobody waits for long.
    """


def connect_to_write(way: Way) -> sqlite3.Connection:
    """A connection whose commits are durable."""
    connection = _connected(way)
    with _closed_on_error(connection):
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        connection.execute("PRAGMA synchronous = FULL")
        level = connection.execute("PRAGMA synchronous").fetchone()[0]
        if (mode, level) != ("wal", 2):
            raise StoreUnavailable(
                f"SQLite did not take write-ahead logging with full synchronisation here (it said {mode}, {level}), "
                "so a commit could be lost in a crash. Nothing was changed; put the catalog on another local disk"
            )
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
    return connection


def connect_to_read(way: Way) -> sqlite3.Connection:
    """A connection that changes nothing: beside others, or `Alone` where the disk has no room for that."""
    deadline = time.monotonic() + BUSY_WAIT_S
    kind: type[sqlite3.Connection] = sqlite3.Connection
    while True:
        try:
            connection = _connected(way, kind)
            break
        except sqlite3.OperationalError as error:
            if lacks_index(error) and kind is not Alone:
                kind = Alone
                continue
            if code_of(error) not in BUSY or time.monotonic() > deadline:
                raise
        # Somebody reads alone; or we would have, and somebody has it open: then the ordinary way works again.
        kind = sqlite3.Connection
        time.sleep(random.uniform(0.001, 0.02))
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connected(way: Way, kind: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    connection = sqlite3.connect(
        way.uri,
        uri=True,
        # One that wants to be alone lets go at once of what others wait for.
        timeout=0 if kind is Alone else _BUSY_STEP_S,
        isolation_level=None,  # we begin transactions ourselves
        check_same_thread=False,  # it is handed to one thread at a time
        cached_statements=256,
        factory=kind,
    )
    with _closed_on_error(connection):
        connection.execute("PRAGMA temp_store = MEMORY")
        if kind is Alone:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        # The first statement that looks into the file, and so meets a full disk or a lock.
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


@contextlib.contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Generator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise
