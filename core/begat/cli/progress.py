"""How far long work is, on the terminal: bytes, files, rate and time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from begat.progress import using
from begat.wording import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Work that is over before anybody could read the line shows none, and does not load rich for it.
SILENT_S = 0.5


class Bar:
    """Draws the work it is told of on stderr; the line disappears when the work is over."""

    def __init__(self) -> None:
        self._drawn: Progress | None = None
        self._task: TaskID | None = None
        self._begin("", None, None)

    def start(self, what: str, total_bytes: int | None, total_files: int | None) -> None:
        """Work begins; nothing is drawn yet."""
        self.finish()
        self._begin(what, total_bytes, total_files)

    def advance(self, bytes: int = 0, files: int = 0) -> None:
        """So many more bytes and files are done."""
        self._bytes += bytes
        self._files += files
        if self._drawn is None and time.monotonic() - self._started_s >= SILENT_S:
            self._draw()
        if self._drawn is not None and self._task is not None:
            self._drawn.update(self._task, completed=self._bytes, files=self._files_text())

    def finish(self) -> None:
        """The work is over: the line goes."""
        if self._drawn is not None:
            self._drawn.stop()
            self._drawn = None

    def _begin(self, what: str, total_bytes: int | None, total_files: int | None) -> None:
        self._what = printable(what)
        self._total_bytes, self._total_files = total_bytes, total_files
        self._bytes = self._files = 0
        self._started_s = time.monotonic()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._drawn = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[files]}", markup=False),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._drawn.add_task(
            self._what,
            total=self._total_bytes,
            completed=self._bytes,
            files=self._files_text(),
        )
        self._drawn.start()

    def _files_text(self) -> str:
        if self._total_files is None:
            return f"{self._files:,} files"
        return f"{self._files:,}/{self._total_files:,} files"


@contextlib.contextmanager
def shown(*, quiet: bool) -> Generator[None]:
    """Long work inside the block is shown on stderr, if that is a terminal and nobody asked for quiet."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    bar = Bar()
    try:
        with using(bar):
            yield
    finally:
        bar.finish()
