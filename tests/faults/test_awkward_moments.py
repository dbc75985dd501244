"""Forks, threads and exits at the moments that hurt: inside a log, inside an open, while the interpreter ends."""

import os
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import begat
from begat import default, files
from begat.opening import open_store
from begat.store import Store
from command_line import environment

LARGE = bytes(range(256)) * (5 << 12)  # 5 MiB: hashed by several threads, stored in parts


def program(text: str, folder: Path, *, status: int = 0, **more: str) -> list[str]:
    """Run a program in `folder` to its end, which must come within a minute; the lines it printed."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={**environment(), **more},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Exception ignored" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def in_child(work: Callable[[], object]) -> None:
    """Fork and work there; whatever goes wrong or hangs in the child fails here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - the child ends here
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    end = time.monotonic() + 30
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            pytest.fail("the forked child hung")
        time.sleep(0.002)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Halt:
    """Stops one thread at an operation on files, until it may go on."""

    def __init__(self, at: int, *, passes: tuple[str, ...] = ()) -> None:
        self.count = 0
        self._at = at
        self._passes = passes
        self._main = threading.get_ident()
        self._is_there, self._go_on = threading.Event(), threading.Event()

    def __call__(self, operation: str, path: str) -> None:
        if threading.get_ident() == self._main or operation in self._passes:
            return  # of a child too, where the forking thread is the only one
        self.count += 1
        if self.count - 1 == self._at:
            self._is_there.set()
            assert self._go_on.wait(90)

    def around(self, thread: threading.Thread, act: Callable[[], None]) -> bool:
        """Start the thread, act while it stands still, and let it end; False if it never came so far."""
        files.fault = self
        try:
            thread.start()
            while thread.is_alive() and not self._is_there.wait(0.005):
                pass
            if self._is_there.is_set():
                act()
            return self._is_there.is_set()
        finally:
            self._go_on.set()
            thread.join()
            files.fault = None


@pytest.fixture
def store() -> Store:
    """The default store of this test."""
    return begat.open_store()


# --- forks ---


def test_a_child_forked_at_any_operation_of_another_threads_log_works(store: Store) -> None:
    known = store.log_artifact("known", LARGE)
    at = 0
    while True:

        def child(at: int = at) -> None:
            assert known.read_bytes("known") == LARGE
            assert store.log_artifact("child", f"child {at}".encode()).number == at + 1
            with store.start_run(f"run {at}") as run:
                run.log_artifact("of-a-run", f"{at}".encode() + LARGE)

        thread = threading.Thread(
            target=store.log_artifact, args=("thread", f"{at}".encode() + LARGE)
        )
        # A fork waits for a lock file that is just being opened; that takes no time, but stands still here.
        if not Halt(at, passes=("open-lock",)).around(thread, lambda: in_child(child)):
            break
        at += 1
    assert at > 8
    for name, is_large in (("thread", True), ("child", False), ("of-a-run", True)):
        found = [each.read_bytes(name) for each in store.versions(name)]
        # The thread came to its end once more, in the round that found no operation to stop at.
        assert len(found) == at + (name == "thread")
        for number, data in enumerate(found):
            words = str(number).encode()
            assert data == (words + LARGE if is_large else b"child " + words)
    assert {run.status for run in store.runs()} == {"finished"}
    assert store.verify().is_sound


def test_a_child_forked_while_another_thread_opens_the_default_store_can_open_it(
    store: Store, isolated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log_artifact("known", b"bytes")
    # A store that is still to be made: the thread stops inside, and holds what guards the stores of this process.
    monkeypatch.setenv("BEGAT_STORE", str(isolated / "later"))
    thread = threading.Thread(target=default.default_store)

    def fork() -> None:
        os.environ["BEGAT_STORE"] = str(store.path)
        in_child(lambda: begat.get_artifact("known").read_bytes("known"))

    assert Halt(0).around(thread, fork)


def test_a_forked_child_can_neither_end_its_parents_run_nor_keep_it_from_ending(
    store: Store,
) -> None:
    with store.start_run("parent") as run:
        run.log_artifact("before", b"1")

        def child() -> None:
            begat.log_artifact("of-the-child", b"2")
            run.log_artifact("of-the-child", b"3")
            run.finish("failed")

        in_child(child)
        assert store.get_run(run.id).status == "running"
        run.log_artifact("after", b"4")
    assert run.status == "finished"
    assert [version.ref for version in run.outputs] == [
        "before:v1", "of-the-child:v1", "of-the-child:v2", "after:v1",
    ]  # fmt: skip


def test_a_forked_child_that_runs_the_exit_handlers_leaves_its_parents_run_open(
    tmp_path: Path,
) -> None:
    lines = program(
        """
        import os, sys, begat
        store = begat.open_store()
        with store.start_run("parent") as run:
            pid = os.fork()
            if pid == 0:
                begat.log_artifact("of-the-child", b"bytes")
                sys.exit(0)  # through atexit
            assert os.waitpid(pid, 0)[1] == 0
            print(store.get_run(run.id).status)
        print(store.get_run(run.id).status, [each.ref for each in run.outputs])
        """,
        tmp_path,
    )
    assert lines == ["running", "finished ['of-the-child:v1']"]


def test_a_cached_folder_is_held_by_the_parent_while_children_use_it(store: Store) -> None:
    version = store.log_artifact("one", LARGE)
    path = version.path

    def child() -> None:
        assert version.path == path
        with version.open("one") as file:
            assert file.read() == LARGE

    in_child(child)
    in_child(lambda: store.cache.prune(0))
    assert store.cache.remove(version.digest) is False
    assert (path / "one").read_bytes() == LARGE


# --- workers started in other ways ---

LOADER = """
import os, begat
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, at):
        version = begat.get_artifact("rows:v1")
        with version.open(f"{at}.bin") as file:
            assert file.read() == version.read_bytes(f"{at}.bin") == bytes([at]) * 100
        assert len(version.read_bytes("large.bin")) == 5 << 20
        return at, os.getpid()

if __name__ == "__main__":
    draft = begat.Artifact("rows").add(bytes(range(256)) * (5 << 12), "large.bin")
    for at in range(16):
        draft.add(bytes([at]) * 100, f"{at}.bin")
    # The parent uses everything first: locks, connections, threads that hash, the cache, a run.
    with begat.start_run("train") as run:
        version = run.log_artifact(draft)
        assert run.use_artifact("rows:v1").verify() == () and version.path.is_dir()
        loader = DataLoader(
            Rows(), batch_size=4, num_workers=2, multiprocessing_context=os.environ["METHOD"]
        )
        seen = [(int(at), int(pid)) for ats, pids in loader for at, pid in zip(ats, pids)]
        assert sorted(at for at, _ in seen) == list(range(16))
        assert len({pid for _, pid in seen} - {os.getpid()}) == 2
        run.log_artifact("model", b"after the workers")
    print(run.status, begat.open_store().verify().is_sound)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_read_inside_a_run_of_their_parent(
    method: str, tmp_path: Path
) -> None:
    assert program(LOADER, tmp_path, METHOD=method) == ["finished True"]


JOINING = """
import multiprocessing, os, begat
from concurrent.futures import ProcessPoolExecutor

def work(number):
    assert begat.active_run().id == os.environ["BEGAT_RUN_ID"]
    begat.use_artifact("data:v1")
    return begat.log_artifact(f"part-{number}", f"part {number}".encode()).ref

def work_in_a_run(number):
    with begat.start_run("joins and does not start one") as run:
        assert run.id == os.environ["BEGAT_RUN_ID"]
        return run.log_artifact(f"inner-{number}", f"inner {number}".encode()).ref

if __name__ == "__main__":
    store = begat.open_store()
    store.log_artifact("data", b"data")
    context = multiprocessing.get_context(os.environ["METHOD"])
    with begat.start_run("parent") as run:
        first = run.log_artifact("first", b"first").ref
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            made = [*pool.map(work, range(4)), *pool.map(work_in_a_run, range(2))]
        assert run.status == "running"
        last = run.log_artifact("last", b"last").ref
    assert "BEGAT_RUN_ID" not in os.environ
    assert sorted(each.ref for each in run.outputs) == sorted([first, *made, last])
    print(run.status, len(store.runs()), [each.ref for each in run.inputs])
"""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_processes_of_a_pool_join_the_run_of_their_parent(method: str, tmp_path: Path) -> None:
    assert program(JOINING, tmp_path, METHOD=method) == ["finished 1 ['data:v1']"]


# --- threads ---


def test_threads_log_large_and_small_through_one_handle_into_one_run(store: Store) -> None:
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for count in range(6):
                begat.log_artifact("shared", f"{number} {count}".encode())
                begat.log_artifact(f"own-{number}", LARGE[: 1 << 20] + bytes([number, count]))
        except BaseException as error:  # noqa: BLE001 - told below
            problems.append(error)

    with store.start_run("threads") as run:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not problems
    assert [version.number for version in store.versions("shared")] == list(range(1, 25))
    assert len({version.read_bytes("shared") for version in store.versions("shared")}) == 24
    for number in range(4):
        for version in store.versions(f"own-{number}"):
            data = version.read_bytes(f"own-{number}")
            assert data == LARGE[: 1 << 20] + bytes([number, version.number - 1])
    assert len(run.outputs) == 48


# --- the end of the interpreter ---

EXIT = """
import atexit, sys

def at_the_end(name):
    large = bytes(range(256)) * (5 << 12)
    begat.log_artifact(name, b"small")
    version = begat.log_artifact(f"{name}-large", large)
    assert version.read_bytes(f"{name}-large") == large
    assert version.path.is_dir() and not version.verify()
    print(name, "in a run" if begat.active_run() else "in no run", flush=True)

atexit.register(at_the_end, "from-before-begat")
import begat
atexit.register(at_the_end, "after")
begat.log_artifact("early", b"bytes" * 1_000_000)
"""


def _logged_at_exit() -> None:
    store = begat.open_store()
    for name in ("after", "from-before-begat"):
        assert store.get_artifact(name).read_bytes(name) == b"small"
        assert store.get_artifact(f"{name}-large").read_bytes(f"{name}-large") == LARGE
    assert store.verify().is_sound


@pytest.mark.parametrize(
    ("ending", "status"), [("", 0), ("sys.exit(3)", 3), ("raise ValueError('of the user')", 1)]
)
def test_exit_handlers_log_read_and_verify(ending: str, status: int, tmp_path: Path) -> None:
    lines = program(EXIT + ending, tmp_path, status=status)
    assert lines == ["after in no run", "from-before-begat in no run"]
    _logged_at_exit()


@pytest.mark.parametrize(
    ("ending", "status", "ends_as"),
    [("", 0, "finished"), ("raise ValueError('of the user')", 1, "failed")],
)
def test_an_exit_handler_logs_into_the_run_that_is_still_open_then(
    ending: str, status: int, ends_as: str, tmp_path: Path
) -> None:
    lines = program(EXIT + f"begat.start_run('open')\n{ending}", tmp_path, status=status)
    # Handlers run last in, first out: begat's own, which ends the run, lies between the two.
    assert lines == ["after in a run", "from-before-begat in no run"]
    _logged_at_exit()
    [run] = begat.open_store().runs()
    assert run.status == ends_as
    assert [each.ref for each in run.outputs] == ["after:v1", "after-large:v1"]


def test_a_run_is_started_and_ended_in_an_exit_handler_where_no_thread_can_start(
    tmp_path: Path,
) -> None:
    """From Python 3.12 on no thread starts while the interpreter ends; here every Python is told so."""
    program(
        """
        import atexit, threading, begat

        def refuse(thread):
            raise RuntimeError("can't create new thread at interpreter shutdown")

        def at_the_end():
            threading.Thread.start = refuse
            with begat.start_run("late") as run:
                run.log_artifact("late", bytes(5 << 20))

        atexit.register(at_the_end)
        """,
        tmp_path,
    )
    [run] = begat.open_store().runs()
    assert (run.status, [each.ref for each in run.outputs]) == ("finished", ["late:v1"])


def test_a_thread_that_outlives_the_main_one_logs(tmp_path: Path) -> None:
    program(
        """
        import threading, begat

        def late():
            threading.main_thread().join()
            begat.log_artifact("late", b"bytes")
            begat.log_artifact("late", bytes(3 << 20))

        begat.log_artifact("early", b"bytes")
        threading.Thread(target=late).start()
        """,
        tmp_path,
    )
    assert begat.open_store().get_artifact("late:v2").size_bytes == 3 << 20


def test_a_daemon_thread_that_still_logs_at_the_exit_hangs_nobody_and_breaks_nothing(
    tmp_path: Path,
) -> None:
    program(
        """
        import threading, begat

        def on_and_on():
            for number in range(1_000_000):
                begat.log_artifact("daemon", str(number).encode() * 1000)
                if number == 20:
                    is_busy.set()

        is_busy = threading.Event()
        threading.Thread(target=on_and_on, daemon=True).start()
        assert is_busy.wait(30)
        """,
        tmp_path,
    )
    store = open_store(os.environ["BEGAT_STORE"])
    assert store.verify().is_sound
    numbers = [version.number for version in store.versions("daemon")]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 20
    assert store.log_artifact("daemon", b"and on").number == len(numbers) + 1
