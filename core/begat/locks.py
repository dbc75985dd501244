"""Who may write and who may collect garbage, among all processes of one machine.

    writer   gate shared -> writer shared -> gate released     as many as like
    gc       gc exclusive, then for each slice:
             gate exclusive -> writer exclusive                alone

A writer holds `writer.lock` from its first look-up to its commit, so that gc never removes what is about to be named.
The gate keeps gc from starving: while gc holds it no new writer comes in, and those inside finish. They may be slow,
so gc opens the gate again after ten seconds and tries later.

Every lock is a `flock` of an open file: it ends when its holder closes it or dies, and never by a clock. Each holder
has a descriptor of its own. A process that was forked holds none of its parent's locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
import time
from collections.abc import Generator
from contextvars import ContextVar
from pathlib import Path
from typing import Literal

import msgspec

from begat.errors import (
    AccessDenied,
    CatalogBusy,
    ReadOnly,
    Refused,
    StoreUnavailable,
    warn,
)
from begat.files import make_directory, open_lock, told_as, translated

if sys.platform != "win32":
    import fcntl

__all__ = ["FileLock", "Slice", "StoreLocks", "SweepLock", "WriterLock"]

SLICE_S = 2.0
CLOSED_AT_MOST_S = 10.0
WARN_AFTER_S = 30.0
# Waiting is asking again and again, because a blocking flock knows neither a deadline nor fairness.
_FIRST_SLEEP_S = 0.001
_LONGEST_SLEEP_S = 0.050
# Between two slices the gate stands open long enough for every waiting writer to ask again.
_OPEN_AT_LEAST_S = 2 * _LONGEST_SLEEP_S

_NOT_SUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


class WriterLock:
    """The right to add to the store, held until its block ends."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    @property
    def is_held(self) -> bool:
        """False once the block ended, and in a child process forked inside it."""
        return self._lock.is_held

    def check(self) -> None:
        """Raise `StoreUnavailable` unless the lock is held: to be called right before a commit."""
        self._lock.check()


class Slice:
    """A short time alone in the store: no writer is inside, none comes in."""

    def __init__(self, lock: FileLock, *, ends_at_s: float) -> None:
        self._lock = lock
        self._ends_at_s = ends_at_s

    @property
    def is_over(self) -> bool:
        """True when the agreed time has passed and waiting writers should be let in; the lock is still held."""
        return time.monotonic() >= self._ends_at_s

    def check(self) -> None:
        """Raise `StoreUnavailable` unless the lock is held: to be called right before a commit."""
        self._lock.check()


class SweepLock:
    """The right to be the one gc of a store; `exclusive` keeps the writers out while something is removed."""

    def __init__(self, place: _Place, lock: FileLock, *, wait_s: float) -> None:
        self._place = place
        self._lock = lock
        self._wait_s = wait_s
        self._reopened_at_s = float("-inf")

    @contextlib.contextmanager
    def exclusive(self, *, slice_s: float = SLICE_S) -> Generator[Slice]:
        """Alone in the store for about `slice_s` seconds; each slice may wait `wait_s` for its turn.

        Nothing ends a slice but its block: ask `Slice.is_over` between two pieces of work.

        Raises `CatalogBusy` naming the writers that stayed longer, `Refused` inside a writing block.
        """
        self._lock.check()
        _refuse_inside_a_block(self._place, "a slice of garbage collection")
        time.sleep(max(0.0, self._reopened_at_s + _OPEN_AT_LEAST_S - time.monotonic()))
        gate, writer = FileLock(self._place.gate), FileLock(self._place.writer)
        try:
            self._keep_writers_out(gate, writer)
            with _marked(self._place, writer, "slice"):
                yield Slice(writer, ends_at_s=time.monotonic() + slice_s)
        finally:
            writer.release()
            gate.release()
            self._reopened_at_s = time.monotonic()

    def _keep_writers_out(self, gate: FileLock, writer: FileLock) -> None:
        deadline_s = time.monotonic() + self._wait_s
        closed_at_most_s = self._place.closed_at_most_s
        while gate.acquire("exclusive", deadline_s=deadline_s, longest_sleep_s=_FIRST_SLEEP_S):
            closed_until_s = min(deadline_s, time.monotonic() + closed_at_most_s)
            if writer.acquire("exclusive", deadline_s=closed_until_s):
                return
            gate.release()
            # As long open as it was closed: a writer that takes an hour costs the others half of their time at most.
            time.sleep(max(0.0, min(closed_at_most_s, deadline_s - time.monotonic())))
            if time.monotonic() >= deadline_s:
                break
        raise CatalogBusy(
            f"garbage collection must be alone in the store, and after {self._wait_s:g} s others still write: "
            f"{_holders(self._place.writer, self._place.gate)}. Nothing was changed in this step; try again when they "
            "are done, or wait longer (begat gc --wait 600)"
        )


class StoreLocks:
    """The locks of one store, as three files in `folder` (made when first needed): gc, gate and writer."""

    def __init__(self, folder: Path, *, closed_at_most_s: float = CLOSED_AT_MOST_S) -> None:
        self._place = _Place(Path(os.path.realpath(folder)), closed_at_most_s)

    @contextlib.contextmanager
    def writing(self) -> Generator[WriterLock]:
        """The right to add to the store, shared with other writers; waits while gc is at work.

        A block inside another one of the same thread does not wait at the gate: gc, which waits for the outer block,
        would keep the inner one from ever ending it.

        Raises `ReadOnly` where nothing can be written, `StoreUnavailable` where locks do not work, `Refused` inside
        a slice of gc.
        """
        if _is_inside(self._place, "slice"):
            raise Refused(
                "nothing can be logged while garbage collection holds the store for itself; nothing was changed. "
                "Log before or after it"
            )
        writer = FileLock(self._place.writer)
        try:
            if _is_inside(self._place, "writing"):
                writer.acquire("shared")
            else:
                self._pass_the_gate(writer)
            with _marked(self._place, writer, "writing"):
                yield WriterLock(writer)
        finally:
            writer.release()

    @contextlib.contextmanager
    def sweeping(self, *, wait_s: float) -> Generator[SweepLock]:
        """The right to be the one gc of the store, after at most `wait_s` seconds; writers are not kept out yet.

        Raises `CatalogBusy` naming the other gc, `ReadOnly` where nothing can be written, `StoreUnavailable` where
        locks do not work, `Refused` inside a writing block, which gc would wait for.
        """
        _refuse_inside_a_block(self._place, "garbage collection")
        lock = FileLock(self._place.gc)
        try:
            if not lock.acquire("exclusive", deadline_s=time.monotonic() + wait_s):
                raise CatalogBusy(
                    f"another garbage collection is at work on this store ({_holders(self._place.gc)}). "
                    "Nothing was changed; try again when it is done"
                )
            yield SweepLock(self._place, lock, wait_s=wait_s)
        finally:
            lock.release()

    def _pass_the_gate(self, writer: FileLock) -> None:
        gate = FileLock(self._place.gate)
        try:
            if not gate.acquire("shared", deadline_s=time.monotonic() + WARN_AFTER_S):
                warn(
                    f"waiting since {WARN_AFTER_S:g} s for garbage collection to let writers in "
                    f"({_holders(self._place.gate)}); nothing is lost, and work goes on when it does"
                )
                gate.acquire("shared")
            writer.acquire("shared")
        finally:
            gate.release()


# --- blocks: what the calling thread holds, for calls made inside ---

_BlockKind = Literal["writing", "slice"]


class _Place(msgspec.Struct, frozen=True):
    """The lock files of one store; `folder` without links, so that two handles of a store know each other's blocks."""

    folder: Path
    closed_at_most_s: float

    @property
    def gc(self) -> Path:
        return self.folder / "gc.lock"

    @property
    def gate(self) -> Path:
        return self.folder / "gate.lock"

    @property
    def writer(self) -> Path:
        return self.folder / "writer.lock"


class _Block(msgspec.Struct, frozen=True):
    folder: Path
    kind: _BlockKind
    thread: int
    lock: FileLock


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("begat_blocks", default=())


@contextlib.contextmanager
def _marked(place: _Place, lock: FileLock, kind: _BlockKind) -> Generator[None]:
    """Remember, for calls made inside, that this thread holds `lock`."""
    before = _blocks.get()
    _blocks.set((*before, _Block(place.folder, kind, threading.get_ident(), lock)))
    try:
        yield
    finally:
        # Not a token's reset(): a generator may be closed in another context than the one it was started in.
        _blocks.set(before)


def _is_inside(place: _Place, kind: _BlockKind) -> bool:
    # Contexts are copied into tasks and, by asyncio.to_thread, into other threads, and they survive a fork; so only a
    # lock that is still held, and by this thread, counts.
    return any(
        block.kind == kind
        and block.folder == place.folder
        and block.thread == threading.get_ident()
        and block.lock.is_held
        for block in _blocks.get()
    )


def _refuse_inside_a_block(place: _Place, what: str) -> None:
    """Raise `Refused` if this thread is inside a block that `what` would wait for."""
    if _is_inside(place, "writing"):
        raise Refused(
            f"{what} cannot start while the same thread logs: each would wait for the other. "
            "Nothing was changed; run it after the log has returned"
        )
    if _is_inside(place, "slice"):
        raise Refused(
            f"{what} cannot start inside a slice of garbage collection: it would wait for itself. "
            "Nothing was changed"
        )


# --- one lock of one holder ---


class FileLock:
    """A flock on a descriptor of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_held = False
        self._fd = -1

    def acquire(
        self,
        mode: Literal["shared", "exclusive"],
        *,
        deadline_s: float = float("inf"),
        longest_sleep_s: float = _LONGEST_SLEEP_S,
    ) -> bool:
        """True once the lock is held; False if it could not be had until `deadline_s` (of `time.monotonic`).

        Asks at least once. Between two attempts it sleeps, so that Ctrl-C ends the wait.
        """
        self._open()
        sleep_s = _FIRST_SLEEP_S
        while not self._try(mode):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            time.sleep(min(sleep_s, left_s))
            sleep_s = min(2 * sleep_s, longest_sleep_s)
        return True

    def release(self) -> None:
        """Free the lock; nothing happens if it is not held (any more)."""
        with _opening:
            fd, self._fd, self.is_held = self._fd, -1, False
            if fd < 0:
                return
            _open_locks.discard(self)
            # Closing alone would leave the lock with a child that is between its fork and its exec, or that was
            # forked by a library without Python's hooks: it has a copy of the descriptor.
            if sys.platform != "win32":
                with contextlib.suppress(OSError):
                    fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def forget(self) -> None:
        """Close the descriptor in a forked child. To unlock it would free the parent's lock: both share it."""
        fd, self._fd, self.is_held = self._fd, -1, False
        if fd >= 0:
            # Whatever goes wrong here, the child must come to the end of its hook.
            with contextlib.suppress(OSError):
                os.close(fd)

    def check(self) -> None:
        """Raise `StoreUnavailable` unless the lock is held."""
        if not self.is_held:
            raise StoreUnavailable(
                f"the lock {self.path} is not held any more: its block ended, or this process was forked inside it. "
                "Nothing was changed; start again in this process"
            )

    def _open(self) -> None:
        if self._fd >= 0:
            return
        with _opening:
            try:
                with told_as(f"opening the lock {self.path}"):
                    self._fd = _descriptor(self.path)
            except AccessDenied as error:
                raise ReadOnly(
                    f"this user may not write here: {error} (reading a store needs no lock)"
                ) from error
            _open_locks.add(self)

    def _try(self, mode: Literal["shared", "exclusive"]) -> bool:
        if sys.platform == "win32":
            raise StoreUnavailable(
                "locks of a local store are not supported on this platform yet, so it is not written; nothing was "
                "changed. Use a store on PostgreSQL, or WSL"
            )
        how = fcntl.LOCK_SH if mode == "shared" else fcntl.LOCK_EX
        try:
            fcntl.flock(self._fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise translated(error, f"locking {self.path}") from error
            raise StoreUnavailable(
                f"the file system of {self.path} does not support locks ({error.strerror}), so the store is not "
                "written and nothing was changed. Put the store's folder on a local disk (its objects may stay on a "
                "network file system), or use PostgreSQL for the catalog"
            ) from error
        self.is_held = True
        return True


def _descriptor(path: Path) -> int:
    try:
        return open_lock(path)
    except FileNotFoundError:
        make_directory(path.parent)
        return open_lock(path)


# Held while descriptors come and go and while the process forks, so that a child knows of all that it must close.
# Reentrant, because a signal handler may fork, or run while this thread is inside.
_opening = threading.RLock()
_open_locks: set[FileLock] = set()


def _forget_all() -> None:
    for lock in _open_locks:
        lock.forget()
    _open_locks.clear()
    _opening.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_opening.acquire,
        after_in_parent=_opening.release,
        after_in_child=_forget_all,
    )


# --- naming the holders, for messages ---


def _holders(*paths: Path) -> str:
    """`pid 812 (python train.py)` for each process that holds one of these locks, where the system tells."""
    pids = {pid for path in paths for pid in _holding_pids(path)}
    if not pids:
        return "a process that this system does not name"
    return ", ".join(_process(pid) for pid in sorted(pids))


def _holding_pids(path: Path) -> set[int]:
    # A line of /proc/locks (Linux): "3: FLOCK  ADVISORY  READ 5931 fe:00:2146630 0 EOF", numbers of the device in hex.
    try:
        found = os.stat(path)
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return set()
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    exactly: set[int] = set()
    anywhere: set[int] = set()
    for fields in map(str.split, lines):
        # A waiting request has "->" as its second field; a holder outside of this container has the pid 0.
        if len(fields) < 6 or fields[1] != "FLOCK" or fields[4] == "0":
            continue
        where, _, inode = fields[5].rpartition(":")
        if inode == str(found.st_ino):
            anywhere.add(int(fields[4]))
            if where == device:
                exactly.add(int(fields[4]))
    # Btrfs and overlays show another device number in stat than here.
    return exactly or anywhere


def _process(pid: int) -> str:
    if pid == os.getpid():
        return f"pid {pid} (this process)"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return f"pid {pid}"
    # Only the program and its script: other arguments may hold secrets.
    script = next((os.path.basename(word) for word in words[1:] if word.endswith(".py")), "")
    shown = " ".join(filter(None, (os.path.basename(words[0]), script)))
    return f"pid {pid} ({shown})" if shown else f"pid {pid}"
