"""Threads for one piece of work: results as asked for, no thread before there is enough to do, none left behind."""

import os
import signal
import threading
import time

import pytest

from begat.pool import Pool


def begat_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("begat-pool")]


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_each_task_is_done_once_and_gives_its_own_result(threads: int) -> None:
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return number * number

    with Pool(threads) as pool:
        pool.start()
        tasks = [pool.submit(lambda n=n: work(n)) for n in range(200)]
        assert [task.result() for task in tasks] == [n * n for n in range(200)]
    assert sorted(done) == list(range(200))


def test_there_is_no_thread_before_the_start_and_none_after_the_end() -> None:
    with Pool(2) as pool:
        assert pool.submit(threading.current_thread).result() is threading.current_thread()
        assert begat_threads() == []
        pool.start()
        pool.start()
        assert len(begat_threads()) == 2
        assert pool.ahead == 3  # one that waits, so that no thread does
    assert begat_threads() == []


def test_several_tasks_are_at_work_at_the_same_time() -> None:
    together = threading.Barrier(3)
    with Pool(2) as pool:
        pool.start()
        tasks = [pool.submit(lambda: together.wait(30)) for _ in range(3)]
        assert sorted(task.result() for task in tasks) == [0, 1, 2]


def test_an_error_is_told_to_whoever_asks_for_its_result() -> None:
    def fail() -> None:
        raise ValueError("of the task")

    with Pool(2) as pool:
        pool.start()
        bad, good = pool.submit(fail), pool.submit(lambda: 1)
        assert good.result() == 1
        with pytest.raises(ValueError, match="of the task"):
            bad.result()


def test_what_has_not_begun_when_the_block_ends_is_dropped() -> None:
    done: list[int] = []
    is_over = threading.Event()

    def work(number: int) -> None:
        done.append(number)
        is_over.wait(30)

    with Pool(1) as pool:
        pool.start()
        for number in range(50):
            pool.submit(lambda n=number: work(n))
        while not done:
            time.sleep(0.001)
        threading.Timer(0.1, is_over.set).start()
    assert done == [0]


@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_ends_the_caller_wherever_it_is(threads: int) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Pool(threads) as pool:
        pool.start()

        def slow() -> None:
            while not pool.is_stopping and time.monotonic() < began + 20:
                time.sleep(0.01)

        tasks = [pool.submit(slow) for _ in range(3)]
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        for task in tasks:
            task.result()
    assert time.monotonic() - began < 10
    assert begat_threads() == []


def test_where_no_thread_can_be_made_the_caller_does_it_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")  # as from 3.12 on

    monkeypatch.setattr(threading.Thread, "start", start)
    with Pool(2) as pool:
        pool.start()
        assert pool.ahead == 0
        tasks = [pool.submit(lambda n=n: n) for n in range(5)]
        assert [task.result() for task in tasks] == list(range(5))
