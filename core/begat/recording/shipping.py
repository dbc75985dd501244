"""The worker behind a recorder: one thread that stores what was staged, in order, while training goes on.

A plain daemon thread and not an executor, because it must also work while the interpreter ends: where no thread can
be started any more, `drain` does the work itself. What is not done when the process ends stays in the journal.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from begat.errors import BegatError, StoreFull
from begat.recording.journal import carry_out, may_succeed_later, sync
from begat.recording.staging import STAGING, Journal, Staged, Step
from begat.store import Store

IDLE_S = 5.0
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 60.0
# While the end of a training waits, a store that does not answer is tried this often; `begat sync` does the rest.
TRIES_AT_THE_END = 2
ROOM_WAIT_S = 60.0
SHARE_OF_FREE_SPACE = 0.1
# What may become of a step, as it is told.
WAITS = "waits to be stored"
LOST = "could not be stored and is lost"


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What became of what was taken in: versions stored, in words what still waits, and what is lost."""

    shipped: int = 0
    pending: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


class Shipping:
    """Steps on their way into the store. `tell` is called from the worker's thread: of what, what became of it, why."""

    def __init__(self, store: Store, *, tell: Callable[[str, str, Exception], None]) -> None:
        self._store = store
        self._tell = tell
        self._journal: Journal | None = None
        self._queue: deque[Step] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_syncing = _has_leftovers(store)
        self._is_closing = False
        self._tries = 0
        self._shipped = 0
        self._failed: list[str] = []

    @property
    def journal(self) -> Journal:
        """The journal of this process, begun when it is first needed."""
        with self._changed:
            if self._journal is None:
                self._journal = Journal.begin(self._store.path / STAGING)
            return self._journal

    def start(self) -> None:
        """Begin with what a process that died has left, if any did."""
        if self._is_syncing:
            self._wake()

    def submit(self, step: Step) -> None:
        """Have a step done after those before it; it is in the journal already."""
        with self._changed:
            self._queue.append(step)
            self._wake()

    def is_waiting(self, token: str) -> bool:
        """Whether a version is not stored yet."""
        return any(step.id == token for step in list(self._queue))

    def make_room(self, size_bytes: int, *, max_pending: int) -> None:
        """Wait, for a minute at most, until so many bytes may be staged; `StoreFull` if they may not.

        They may while fewer than `max_pending` versions wait, or all together need less than a tenth of the free
        space: a slow store must not fill the disk that the training writes to.
        """
        deadline = time.monotonic() + ROOM_WAIT_S
        with self._changed:
            while problem := self._is_full(size_bytes, max_pending):
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._tries > 0:
                    raise StoreFull(problem)
                self._wake()
                self._changed.wait(min(left_s, 1.0))

    def drain(self, timeout_s: float) -> DrainReport:
        """Wait until all is stored, but not longer, and not for a store that does not answer."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            self._tries = 0
            self._wake()
            while self._queue and self._tries < TRIES_AT_THE_END:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                if self._thread is None:
                    self._step()
                else:
                    self._changed.wait(min(left_s, 1.0))
            pending = tuple(str(step) for step in self._queue if isinstance(step, Staged))
            return DrainReport(self._shipped, pending, tuple(self._failed))

    def close(self) -> None:
        """Let go of the journal when all is done; what this process does not get done is left to `begat sync`."""
        with self._changed:
            self._is_closing = True
            self._close_if_done()
            self._changed.notify_all()

    def _close_if_done(self) -> None:
        if self._is_closing and not self._queue and self._journal is not None:
            journal, self._journal = self._journal, None
            try:
                journal.close()
            except (BegatError, OSError):  # an empty folder stays behind; `begat sync` removes it
                pass

    # --- the thread ---

    def _wake(self) -> None:
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._go, name="begat-shipping", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is ending: `drain` does the work
                    self._thread = None
            self._changed.notify_all()

    def _go(self) -> None:
        if self._is_syncing:
            self._sync()
        with self._changed:
            while True:
                self._close_if_done()
                if not self._queue and (
                    self._is_closing or (not self._changed.wait(IDLE_S) and not self._queue)
                ):
                    self._thread = None
                    return
                if self._queue and not self._step():
                    pause_s = min(FIRST_PAUSE_S * 2**self._tries, LONGEST_PAUSE_S)
                    self._changed.wait(pause_s)

    def _step(self) -> bool:
        """Do the first step, the lock held but not while it works; False if it must be tried again."""
        step, journal = self._queue[0], self.journal
        self._changed.release()
        failure: Exception | None = None
        try:
            version = carry_out(step, journal, self._store)
        except Exception as error:  # noqa: BLE001 - a door: whatever it is, training goes on
            version, failure = None, error
        finally:
            self._changed.acquire()
        if failure is not None and may_succeed_later(failure):
            self._failed_for_now(step, journal, failure)
            return False
        self._queue.popleft()
        self._tries = 0
        if version is not None:
            self._shipped += 1
        if failure is not None:
            self._failed.append(f"{step}: {failure}")
            self._tell(str(step), LOST, failure)
            _give_up(step, journal, failure)
        self._changed.notify_all()
        return True

    def _failed_for_now(self, step: Step, journal: Journal, error: Exception) -> None:
        self._tries += 1
        self._changed.notify_all()
        if self._tries > 1:
            return
        self._tell(str(step), WAITS, error)
        waiting = [each for each in self._queue if isinstance(each, Staged)]
        self._changed.release()
        try:
            # Nobody knows how long: from now on it survives a restart of the machine too.
            for each in waiting:
                journal.seal(each)
        except (BegatError, OSError):  # it is tried again when it is shipped, and told then
            pass
        finally:
            self._changed.acquire()

    def _sync(self) -> None:
        self._is_syncing = False
        try:
            report = sync(self._store)
        except Exception as error:  # noqa: BLE001 - a door: this is not what the training waits for
            self._tell("what an earlier process left", WAITS, error)
            return
        for lost in report.lost:
            self._tell("what an earlier process had taken in", "is lost", BegatError(lost))

    def _is_full(self, size_bytes: int, max_pending: int) -> str:
        """Why no more may be staged now; empty if it may."""
        waiting = [step for step in self._queue if isinstance(step, Staged)]
        free_bytes = shutil.disk_usage(self._store.path).free
        total = size_bytes + sum(step.size_bytes for step in waiting)
        if total <= free_bytes * SHARE_OF_FREE_SPACE:
            return ""
        if len(waiting) < max_pending and size_bytes < free_bytes:
            return ""
        return (
            f"{len(waiting)} versions wait to be stored and {free_bytes} bytes are free, too few for another one of "
            f"{size_bytes} bytes; it was not taken in. What was stored before is safe; free some space"
        )


def _give_up(step: Step, journal: Journal, error: Exception) -> None:
    try:
        journal.lost(step, str(error))
    except (BegatError, OSError):  # the disk is full: `begat sync` comes to the same end
        pass


def _has_leftovers(store: Store) -> bool:
    folder: Path = store.path / STAGING
    try:
        return any(not name.startswith(".") for name in os.listdir(folder))
    except OSError:
        return False
