"""Faults at single operations: each change of a file and each statement of the catalog, in a forked process."""

import contextlib
import errno
import json
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import event

from begat import files
from begat.catalog import statements
from begat.errors import BegatError

KILL = "kill"
ERRORS = ("EIO", "ENOSPC", "EROFS", "EMFILE", "EACCES")
FAULTS = (KILL, *ERRORS)
# SQLite's own, of a statement that is refused once, or of all from it on.
SQLITE_ERRORS = ("SQLITE_AUTH", "SQLITE_READONLY")
STATEMENT = "statement"
# What a statement asks leave for when it changes something; a function that is refused is another error.
_CHANGES = (
    *(sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE),
    *(sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT),
)

FINISHED, REFUSED, BROKE = 0, 3, 4


@dataclass(frozen=True, slots=True)
class Point:
    """One operation of a story: its place in the order, what it was, and on what."""

    number: int
    operation: str
    path: str


class Injector:
    """Notes every operation to a file, and fails the one with the number `at` (all from it on, if `lasting`)."""

    def __init__(
        self, log: Path, *, at: int = -1, fault: str = KILL, lasting: bool = False
    ) -> None:
        self._fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._at = at
        self._fault = fault
        self._lasting = lasting
        self._count = 0

    def __call__(self, operation: str, path: str) -> None:
        if self._is_hit(operation, path):
            code = getattr(errno, self._fault)
            raise OSError(code, os.strerror(code), path)

    def _is_hit(self, operation: str, path: str) -> bool:
        """Note an operation; whether it is to fail. There is no answer if the process is to be killed at it."""
        number = self._count
        self._count += 1
        # How many operations come before one varies a little: a folder of objects may be there already.
        is_meant = self._fault == KILL or (operation == STATEMENT) == (self._fault in SQLITE_ERRORS)
        is_hit = (number == self._at and is_meant) or (
            self._lasting
            and 0 <= self._at < number
            and operation not in (STATEMENT, "remove", "rmdir")  # a full disk lets one remove
        )
        self._write([number, operation, path, is_hit])
        if is_hit and self._fault == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        return is_hit

    def _write(self, row: list[Any]) -> None:
        os.write(self._fd, json.dumps(row).encode() + b"\n")

    def statement(self, *facts: Any) -> None:
        """The catalog is about to be asked or told something."""
        if self._is_hit(STATEMENT, facts[2].split("\n")[0][:60]):
            self._let_fail(facts[0])

    def commit(self, connection: Any) -> None:
        """A transaction of the catalog is about to be committed."""
        if self._is_hit(STATEMENT, "COMMIT"):
            self._let_fail(connection)

    def _let_fail(self, connection: sqlalchemy.Connection) -> None:
        """Have SQLite itself fail what comes next on a connection."""
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        if self._fault == "SQLITE_READONLY":
            driver.execute("PRAGMA query_only = ON")
        else:
            assert self._fault == "SQLITE_AUTH"
            refusals = iter([sqlite3.SQLITE_DENY])  # a rollback is let through
            driver.set_authorizer(
                lambda action, *_: (
                    next(refusals, sqlite3.SQLITE_OK) if action in _CHANGES else sqlite3.SQLITE_OK
                )
            )


@contextlib.contextmanager
def seam(injector: Injector) -> Generator[None]:
    """Every operation inside the block passes the injector; for a process of its own."""
    files.fault = injector
    event.listen(sqlalchemy.Engine, "before_cursor_execute", injector.statement)
    send = statements.send

    def sent(connection: Any, text: str, *values: Any, **how: Any) -> sqlite3.Cursor:
        injector.statement(connection, None, text)
        return send(connection, text, *values, **how)

    statements.send = sent
    event.listen(sqlalchemy.Engine, "commit", injector.commit)
    try:
        yield
    finally:
        files.fault = None
        statements.send = send


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a child: its exit, the operations it came to, the one that was hit, what it acknowledged."""

    status: int
    is_killed: bool
    points: tuple[Point, ...]
    hit: Point | None
    acknowledged: tuple[Any, ...]
    told: str


def in_child(
    act: Callable[[Callable[[Any], None]], None],
    scratch: Path,
    *,
    at: int = -1,
    fault: str = KILL,
    lasting: bool = False,
) -> Outcome:
    """Run `act(acknowledge)` in a forked process with one fault in it."""
    scratch.mkdir(parents=True, exist_ok=True)
    operations, acks, told = scratch / "operations", scratch / "acks", scratch / "told"
    for path in (operations, acks, told):
        path.unlink(missing_ok=True)
        path.touch()
    pid = os.fork()
    if pid == 0:
        status = BROKE
        try:
            injector = Injector(operations, at=at, fault=fault, lasting=lasting)
            acks_fd = os.open(acks, os.O_WRONLY | os.O_APPEND)

            def acknowledge(what: Any) -> None:
                os.write(acks_fd, json.dumps(what).encode() + b"\n")

            with seam(injector):
                act(acknowledge)
            status = FINISHED
        except BegatError as error:
            told.write_text(f"{type(error).__name__}: {error}")
            status = REFUSED
        except BaseException:  # noqa: BLE001 - the child must end here, and tells its parent
            told.write_text(traceback.format_exc())
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    rows = [json.loads(line) for line in operations.read_text().splitlines()]
    points = tuple(Point(*row[:3]) for row in rows)
    return Outcome(
        os.waitstatus_to_exitcode(status),
        os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        points,
        next((point for point, row in zip(points, rows, strict=True) if row[3]), None),
        tuple(json.loads(line) for line in acks.read_text().splitlines()),
        told.read_text(),
    )
