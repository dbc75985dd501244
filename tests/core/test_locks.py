"""Writers share the store, gc has it alone, and a lock never outlives its holder; with real processes."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from begat import files, locks
from begat.errors import BegatWarning, CatalogBusy, ReadOnly, Refused, StoreUnavailable
from begat.locks import StoreLocks

PRELUDE = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from begat.errors import *
from begat.locks import StoreLocks
folder = Path(sys.argv[1])
locks = StoreLocks(folder)
def say(word):
    print(word, flush=True)
"""
HOLD_A_WRITER = "with locks.writing():\n    say('inside')\n    sys.stdin.readline()\nsay('out')"
HOLD_A_SLICE = (
    "with locks.sweeping(wait_s=20) as sweep, sweep.exclusive():\n"
    "    say('inside')\n    sys.stdin.readline()\nsay('out')"
)
HOLD_THE_GC_LOCK = "with locks.sweeping(wait_s=20):\n    say('inside')\n    sys.stdin.readline()"


class Child:
    """Another Python process with `locks` for the same folder; it speaks in lines and goes on when told to."""

    def __init__(self, folder: Path, code: str, *arguments: str) -> None:
        script = folder.parent / f"child-{time.monotonic_ns()}.py"
        script.write_text(PRELUDE + code)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def hears(self, expected: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == expected

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


Spawn = Callable[..., Child]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def store_locks(folder: Path) -> StoreLocks:
    return StoreLocks(folder)


@pytest.fixture
def spawn(folder: Path) -> Iterator[Spawn]:
    children: list[Child] = []

    def start(code: str, *arguments: str) -> Child:
        children.append(Child(folder, code, *arguments))
        return children[-1]

    yield start
    for child in children:
        child.end()


def is_free_for_gc(folder: Path, *, wait_s: float = 0.0) -> bool:
    """Whether gc can be alone in the store right now."""
    try:
        with StoreLocks(folder).sweeping(wait_s=wait_s) as sweep, sweep.exclusive():
            return True
    except CatalogBusy:
        return False


def is_gate_closed(folder: Path) -> bool:
    fd = os.open(folder / "gate.lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def wait_until(is_true: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < give_up_at, "waited for 20 s"
        time.sleep(0.002)


def in_a_fork(act: Callable[[], bool]) -> bool:
    """What `act` says in a forked child that ends right after it."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os._exit(0 if act() else 1)
        os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 1), "the forked child raised"
    return status == 0


def open_lock_files(pid: int | str = "self") -> list[int]:
    found: list[int] = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{fd}").endswith(".lock"):
                found.append(int(fd))
    return found


# --- writers and gc ---


def test_writers_of_several_processes_are_inside_at_once(
    store_locks: StoreLocks, spawn: Spawn
) -> None:
    first, second = spawn(HOLD_A_WRITER), spawn(HOLD_A_WRITER)
    with store_locks.writing():
        first.hears("inside")
        second.hears("inside")


def test_gc_is_refused_while_another_process_writes(folder: Path, spawn: Spawn) -> None:
    writer = spawn(HOLD_A_WRITER)
    writer.hears("inside")
    assert not is_free_for_gc(folder)


def test_gc_waits_for_a_slow_writer(folder: Path, spawn: Spawn) -> None:
    writer = spawn(HOLD_A_WRITER)
    writer.hears("inside")
    gc = spawn(HOLD_A_SLICE)
    wait_until(lambda: is_gate_closed(folder))
    writer.go_on()
    writer.hears("out")
    gc.hears("inside")


def test_no_writer_comes_in_during_a_slice(store_locks: StoreLocks, spawn: Spawn) -> None:
    gc = spawn(HOLD_A_SLICE)
    gc.hears("inside")
    entered = threading.Event()

    def write() -> None:
        with store_locks.writing():
            entered.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert not entered.wait(0.3)
    gc.go_on()
    gc.hears("out")
    assert entered.wait(10)
    thread.join()


def test_gc_waits_no_longer_than_it_was_told_to(store_locks: StoreLocks, spawn: Spawn) -> None:
    writer = spawn(HOLD_A_WRITER)
    writer.hears("inside")
    start = time.monotonic()
    with store_locks.sweeping(wait_s=0.3) as sweep, pytest.raises(CatalogBusy), sweep.exclusive():
        pass
    assert 0.3 <= time.monotonic() - start < 5


def test_the_gate_opens_again_for_others_while_one_writer_stays_long(
    folder: Path, spawn: Spawn
) -> None:
    slow = spawn(HOLD_A_WRITER)
    slow.hears("inside")
    patient = StoreLocks(folder, closed_at_most_s=0.3)
    result: list[str] = []

    def collect() -> None:
        with patient.sweeping(wait_s=20) as sweep, sweep.exclusive():
            result.append("collected")

    gc = threading.Thread(target=collect)
    gc.start()
    wait_until(lambda: is_gate_closed(folder))
    for _ in range(3):
        with StoreLocks(folder).writing():
            assert not result
    slow.go_on()
    gc.join(20)
    assert result == ["collected"]


def test_gc_is_not_starved_by_many_fast_writers_nor_they_by_gc(
    store_locks: StoreLocks, folder: Path, spawn: Spawn
) -> None:
    loop = (
        "log = os.open(folder / 'log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "say('ready')\n"
        "while True:\n"
        "    with locks.writing():\n"
        "        os.write(log, b'<')\n"
        "        time.sleep(0.001)\n"
        "        os.write(log, b'>')\n"
    )
    folder.mkdir()
    for writer in [spawn(loop) for _ in range(8)]:
        writer.hears("ready")
    log = folder / "log"
    seen = log.read_bytes()
    with store_locks.sweeping(wait_s=20) as sweep:
        for _ in range(4):
            with sweep.exclusive():
                text = log.read_bytes()
                time.sleep(0.05)
                assert log.read_bytes() == text, "somebody wrote during the slice"
                assert text.count(b"<") == text.count(b">"), "somebody was inside"
                assert len(text) > len(seen), "nobody came in since the last slice"
                seen = text


def test_a_slice_tells_when_its_time_is_over(store_locks: StoreLocks) -> None:
    with store_locks.sweeping(wait_s=5) as sweep:
        with sweep.exclusive(slice_s=60) as long:
            assert not long.is_over
        with sweep.exclusive(slice_s=0) as short:
            assert short.is_over


def test_a_slice_ends_for_others_when_its_block_raises(
    store_locks: StoreLocks, folder: Path
) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        store_locks.sweeping(wait_s=0) as sweep,
        sweep.exclusive(),
    ):
        _ = 1 / 0
    assert is_free_for_gc(folder)


def test_one_gc_at_a_time_and_the_other_is_named(store_locks: StoreLocks, spawn: Spawn) -> None:
    other = spawn(HOLD_THE_GC_LOCK)
    other.hears("inside")
    with pytest.raises(CatalogBusy) as caught, store_locks.sweeping(wait_s=0.05):
        pass
    assert f"pid {other.pid} (" in str(caught.value)


def test_writers_are_not_kept_out_by_gc_between_its_slices(
    store_locks: StoreLocks, spawn: Spawn
) -> None:
    spawn(HOLD_THE_GC_LOCK).hears("inside")
    with store_locks.writing() as lock:
        assert lock.is_held


def test_writers_that_keep_gc_waiting_are_named_without_their_arguments(
    store_locks: StoreLocks, spawn: Spawn
) -> None:
    writers = [spawn(HOLD_A_WRITER, "--token", "hunter2") for _ in range(2)]
    for writer in writers:
        writer.hears("inside")
    with (
        store_locks.sweeping(wait_s=0) as sweep,
        pytest.raises(CatalogBusy) as caught,
        sweep.exclusive(),
    ):
        pass
    for writer in writers:
        assert f"pid {writer.pid} ({Path(sys.executable).name} child-" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_writer_that_waits_long_says_so_once(
    store_locks: StoreLocks, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WARN_AFTER_S", 0.05)
    gc = spawn(HOLD_A_SLICE)
    gc.hears("inside")
    threading.Timer(0.4, gc.go_on).start()
    with pytest.warns(BegatWarning) as warned, store_locks.writing():
        pass
    assert [str(w.message).count(f"pid {gc.pid}") for w in warned] == [1]
    assert warned[0].filename == __file__


# --- nested logs and threads ---


def collecting(folder: Path) -> tuple[threading.Thread, threading.Event]:
    """A gc in another thread that waits with the gate closed, and an event that is set when it had its slice."""
    done = threading.Event()

    def collect() -> None:
        with StoreLocks(folder).sweeping(wait_s=30) as sweep, sweep.exclusive():
            done.set()

    thread = threading.Thread(target=collect)
    thread.start()
    wait_until(lambda: (folder / "gate.lock").exists() and is_gate_closed(folder))
    return thread, done


def test_a_nested_log_comes_in_while_gc_waits_at_the_gate(
    store_locks: StoreLocks, folder: Path
) -> None:
    with store_locks.writing():
        gc, done = collecting(folder)
        start = time.monotonic()
        # Another handle of the same store, its path written in another way.
        with StoreLocks(folder.parent / "x" / ".." / folder.name).writing() as inner:
            assert inner.is_held
        assert time.monotonic() - start < 2, "it waited for the gate to open again"
        assert not done.is_set()
    gc.join(20)
    assert done.is_set()


def test_a_nested_block_keeps_gc_out_after_the_outer_one_ended(
    store_locks: StoreLocks, folder: Path
) -> None:
    outer, inner = store_locks.writing(), store_locks.writing()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert not is_free_for_gc_elsewhere(folder)
    inner.__exit__(None, None, None)
    assert is_free_for_gc_elsewhere(folder)


def is_free_for_gc_elsewhere(folder: Path) -> bool:
    """As `is_free_for_gc`, asked by another thread, which is inside nothing."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(is_free_for_gc(folder)))
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.parametrize("context", ["new", "copied"])
def test_another_thread_takes_the_gate(context: str, store_locks: StoreLocks, folder: Path) -> None:
    entered = threading.Event()

    def write() -> None:
        with store_locks.writing():
            entered.set()

    with store_locks.writing():
        gc, done = collecting(folder)
        # asyncio.to_thread runs its function in a copy of the caller's context.
        run = contextvars.copy_context().run if context == "copied" else contextvars.Context().run
        other = threading.Thread(target=run, args=(write,))
        other.start()
        assert not entered.wait(0.3)
    gc.join(20)
    other.join(20)
    assert done.is_set()
    assert entered.is_set()


def test_gc_inside_a_log_is_refused(store_locks: StoreLocks, folder: Path) -> None:
    with store_locks.writing(), pytest.raises(Refused), store_locks.sweeping(wait_s=0):
        pass
    assert is_free_for_gc(folder)


def test_a_slice_inside_a_log_is_refused(store_locks: StoreLocks) -> None:
    with (
        store_locks.sweeping(wait_s=0) as sweep,
        store_locks.writing(),
        pytest.raises(Refused),
        sweep.exclusive(),
    ):
        pass


def test_a_log_inside_a_slice_is_refused(store_locks: StoreLocks) -> None:
    with (
        store_locks.sweeping(wait_s=0) as sweep,
        sweep.exclusive(),
        pytest.raises(Refused),
        store_locks.writing(),
    ):
        pass


def test_a_slice_inside_a_slice_is_refused(store_locks: StoreLocks) -> None:
    with (
        store_locks.sweeping(wait_s=0) as sweep,
        sweep.exclusive(),
        pytest.raises(Refused),
        sweep.exclusive(),
    ):
        pass


def test_gc_writes_between_its_slices(store_locks: StoreLocks) -> None:
    with store_locks.sweeping(wait_s=0) as sweep:
        with store_locks.writing() as lock:
            assert lock.is_held
        with sweep.exclusive() as alone:
            alone.check()


def test_gc_of_another_store_runs_inside_a_log(store_locks: StoreLocks, tmp_path: Path) -> None:
    with store_locks.writing():
        assert is_free_for_gc(tmp_path / "other")


def test_a_block_that_ended_holds_nothing(store_locks: StoreLocks) -> None:
    with store_locks.writing() as lock:
        lock.check()
    assert not lock.is_held
    with pytest.raises(StoreUnavailable):
        lock.check()


# --- death, forks, descriptors ---


@pytest.mark.parametrize("held", [HOLD_A_WRITER, HOLD_A_SLICE, HOLD_THE_GC_LOCK])
def test_a_killed_holder_blocks_nobody(held: str, folder: Path, spawn: Spawn) -> None:
    holder = spawn(held)
    holder.hears("inside")
    os.kill(holder.pid, signal.SIGKILL)
    holder.process.wait()
    assert is_free_for_gc(folder)
    with StoreLocks(folder).writing() as lock:
        assert lock.is_held


def test_a_forked_child_that_ends_does_not_free_its_parents_lock(
    store_locks: StoreLocks, folder: Path
) -> None:
    with store_locks.writing() as lock:

        def leave_the_block() -> bool:
            lock._lock.release()
            return not open_lock_files()

        assert in_a_fork(leave_the_block)
        assert lock.is_held
        assert not is_free_for_gc_elsewhere(folder)
    assert is_free_for_gc(folder)


def test_a_forked_child_does_not_hold_its_parents_lock(store_locks: StoreLocks) -> None:
    with store_locks.writing() as lock:

        def is_refused() -> bool:
            with pytest.raises(StoreUnavailable):
                lock.check()
            return not lock.is_held

        assert in_a_fork(is_refused)
        lock.check()


def test_a_forked_child_takes_its_own_lock(store_locks: StoreLocks, folder: Path) -> None:
    def write() -> bool:
        with store_locks.writing() as own:
            return (
                own.is_held and len(open_lock_files()) == 1 and not is_free_for_gc_elsewhere(folder)
            )

    with store_locks.writing():
        assert in_a_fork(write)
        assert not is_free_for_gc_elsewhere(folder)


def test_a_forked_child_inside_a_log_takes_the_gate(store_locks: StoreLocks, folder: Path) -> None:
    with store_locks.writing():
        gc, done = collecting(folder)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            with store_locks.writing():
                os.write(writer, b"inside")
            os._exit(0)
        os.close(writer)
        os.set_blocking(reader, False)
        time.sleep(0.3)
        with pytest.raises(BlockingIOError):
            os.read(reader, 10)
    gc.join(20)
    assert done.is_set()
    os.waitpid(pid, 0)
    assert os.read(reader, 10) == b"inside"
    os.close(reader)


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_parent(
    folder: Path, spawn: Spawn
) -> None:
    parent = spawn(
        "with locks.writing():\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        say(f'child {os.getpid()}')\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    time.sleep(60)"
    )
    assert parent.process.stdout is not None
    pid = int(parent.process.stdout.readline().split()[1])
    try:
        assert not is_free_for_gc(folder)
        os.kill(parent.pid, signal.SIGKILL)
        parent.process.wait()
        assert is_free_for_gc(folder)
        os.kill(pid, 0)  # it lives
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_copy_of_the_descriptor_does_not_keep_a_lock_that_was_released(
    store_locks: StoreLocks, folder: Path
) -> None:
    # What a process has between its fork and its exec, or after a fork by a library that knows no hooks of Python.
    with store_locks.writing():
        copies = [os.dup(fd) for fd in open_lock_files()]
    assert len(copies) == 1
    assert is_free_for_gc(folder)
    os.close(copies[0])


def test_forks_beside_busy_threads_leave_no_descriptor_in_the_children(
    store_locks: StoreLocks,
) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with store_locks.writing():
                pass

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            assert in_a_fork(lambda: not open_lock_files())
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_programs_started_inside_a_block_do_not_get_the_descriptors(
    store_locks: StoreLocks,
) -> None:
    with store_locks.writing():
        listing = subprocess.run(
            ["ls", "-l", "/proc/self/fd"],
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(open_lock_files()) == 1
    assert ".lock" not in listing.stdout


def test_blocks_leave_no_descriptor_open(store_locks: StoreLocks, spawn: Spawn) -> None:
    other = spawn(HOLD_A_WRITER)
    other.hears("inside")
    with store_locks.writing(), store_locks.writing():
        pass
    with (
        store_locks.sweeping(wait_s=0) as sweep,
        contextlib.suppress(CatalogBusy),
        sweep.exclusive(),
    ):
        pass
    assert open_lock_files() == []


def test_ctrl_c_ends_the_wait(folder: Path, spawn: Spawn) -> None:
    spawn(HOLD_A_SLICE).hears("inside")
    waiting = spawn(
        "try:\n    say('waits')\n    with locks.writing():\n        say('inside')\n"
        "except KeyboardInterrupt:\n    say('interrupted')"
    )
    waiting.hears("waits")
    wait_until(lambda: bool(open_lock_files(waiting.pid)))
    waiting.process.send_signal(signal.SIGINT)
    waiting.hears("interrupted")


# --- places where locks cannot be ---


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_written_is_read_only(
    number: int, store_locks: StoreLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(operation: str, path: str) -> None:
        if operation == "open-lock":
            raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(files, "fault", fail)
    with pytest.raises(ReadOnly), store_locks.writing():
        pass
    with pytest.raises(ReadOnly), store_locks.sweeping(wait_s=0):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_refused_with_advice(
    number: int, store_locks: StoreLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StoreUnavailable, match="local disk"), store_locks.writing():
        pass
    assert open_lock_files() == []


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable), StoreLocks(tmp_path / "file").writing():
        pass


def test_a_link_in_place_of_a_lock_file_is_not_followed(
    store_locks: StoreLocks, folder: Path
) -> None:
    folder.mkdir()
    (folder / "gate.lock").symlink_to(folder / "elsewhere")
    with pytest.raises(StoreUnavailable), store_locks.writing():
        pass
    assert not (folder / "elsewhere").exists()
