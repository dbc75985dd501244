"""How long work says how far it is: a Protocol, a silent default, and the one that listens now.

Work deep below reports to `current()`, so that no call in between has to pass anything along. The terminal's own
progress belongs to the command line, which puts it in place with `using`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from contextvars import ContextVar
from typing import Protocol


class Progress(Protocol):
    """Somebody who wants to know how far long work is; methods may be called from several threads at once."""

    def start(self, what: str, total_bytes: int | None, total_files: int | None) -> None:
        """Work begins ("storing digits"); None where a total is not known. A second `start` replaces the first."""
        ...

    def advance(self, bytes: int = 0, files: int = 0) -> None:
        """So many more bytes and files are done."""
        ...

    def finish(self) -> None:
        """The work is over, well or not; called once for each `start`."""
        ...


class Silent:
    """Listens to nothing."""

    def start(self, what: str, total_bytes: int | None, total_files: int | None) -> None:
        """Do nothing."""

    def advance(self, bytes: int = 0, files: int = 0) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


SILENT: Progress = Silent()

_listener: ContextVar[Progress] = ContextVar("begat_progress", default=SILENT)


def current() -> Progress:
    """Who listens in this context: `SILENT` unless `using` says otherwise.

    A worker thread starts with an empty context: take `current()` before it starts, and hand it over.
    """
    return _listener.get()


@contextlib.contextmanager
def using(progress: Progress) -> Generator[Progress]:
    """Inside the block, long work of this context reports to `progress`."""
    token = _listener.set(progress)
    try:
        yield progress
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def reporting(
    what: str, total_bytes: int | None = None, *, total_files: int | None = None
) -> Generator[Progress]:
    """Start a piece of work with whoever listens, and finish it whatever happens inside the block.

    Work inside other work (a checkout that reads packs) adds to what was started first: only the outermost of a
    context starts and finishes.
    """
    progress = current()
    if progress is SILENT or isinstance(progress, _Started):
        yield progress
        return
    progress.start(what, total_bytes, total_files)
    try:
        with using(_Started(progress)) as started:
            yield started
    finally:
        progress.finish()


class Portion:
    """One file of many, which tells of its bytes as they are done, and of what is left when it is complete."""

    def __init__(self, progress: Progress, size_bytes: int) -> None:
        self._progress = progress
        self._left = size_bytes
        self._lock = threading.Lock()

    def tell(self, size_bytes: int) -> None:
        """So many bytes more; those that are done twice, since something was wrong with the first try, count once."""
        with self._lock:
            size_bytes = min(size_bytes, self._left)
            self._left -= size_bytes
        if size_bytes:
            self._progress.advance(bytes=size_bytes)

    def complete(self) -> None:
        """The file is done."""
        self._progress.advance(bytes=self._left, files=1)
        self._left = 0


class _Started:
    """Passes steps on, one thread at a time, so that a listener needs no lock of its own."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()

    def start(self, what: str, total_bytes: int | None, total_files: int | None) -> None:
        """Nothing: the outer work has started already."""

    def advance(self, bytes: int = 0, files: int = 0) -> None:
        """Pass the step on."""
        with self._lock:
            self._progress.advance(bytes, files)

    def finish(self) -> None:
        """Nothing: the outer work goes on."""
