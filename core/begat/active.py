"""Which run is active: the runs of this process that have not ended, in which order, and how they end with it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from begat.errors import BegatError
from begat.model import RunStatus

if TYPE_CHECKING:
    from begat.run import Run

RUN_ID_VARIABLE = "BEGAT_RUN_ID"
HEARTBEAT_S = 60.0

_enclosing: ContextVar[Run | None] = ContextVar("begat_enclosing_run", default=None)
# Oldest first, each with what BEGAT_RUN_ID said before it was started.
_open: list[tuple[Run, str | None]] = []
_lock = threading.RLock()


def active_run() -> Run | None:
    """The run of the surrounding `with`, else the newest open run of this process, else None.

    Threads do not inherit the `with` of the thread that started them; the newest open run is what they find.
    """
    found = open_runs()
    return enclosing_run() or (found[-1] if found else None)


def enclosing_run() -> Run | None:
    """The open run whose `with` block we are in, in this context; a run that is started now is its child."""
    run = _enclosing.get()
    return run if run is not None and run in open_runs() else None


def open_runs() -> tuple[Run, ...]:
    """The runs of this process that have not ended, oldest first."""
    with _lock:
        return tuple(run for run, _ in _open)


def opened(run: Run) -> None:
    """Make a run that was just started or joined the newest open one, and tell child processes of it."""
    with _lock:
        _open.append((run, os.environ.get(RUN_ID_VARIABLE)))
        if run.id:
            os.environ[RUN_ID_VARIABLE] = run.id
    _Heart.start()


def closed(run: Run) -> None:
    """Take a run that ends out of the open ones; child processes are told of the one before it again."""
    with _lock:
        at = next((at for at, (one, _) in enumerate(_open) if one is run), None)
        if at is None:
            return
        _, before = _open.pop(at)
        if os.environ.get(RUN_ID_VARIABLE) == run.id:
            if before is None:
                del os.environ[RUN_ID_VARIABLE]
            else:
                os.environ[RUN_ID_VARIABLE] = before


def enter(run: Run) -> Token[Run | None]:
    """Begin the `with` block of a run."""
    return _enclosing.set(run)


def leave(token: Token[Run | None]) -> None:
    """End a `with` block; that of a generator may end in another context, where there is nothing to undo."""
    with contextlib.suppress(ValueError):
        _enclosing.reset(token)


def outcome(error: BaseException | None) -> tuple[RunStatus, BaseException | None]:
    """How a run ends when this leaves its block: status, and the error to be told."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished", None
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", error
    return "failed", error


class _Heart:
    """One thread that says, once a minute, that this process's runs go on; other hosts cannot see more."""

    thread: threading.Thread | None = None

    @classmethod
    def start(cls) -> None:
        if cls.thread is None or not cls.thread.is_alive():
            cls.thread = threading.Thread(target=cls._beat, name="begat-heartbeat", daemon=True)
            # From Python 3.12 on no thread starts while the interpreter ends; such a run needs no heart.
            with contextlib.suppress(RuntimeError):
                cls.thread.start()

    @classmethod
    def _beat(cls) -> None:
        pause = threading.Event()
        while not pause.wait(HEARTBEAT_S):
            for run in open_runs():
                with contextlib.suppress(BegatError):  # the next one may get through
                    run.heartbeat()


def end_open_runs() -> None:
    """At exit: runs that nobody finished end with the process, by how it ends as far as Python tells."""
    error = getattr(sys, "last_value", None)
    status, told = outcome(error if isinstance(error, BaseException) else None)
    for run in reversed(open_runs()):
        with contextlib.suppress(BegatError):
            run.finish(status, error=told)


def _start_anew_in_child() -> None:
    # A forked child is part of its parent's runs: it may log into them, but their end is the parent's affair.
    global _lock
    _lock = threading.RLock()  # another thread of the parent may have held it
    _Heart.thread = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_in_child)
