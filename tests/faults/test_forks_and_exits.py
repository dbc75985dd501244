"""Forks, threads, spawned children and the end of a process: the store works on every side (invariant 9)."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import begat
from begat.locks import StoreLocks
from begat.opening import open_store
from begat.store import Store
from faults.races import finished, start

# More than a MiB, so that it is copied, mapped, hashed by several threads and kept as an object of its own.
LARGE = bytes(range(256)) * 8192


@pytest.fixture
def store() -> Store:
    """The default store of this test, with everything in it used once: engines, locks, cache, hash threads."""
    store = begat.open_store()
    version = store.log_artifact("data", LARGE)
    store.log_artifact("small", b"small")
    assert version.path.is_dir()
    assert version.read_bytes("data") == LARGE
    return store


def in_fork(work: Callable[[], None]) -> None:
    """Do it in a forked child and raise here if it failed there or took longer than a minute."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            # A hang of the child is the child's end, and so a failure here.
            threading.Timer(60, os._exit, (3,)).start()
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the child ends here
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def run(script: str, *args: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- forks ---


def test_both_sides_of_a_fork_log_and_read_with_the_handle_from_before(store: Store) -> None:
    def child() -> None:
        assert store.get_artifact("data").read_bytes("data") == LARGE
        assert store.log_artifact("small", b"of the child").ref == "small:v2"

    in_fork(child)
    assert store.get_artifact("small").read_bytes("small") == b"of the child"
    assert store.log_artifact("small", b"of the parent").ref == "small:v3"
    assert store.verify().is_sound


def test_both_sides_of_a_fork_log_at_the_same_time(store: Store, tmp_path: Path) -> None:
    def work(_: Store, tell: Callable[[Any], None]) -> None:
        for number in range(5):
            # The handle that the parent opened and used, not a new one.
            tell([store.log_artifact("both", f"{os.getpid()} {number}".encode()).number])

    workers = [start(f"child-{n}", store.path, work, tmp_path) for n in range(3)]
    own = [store.log_artifact("both", f"parent {number}".encode()).number for number in range(5)]
    rows, problems = finished(workers)
    assert not problems
    assert sorted([*own, *(row[0] for row in rows)]) == list(range(1, 21))


def test_a_child_forked_while_the_parent_logs_holds_nothing_of_it(store: Store) -> None:
    with StoreLocks(store.path / "locks").writing() as lock:

        def child() -> None:
            assert not lock.is_held
            assert store.log_artifact("small", b"of the child").is_new

        in_fork(child)
        assert lock.is_held
    assert store.gc(dry_run=False, wait=5).freed_bytes >= 0


def test_a_child_of_a_child_reads_and_logs(store: Store) -> None:
    def child() -> None:
        def grandchild() -> None:
            assert store.get_artifact("data").read_bytes("data") == LARGE
            store.log_artifact("data", LARGE + b"!")

        store.log_artifact("small", b"of the child")
        in_fork(grandchild)

    in_fork(child)
    assert store.get_artifact("data").number == 2


def test_a_child_forked_beside_busy_threads_works(store: Store) -> None:
    stop = threading.Event()
    failed: list[BaseException] = []

    def busy() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                store.log_artifact(f"thread-{threading.get_ident()}", str(number).encode())
                assert store.get_artifact("data").read_bytes("data") == LARGE
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):

            def child(number: int = number) -> None:
                assert store.get_artifact("data").read_bytes("data") == LARGE
                assert store.log_artifact("forked", str(number).encode()).number == number + 1

            in_fork(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert store.verify().is_sound


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_workers_of_a_data_loader_read_verified_after_the_parent_used_everything(
    store: Store,
) -> None:
    from torch.utils.data import DataLoader, Dataset

    for number in range(8):
        store.log_artifact("items", bytes([number]) * 100)

    class Items(Dataset[int]):
        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int) -> int:
            version = store.get_artifact(f"items:v{index % 8 + 1}")
            assert store.get_artifact("data").read_bytes("data") == LARGE
            with version.open("items") as file:
                assert file.read() == version.read_bytes("items")
            return version.read_bytes("items")[0]

    loader = DataLoader(Items(), batch_size=4, num_workers=2, multiprocessing_context="fork")
    found = sorted(int(item) for batch in loader for item in batch)
    assert found == sorted([*range(8), *range(8)])
    assert store.log_artifact("items", b"after").number == 9


# --- threads ---


def test_threads_of_one_handle_log_without_gaps(store: Store) -> None:
    numbers: list[int] = []

    def log(thread: int) -> None:
        for number in range(5):
            numbers.append(store.log_artifact("threads", f"{thread} {number}".encode()).number)

    threads = [threading.Thread(target=log, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 31))


def test_a_plain_thread_logs_into_the_run_of_its_process(store: Store) -> None:
    with begat.start_run("train") as run:
        made: list[begat.Version] = []
        thread = threading.Thread(target=lambda: made.append(begat.log_artifact("model", b"m")))
        thread.start()
        thread.join()
    assert made[0].produced_by == run


# --- spawned children ---


def test_a_program_started_by_a_run_joins_it(store: Store) -> None:
    with begat.start_run("train") as own:
        done = run(
            """
            import begat
            with begat.start_run("another name") as run:
                begat.log_artifact("from-child", b"bytes")
                begat.use_artifact("small")
            print(run.id)
            """
        )
        assert _checked(done) == own.id
        assert own.status == "running"
    assert [version.ref for version in own.outputs] == ["from-child:v1"]
    assert [version.ref for version in own.inputs] == ["small:v1"]
    assert own.status == "finished"


def _checked(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_child_of_multiprocessing_spawn_logs_into_the_run_of_its_parent(store: Store) -> None:
    with begat.start_run("train") as run:
        # What the child imports must be a module; a test that pytest imported by its path is none.
        child = multiprocessing.get_context("spawn").Process(
            target=begat.log_artifact, args=("from-spawn", b"bytes")
        )
        child.start()
        child.join(60)
        assert child.exitcode == 0
    assert [version.ref for version in run.outputs] == ["from-spawn:v1"]
    assert open_store(store.path).get_artifact("from-spawn").produced_by == run


# --- the end of a process ---


def test_a_log_from_an_atexit_handler_is_kept(store: Store) -> None:
    done = run(
        """
        import atexit, begat
        atexit.register(lambda: print(begat.log_artifact("late", b"x" * (2 << 20)).ref))
        begat.log_artifact("early", b"bytes")
        """
    )
    assert _checked(done) == "late:v1"
    assert store.get_artifact("late").read_bytes("late") == b"x" * (2 << 20)


def test_a_run_that_nobody_finished_ends_with_its_process(store: Store) -> None:
    done = run(
        """
        import begat
        run = begat.start_run("train")
        begat.log_artifact("model", b"m")
        print(run.id)
        """
    )
    assert store.get_run(_checked(done)).status == "finished"


def test_a_log_from_an_atexit_handler_after_an_exception_is_kept(store: Store) -> None:
    done = run(
        """
        import atexit, begat
        run = begat.start_run("train")
        atexit.register(lambda: begat.log_artifact("late", b"m"))
        print(run.id, flush=True)
        raise RuntimeError("the training broke")
        """
    )
    assert done.returncode == 1
    assert "the training broke" in done.stderr
    assert "begat" not in done.stderr.replace("import begat", "")
    assert store.get_artifact("late").number == 1
    assert store.get_run(done.stdout.strip()).status == "failed"


def test_a_log_at_exit_inside_a_forked_worker_pool_is_kept(store: Store) -> None:
    done = run(
        """
        import multiprocessing, begat
        def work(number):
            return begat.log_artifact("pool", str(number).encode()).number
        if __name__ == "__main__":
            begat.log_artifact("before", b"x" * (2 << 20))
            with multiprocessing.get_context("fork").Pool(2) as pool:
                print(sorted(pool.map(work, range(10))))
            begat.log_artifact("after", b"x")
        """
    )
    assert _checked(done) == str(list(range(1, 11)))
