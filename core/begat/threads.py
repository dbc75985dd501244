"""Work on several threads for as long as one call lasts.

No thread outlives the call that started it, so there is none to lose in a fork and none to wait for at exit; where the
interpreter starts no thread any more (it is ending), the caller's own does all the work.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

import msgspec

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """How many threads can run at once in this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(items: Iterable[T], work: Callable[[T], None], *, most: int | None = None) -> None:
    """Do `work` for every item on up to `most` threads (one a core), this one among them.

    Items are begun in order. After an error no other item is begun, those after it end at their next `check`, and when
    all threads have ended, the error of the first item that had one is raised, as if one thread had done all in order.
    Ctrl-C stops all of them likewise.
    """
    crew = _Crew(iter(items), work)
    helpers: list[threading.Thread] = []
    try:
        for _ in range((cores() if most is None else most) - 1):
            helper = _started(crew.run) if crew.has_several() else None
            if helper is None:
                break
            helpers.append(helper)
        crew.run()
    except BaseException:
        crew.stop()
        raise
    finally:
        _join(helpers, crew)
    crew.raise_first()


def gathered(items: Sequence[T], work: Callable[[T], R], *, most: int | None = None) -> list[R]:
    """What `work` gives for every item, in their order; done as by `each`."""
    given: dict[int, R] = {}

    def keep(numbered: tuple[int, T]) -> None:
        given[numbered[0]] = work(numbered[1])

    each(enumerate(items), keep, most=most)
    return [given[number] for number in range(len(items))]


def check() -> None:
    """End the item that this thread works on for `each`, if it is not wanted any more; called between its steps."""
    task = getattr(_here, "task", None)
    while task is not None:
        if task.at > task.crew.over_from:
            raise _StoppedError(task.crew)
        task = task.outer


def ahead(items: Generator[T], depth: int) -> Generator[T]:
    """The same items, made on a thread of their own up to `depth` ahead of whoever takes them.

    Close it (`contextlib.closing`) when not all were taken: before that returns the thread ends, and closes `items`.
    """
    made: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
    is_over = threading.Event()

    def make() -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    made.put((item, None, False))
                    if is_over.is_set():
                        return
            made.put((None, None, True))
        except BaseException as error:  # noqa: BLE001  # it is raised where the items are taken
            made.put((None, error, True))

    helper = _started(make)
    if helper is None:
        with contextlib.closing(items):
            yield from items
        return
    try:
        while True:
            item, error, is_last = made.get()
            if error is not None:
                raise error
            if is_last:
                return
            yield item  # pyright: ignore[reportReturnType]  # None only with an error, or at the end
    finally:
        is_over.set()
        while helper.is_alive():
            with contextlib.suppress(queue.Empty):  # it may wait for room
                made.get_nowait()
            helper.join(timeout=0.01)


class _StoppedError(BaseException):
    """Ends an item that is not wanted any more; never leaves `each`."""

    def __init__(self, crew: _Crew[Any]) -> None:
        self.crew = crew


class _Task(msgspec.Struct, frozen=True):
    """What a thread works on: the item with this number, inside the one that it worked on when that began."""

    crew: _Crew[Any]
    at: int
    outer: _Task | None


_here = threading.local()
_NONE_IS_OVER = sys.maxsize


class _Crew(Generic[T]):
    """What the threads of one `each` share."""

    def __init__(self, items: Iterator[T], work: Callable[[T], None]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._items = enumerate(items)
        self._waiting = deque(islice(self._items, 2))
        self._errors: list[tuple[int, BaseException]] = []
        self.over_from = _NONE_IS_OVER
        """Items with a higher number are not wanted any more."""

    def has_several(self) -> bool:
        """Whether there is something for more than one thread."""
        return len(self._waiting) > 1

    def run(self) -> None:
        """Take items and work on them until none is left, or something went wrong."""
        outer = getattr(_here, "task", None)
        at = -1
        try:
            while True:
                with self._lock:
                    if self.over_from != _NONE_IS_OVER or not self._waiting:
                        return
                    at, item = self._waiting.popleft()
                    self._waiting.extend(islice(self._items, 1))
                _here.task = _Task(self, at, outer)
                check()
                self._work(item)
        except BaseException as error:  # noqa: BLE001  # `raise_first` raises it
            if isinstance(error, _StoppedError) and error.crew is self:
                return
            self._errors.append((at, error))
            self.over_from = min(self.over_from, at if isinstance(error, Exception) else -2)
        finally:
            _here.task = outer

    def stop(self) -> None:
        """No item is wanted any more."""
        self.over_from = -2

    def raise_first(self) -> None:
        """Raise what went wrong first, in the order of the items; an interrupt before any error."""
        if self._errors:
            _, error = min(self._errors, key=lambda one: (isinstance(one[1], Exception), one[0]))
            raise error


def _started(work: Callable[[], None]) -> threading.Thread | None:
    helper = threading.Thread(target=work, name="begat", daemon=True)
    try:
        helper.start()
    except RuntimeError:  # no more threads: a limit of the system, or the interpreter ends
        return None
    return helper


def _join(helpers: list[threading.Thread], crew: _Crew[Any]) -> None:
    interrupt: BaseException | None = None
    for helper in helpers:
        while helper.is_alive():
            try:
                helper.join()
            except KeyboardInterrupt as error:
                crew.stop()
                interrupt = error
    if interrupt is not None:
        raise interrupt
