"""A few threads for one piece of work: made when there is enough to do, and gone when it is over.

Whoever asks for the result of a task that nobody has begun does it, so nothing depends on the threads: without them
(one core, little to do, an interpreter that is ending and starts no thread any more) the caller does it all, in the
same order. It does not do others while it waits: two threads that make many short calls each are no faster than one,
since only one at a time runs Python, and whoever waits will soon have something else to do.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from begat.threads import cores

T = TypeVar("T")

# Memory is taken by each; a disk, or the memory bus, is busy before this many cores are.
MOST_THREADS = 8


class Pool:
    """Threads beside the caller's own, for one piece of work that no fork interrupts; none before `start`.

    Tasks begin in the order in which they were handed in. Leaving the `with` block drops those that have not begun,
    and waits for the others.
    """

    def __init__(self, threads: int | None = None) -> None:
        # The caller is one of those that work.
        self._size = min(cores(), MOST_THREADS) - 1 if threads is None else threads
        self._tasks: queue.SimpleQueue[Task[object] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._is_started = False
        self.is_stopping = False
        """Whether results are no longer wanted: long tasks look at this now and then."""

    @property
    def ahead(self) -> int:
        """How many tasks to hand in before the result of the first is asked for, so that no thread waits for one."""
        return len(self._threads) + 1 if self._threads else 0

    def start(self) -> None:
        """There is enough to do for threads. Called again, it does nothing."""
        if self._is_started:
            return
        self._is_started = True
        for _ in range(self._size):
            # A daemon: should the caller's thread be one and stand still, the interpreter can end all the same.
            thread = threading.Thread(target=self._work, name="begat-pool", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is ending, or the system has no thread left
                return
            self._threads.append(thread)

    def submit(self, work: Callable[[], T]) -> Task[T]:
        """Hand in a task; its result may be asked for once there are enough of them."""
        task = Task(work)
        self._tasks.put(cast("Task[object]", task))
        return task

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if not self.is_stopping:
                with contextlib.suppress(BaseException):
                    task.run()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.is_stopping = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()


class Task(Generic[T]):
    """What a `Pool` was asked to do, once."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._is_taken = threading.Lock()
        self._is_done = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, unless somebody else has begun it."""
        if not self._is_taken.acquire(blocking=False):
            return
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise  # Ctrl-C: the caller stops now, and not when it comes to this result
        finally:
            self._is_done.set()

    def result(self) -> T:
        """What the task gave, or the error that it raised."""
        self.run()
        self._is_done.wait()
        if self._error is not None:
            raise self._error
        return cast("T", self._value)
