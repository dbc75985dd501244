"""Threads that last as long as one call: all work done, the first error told, nothing left behind."""

import contextlib
import os
import threading
import time
from collections.abc import Generator, Iterator

import pytest

from begat import threads
from begat.threads import ahead, check, each


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_items_are_worked_on_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def meet(_item: int) -> None:
        both.wait(timeout=30)

    each([1, 2], meet, most=2)
    assert not both.broken


def test_every_item_is_worked_on_once() -> None:
    done: list[int] = []
    each(range(1000), done.append, most=4)
    assert sorted(done) == list(range(1000))
    each([], done.append)
    assert len(done) == 1000


def test_one_item_needs_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 8)
    seen: list[threading.Thread] = []
    each([1], lambda _: seen.append(threading.current_thread()))
    assert seen == [threading.current_thread()]


def test_the_error_of_the_first_item_is_raised_and_no_other_item_is_begun() -> None:
    begun: list[int] = []
    both = threading.Barrier(2)

    def fail(item: int) -> None:
        begun.append(item)
        if item < 2:
            both.wait(timeout=30)
            time.sleep(0.05 * (1 - item))  # the second fails first
            raise ValueError(item)

    with pytest.raises(ValueError, match=r"^0$"):
        each(range(100), fail, most=2)
    assert len(begun) < 5


def test_only_items_after_the_one_with_an_error_are_stopped() -> None:
    ended: list[int] = []
    all_three = threading.Barrier(3)

    def work(item: int) -> None:
        all_three.wait(timeout=30)
        if item == 1:
            raise ValueError(item)
        for _ in range(50):
            check()
            time.sleep(0.002)
        ended.append(item)

    with pytest.raises(ValueError, match=r"^1$"):
        each(range(3), work, most=3)
    assert ended == [0]


def test_an_item_inside_another_is_stopped_with_it() -> None:
    both = threading.Barrier(2)
    ended: list[int] = []

    def inner(item: int) -> None:
        check()
        time.sleep(0.002)
        ended.append(item)

    def outer(item: int) -> None:
        both.wait(timeout=30)
        if item == 0:
            raise ValueError(item)
        each(range(1000), inner, most=1)

    with pytest.raises(ValueError, match=r"^0$"):
        each(range(2), outer, most=2)
    assert len(ended) < 1000


def test_an_interrupt_ends_all_threads_and_wins_over_errors() -> None:
    both = threading.Barrier(2)

    def interrupt(item: int) -> None:
        both.wait(timeout=30)
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        time.sleep(0.05)
        raise ValueError(item)

    with pytest.raises(KeyboardInterrupt):
        each(range(2), interrupt, most=2)


def test_where_no_thread_can_be_started_the_caller_does_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    each(range(10), done.append, most=4)
    assert done == list(range(10))
    assert list(ahead((number for number in range(10)), 2)) == list(range(10))


def test_a_child_that_is_forked_meanwhile_has_threads_of_its_own() -> None:
    children: list[int] = []

    def fork(item: int) -> None:
        if item == 0:
            pid = os.fork()
            if pid == 0:
                done: list[int] = []
                each(range(100), done.append, most=3)
                os._exit(0 if sorted(done) == list(range(100)) else 1)
            children.append(pid)
        time.sleep(0.01)

    each(range(8), fork, most=3)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0]


def test_items_are_made_ahead_but_not_without_bound() -> None:
    made: list[int] = []

    def make() -> Generator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with contextlib.closing(ahead(make(), 3)) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 30
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert 4 <= len(made) <= 6
        assert list(items) == list(range(1, 100))


def test_an_error_of_whoever_makes_the_items_is_raised_where_they_are_taken() -> None:
    def make() -> Generator[int]:
        yield 1
        raise ValueError("no more")

    items = ahead(make(), 3)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_whoever_stops_taking_ends_the_thread() -> None:
    def endless() -> Generator[int]:
        while True:
            yield 1

    made = endless()
    with contextlib.closing(ahead(made, 2)) as items:
        assert next(items) == 1
    with pytest.raises(StopIteration):  # it was closed
        next(made)
