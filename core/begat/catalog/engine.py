"""Connections to one SQLite catalog, transactions on them, and what happens to both at a fork.

SQLite through SQLAlchemy has traps, each with a test: WAL and `synchronous=FULL` hold per connection and must be set
and looked at; Python's sqlite3 begins transactions when it likes unless told not to; a transaction that reads first
and then writes fails at once when another one wrote in between, so writers begin with BEGIN IMMEDIATE; and a
connection must not cross a fork.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Generator
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from begat.catalog import statements
from begat.catalog.connecting import Alone, connect_to_read, connect_to_write
from begat.catalog.opening import Way
from begat.catalog.reserve import RESERVE_BYTES, Reserve
from begat.catalog.statements import driver_of
from begat.catalog.trouble import BUSY, BUSY_WAIT_S, busy, code_of, told_as
from begat.errors import ReadOnly, StoreFull, StoreUnavailable
from begat.files import disk_of

_FORK_WAIT_S = 10.0
_SWAP_S = 0.1
_MOST_IDLE = 8
_OLDEST_SQLITE = (3, 37, 0)  # STRICT tables


class Engine:
    """Connections to one file, to read and to write: `write()` and `read()` give a transaction on one of them."""

    def __init__(self, way: Way, name: str) -> None:
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise StoreUnavailable(
                f"this Python has SQLite {sqlite3.sqlite_version}; begat needs 3.37 or newer. Nothing was changed"
            )
        self.way = way
        self.name = name
        self._traffic = _Traffic()
        self._write_mutex = threading.Lock()
        self._writer_thread: int | None = None
        self._file = _file_id(name)
        self._held = threading.local()
        self._reserve = Reserve(Path(name))
        self._start()
        _engines.add(self)

    def _start(self) -> None:
        self._reader = _Connections(self.way, is_writer=False)
        self._writer = None if self.way.is_read_only else _Connections(self.way, is_writer=True)

    def now(self) -> int:
        """The catalog's clock: microseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1000

    @contextlib.contextmanager
    def read(self, what: str = "reading the catalog") -> Generator[Connection]:
        """One transaction that sees the catalog as it is at its first statement, and cannot change it.

        Inside a block of `reading` of the same thread it is that one.
        """
        held: Connection | None = getattr(self._held, "connection", None)
        if held is not None:
            with told_as(what, self.name):
                yield held
            return
        self._follow_the_file(what)
        with (
            self._traffic.one(),
            told_as(what, self.name),
            self._reader.one() as connection,
            connection.begin(),
        ):
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Generator[None]:
        """Let all reads of this thread inside the block be one transaction; for a few look-ups, one after the other."""
        with self.read() as connection:
            self._held.connection = connection
            try:
                yield
            finally:
                self._held.connection = None

    @contextlib.contextmanager
    def write(self, what: str) -> Generator[Connection]:
        """One transaction that holds the catalog's write lock from its beginning; all of it or nothing happens.

        Raises `CatalogBusy` when other processes hold the lock for longer than a minute, `ReadOnly` for a catalog
        that was opened to be read.
        """
        if self._writer is None:
            raise ReadOnly(
                f"{what} failed: the store was opened to be read only. Nothing was changed"
            )
        if self._writer_thread == threading.get_ident():
            raise RuntimeError("a catalog transaction was begun inside another one")
        deadline = time.monotonic() + BUSY_WAIT_S
        # Threads of one process queue here instead of polling for SQLite's lock.
        if not self._write_mutex.acquire(timeout=BUSY_WAIT_S):
            raise busy(what, self.name)
        self._writer_thread = threading.get_ident()
        try:
            with (
                self._traffic.one(),
                told_as(what, self.name),
                self._begun(what, deadline) as connection,
            ):
                yield connection
        finally:
            self._writer_thread = None
            self._write_mutex.release()

    @contextlib.contextmanager
    def freeing(self, what: str) -> Generator[Connection]:
        """As `write`, for what lets space be freed: it finds room on a full disk too, that of the reserve."""
        is_full = not (self.way.is_read_only or self._reserve.keep(RESERVE_BYTES))
        if is_full:
            self._empty_log()
        try:
            with self.write(what) as connection:
                yield connection
        except StoreFull as error:
            raise StoreFull(
                f"{what} failed: the disk {disk_of(Path(self.name))} is full, and there is not enough in "
                f"{self._reserve.path}, which is kept for this. Nothing was changed; remove 2 MB of other files there "
                "and try again"
            ) from error
        finally:
            if is_full:
                self._empty_log()
                self.keep_reserve()

    def keep_reserve(self) -> None:
        """Make the reserve if it is missing, and there is room for it."""
        if not self.way.is_read_only:
            self._reserve.keep()

    def _empty_log(self) -> None:
        """Give back what the write-ahead log takes, as far as readers of old states and the disk let us."""
        assert self._writer is not None
        with (
            contextlib.suppress(DBAPIError, sqlite3.Error),
            self._traffic.one(),
            self._writer.one() as connection,
        ):
            driver_of(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextlib.contextmanager
    def _begun(self, what: str, deadline: float) -> Generator[Connection]:
        """A transaction on the file that is the catalog now, also if it was replaced while we waited for its lock."""
        while True:
            self._follow_the_file(what)
            assert self._writer is not None
            # A reader in another thread may follow the file before we look again.
            opened = self._file
            with _begun(self._writer, deadline) as connection:
                if _file_id(self.name) == opened:
                    yield connection
                    return

    def _follow_the_file(self, what: str) -> None:
        """Open the catalog anew if another file stands in its place (a rebuild): nobody reads the old one any more."""
        if self.way.is_read_only:
            return
        now = _file_id(self.name)
        if now is None:
            # A rebuild that moved the old file away is about to put the new one in its place.
            time.sleep(_SWAP_S)
            now = _file_id(self.name)
        if now is None:
            raise StoreUnavailable(
                f"{what} failed: the catalog {self.name} is gone since it was opened. Nothing was changed; restore a "
                "backup of it, or make it anew from the objects (begat rebuild)"
            )
        if now != self._file:
            self.close()  # first: who sees the new file noted must not find an old connection
            self._file = now

    def close(self) -> None:
        """Close every connection that is not in use."""
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
        if self._reserve.is_spent:
            # The last one to close has just removed the log.
            self.keep_reserve()

    # --- forks ---

    def before_fork(self) -> None:
        """Wait for open transactions, then close all connections.

        SQLite keeps its locks in the process's memory as well: a child of a process with an open connection would
        believe that it holds locks which it does not, and its parent could remove the log under it.
        """
        self._traffic.stop()
        self.close()

    def after_fork_in_parent(self) -> None:
        """Let transactions begin again."""
        self._traffic.go()

    def after_fork_in_child(self) -> None:
        """Forget all handles of the parent; new ones are opened when they are needed."""
        self._traffic = _Traffic(
            is_poisoned=self._traffic.is_poisoned or self._traffic.is_any_open()
        )
        self._write_mutex = threading.Lock()
        self._writer_thread = None
        self._held = threading.local()
        # Kept, since closing what may be left in them would act on the parent's file locks and log.
        _forgotten.append((self._reader, self._writer))
        self._start()


def _file_id(name: str) -> tuple[int, int] | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_forgotten: list[object] = []


class _Connections:
    """Those that were opened, and are not in use, the one used last first: it has the pages that are asked for again.

    Each is SQLAlchemy's own object, kept as it is: to take one from a pool of SQLAlchemy's costs more than a look-up.
    """

    def __init__(self, way: Way, *, is_writer: bool) -> None:
        self.engine = _sqlite_engine(way, is_writer=is_writer)
        self._idle: list[Connection] = []
        self._is_alone = False
        self._turn = threading.RLock()

    @contextlib.contextmanager
    def one(self) -> Generator[Connection]:
        """A connection that nobody else uses; it is closed afterwards if the others were closed meanwhile."""
        # Threads that each must be alone with the file queue here, instead of polling for SQLite's lock.
        with (
            self._turn if self._is_alone else contextlib.nullcontext(),
            self._taken() as connection,
        ):
            yield connection

    @contextlib.contextmanager
    def _taken(self) -> Generator[Connection]:
        # Without a lock: a fork may come at any moment, and lists give and take one at a time.
        idle = self._idle
        try:
            connection = idle.pop()
        except IndexError:
            connection = self.engine.connect()
            self._is_alone = isinstance(driver_of(connection), Alone)
        try:
            yield connection
        finally:
            # SQLite may be in a transaction that SQLAlchemy has given up, if a commit was refused: closing ends it.
            driver = driver_of(connection)
            is_in_use = connection.in_transaction() or driver.in_transaction
            if is_in_use or isinstance(driver, Alone) or len(idle) >= _MOST_IDLE:
                connection.close()
            else:
                idle.append(connection)
                if idle is not self._idle:
                    _close_all(idle)

    def close(self) -> None:
        """Close every connection that is not in use."""
        idle, self._idle = self._idle, []
        _close_all(idle)


def _close_all(idle: list[Connection]) -> None:
    with contextlib.suppress(IndexError):  # two threads may be at it
        while True:
            idle.pop().close()


def _sqlite_engine(way: Way, *, is_writer: bool) -> sqlalchemy.Engine:
    def connect() -> sqlite3.Connection:
        return connect_to_write(way) if is_writer else connect_to_read(way)

    engine = sqlalchemy.create_engine(
        "sqlite://",
        creator=connect,
        poolclass=NullPool,
        hide_parameters=True,  # errors must not show metadata
    )
    begin = "BEGIN IMMEDIATE" if is_writer else "BEGIN"

    def on_begin(connection: Connection) -> None:
        statements.send(connection, begin)

    event.listen(engine, "begin", on_begin)
    return engine


@contextlib.contextmanager
def _begun(connections: _Connections, deadline: float) -> Generator[Connection]:
    """A connection in a transaction; others are waited for while it connects and begins, never later."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                connection = stack.enter_context(connections.one())
                stack.enter_context(connection.begin())
                break
            except (DBAPIError, sqlite3.Error) as error:
                cause = error.orig if isinstance(error, DBAPIError) else error
                if code_of(cause) not in BUSY or time.monotonic() > deadline:
                    raise
                stack.close()
            # Uneven pauses, so that processes which met once do not meet again at each attempt.
            time.sleep(random.uniform(0.001, 0.02))
        yield connection


# --- forks: a transaction and a fork keep out of each other's way ---


class _Traffic:
    """Counts open transactions, so that a fork can wait until there is none."""

    def __init__(self, *, is_poisoned: bool = False) -> None:
        self.is_poisoned = is_poisoned
        self._changed = threading.Condition(threading.Lock())
        self._open: dict[int, int] = {}
        self._is_stopped = False

    @contextlib.contextmanager
    def one(self) -> Generator[None]:
        """Count a transaction of this thread."""
        if self.is_poisoned:
            raise StoreUnavailable(
                "this process was forked in the middle of a catalog transaction of its parent, so it cannot use the "
                "store safely. Nothing was lost; start it with the method 'spawn', or fork outside the transaction"
            )
        me = threading.get_ident()
        with self._changed:
            while self._is_stopped and me not in self._open:
                self._changed.wait()
            self._open[me] = self._open.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                left = self._open[me] - 1
                if left:
                    self._open[me] = left
                else:
                    del self._open[me]
                self._changed.notify_all()

    def stop(self) -> None:
        """Let no new transaction begin, and wait for those of other threads."""
        me = threading.get_ident()
        deadline = time.monotonic() + _FORK_WAIT_S
        with self._changed:
            self._is_stopped = True
            while any(thread != me for thread in self._open):
                if not self._changed.wait(deadline - time.monotonic()):
                    break  # the child will refuse to use the store

    def go(self) -> None:
        """Let transactions begin."""
        with self._changed:
            self._is_stopped = False
            self._changed.notify_all()

    def is_any_open(self) -> bool:
        """Whether a transaction was open; asked in a child, where no other thread runs."""
        return bool(self._open)


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _before_fork() -> None:
    for engine in list(_engines):
        engine.before_fork()


def _after_fork_in_parent() -> None:
    for engine in list(_engines):
        engine.after_fork_in_parent()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


# --- a consistent copy in one file ---


def copy_database(source: Engine, target: str) -> None:
    """Copy all that is committed into the (empty) file `target`, while others go on writing."""
    with (
        source.read("copying the catalog") as connection,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy,
    ):
        driver_of(connection).backup(copy)
        # A single file: whoever opens the copy for writing turns the log on again.
        copy.execute("PRAGMA journal_mode = DELETE")
