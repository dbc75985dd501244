"""Many small files, which several threads read: the same packs, the same errors, nothing left, and memory bounded."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import begat
from begat import pool, snapshot
from begat.errors import BegatError, SourceChanged, StoreFull, UnsupportedFile
from trees import memory_folder

FILES = 700


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that many of them are on their way at once."""
    monkeypatch.setattr(snapshot, "BATCH_FILES", 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Text and noise of many sizes, some of it twice, and a few large files in between."""
    root = tmp_path / "data"
    dice = random.Random(4)
    for number in range(FILES):
        path = root / f"{number // 100}" / f"{number:04}.{'txt' if number % 3 else 'bin'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = dice.choice([0, 1, 100, 5_000, 30_000])
        data = b"%d again\n" % (number % 50) * (size // 8) if number % 3 else dice.randbytes(size)
        path.write_bytes(data)
        if number % 300 == 150:
            path.with_suffix(".large").write_bytes(dice.randbytes(1 << 20) + data)
    return root


@pytest.fixture(params=[0, 1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(snapshot, "Pool", lambda: pool.Pool(request.param))
    return request.param


def files_below(root: Path) -> list[str]:
    return [str(path) for path in root.rglob("*") if path.is_file()]


def begat_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("begat-pool")]


def assert_nothing_was_published(store: begat.Store) -> None:
    assert store.artifacts() == []
    assert files_below(store.path / "tmp") == []
    assert begat_threads() == []


def test_packs_are_the_same_with_any_number_of_threads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, list[list[object]]]] = []
    for count in (0, 1, 3):
        monkeypatch.setattr(snapshot, "Pool", lambda count=count: pool.Pool(count))
        with begat.open_store(tmp_path / f"store-{count}") as store:
            version = store.log_artifact("x", folder)
            names = sorted(name for name, _ in store.objects.list())
            # The pack that holds the record differs: the record has times and ids in it.
            blobs = [store.catalog.bytes.blobs_in(name) for name in names]
            lying = [[b.digest, b.offset, b.stored_length, b.codec] for each in blobs for b in each
                     if b.kind in ("file", "part")]  # fmt: skip
            found.append((version.digest, sorted(lying)))
            for path in folder.rglob("*.*"):
                name = path.relative_to(folder).as_posix()
                assert version.read_bytes(name) == path.read_bytes()
            assert store.verify().is_sound
    assert found[0] == found[1] == found[2]
    assert len(found[0][1]) > 300


def test_a_log_of_few_files_makes_no_thread(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "Pool", lambda: pool.Pool(3))
    started: list[str] = []
    start = threading.Thread.start

    def note(self: threading.Thread) -> None:
        started.append(self.name)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", note)
    for number in range(snapshot.THREADS_FROM_FILES):
        (tmp_path / f"{number}").write_bytes(b"%d" % number)
    (tmp_path / "0").unlink()
    store.log_artifact("few", tmp_path)
    assert started == []
    (tmp_path / "0").write_bytes(b"0")
    store.log_artifact("many", tmp_path)
    assert len(started) == 3


def test_the_first_error_in_the_order_of_paths_is_told_and_nothing_is_published(
    store: begat.Store, folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    open_source = snapshot.open_source
    wait = threading.Event()

    def failing(path: str) -> int:
        if path.endswith("0550.txt"):
            wait.set()  # the later one fails first, where there are threads
            raise OSError(5, "Input/output error", path)
        if path.endswith("0100.txt") and threads:
            wait.wait(10)
            raise PermissionError(13, "Permission denied", path)
        if path.endswith("0100.txt"):
            raise PermissionError(13, "Permission denied", path)
        return open_source(path)

    monkeypatch.setattr(snapshot, "open_source", failing)
    with pytest.raises(BegatError, match=r"0100\.txt"):
        store.log_artifact("x", folder)
    monkeypatch.undo()
    assert_nothing_was_published(store)
    assert store.log_artifact("x", folder).number == 1


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "when", "error"),
    [
        (append, "_read_all", SourceChanged),
        (Path.unlink, "open_source", SourceChanged),
        (put_a_pipe, "open_source", UnsupportedFile),
    ],
)
def test_a_file_that_changes_meanwhile_makes_no_version(
    change: Callable[[Path], None],
    when: str,
    error: type[BegatError],
    store: begat.Store,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    victim = folder / "6" / "0650.txt"
    victim.write_bytes(b"the only file with these bytes")
    original = getattr(snapshot, when)

    def meanwhile(*args: object) -> object:
        if when == "open_source":
            if args[0] == str(victim):
                change(victim)
            return original(*args)
        data = original(*args)
        if data == b"the only file with these bytes":
            change(victim)
        return data

    monkeypatch.setattr(snapshot, when, meanwhile)
    with pytest.raises(error, match=r"0650\.txt"):
        store.log_artifact("x", folder)
    monkeypatch.undo()
    assert_nothing_was_published(store)


def test_a_file_that_has_grown_large_since_it_was_listed_is_stored_as_a_large_one(
    store: begat.Store, folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    victim = folder / "6" / "0650.txt"
    content = random.Random(1).randbytes(3 << 20)
    open_source = snapshot.open_source

    def meanwhile(path: str) -> int:
        if path == str(victim):
            victim.write_bytes(content)
        return open_source(path)

    monkeypatch.setattr(snapshot, "open_source", meanwhile)
    version = store.log_artifact("x", folder)
    assert version.read_bytes("6/0650.txt") == content
    assert any(size == len(content) for _, size in store.objects.list())


def test_a_disk_that_is_full_ends_the_log_and_its_threads(
    store: begat.Store, folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    from begat import files

    def full(operation: str, path: str) -> None:
        if operation == "write":
            raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(files, "fault", full)
    with pytest.raises(StoreFull):
        store.log_artifact("x", folder)
    monkeypatch.setattr(files, "fault", None)
    assert_nothing_was_published(store)


# --- forks, interrupts, the end of the interpreter ---


def test_a_child_forked_while_threads_read_for_another_log_works(
    store: begat.Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "Pool", lambda: pool.Pool(2))
    read_all = snapshot._read_all
    is_there, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    def halting(fd: int, room: memoryview) -> memoryview:
        if os.getpid() == parent and threading.current_thread().name.startswith("begat-pool"):
            is_there.set()
            assert go_on.wait(60)
        return read_all(fd, room)

    monkeypatch.setattr(snapshot, "_read_all", halting)
    log = threading.Thread(target=store.log_artifact, args=("of-a-thread", folder))
    log.start()
    try:
        assert is_there.wait(30)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # a hang of the child is its end
            status = 1
            try:
                version = store.log_artifact("of-the-child", folder)
                status = 0 if version.file_count >= FILES else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        go_on.set()
        log.join()
    assert {each.name for each in store.artifacts()} == {"of-a-thread", "of-the-child"}
    assert store.verify().is_sound


def program(text: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_ctrl_c_in_a_log_of_many_files_stops_it_at_once(
    count: int, folder: Path, store: begat.Store
) -> None:
    # 10 ms a file, as on a slow disk: what is left to read would take seconds, and so would the rest of a batch.
    child = program(
        f"""
        import sys, time, begat
        from begat import pool, snapshot
        snapshot.Pool = lambda: pool.Pool({count})
        read_all, seen = snapshot._read_all, []
        def slowly(fd, size):
            seen.append(fd)
            if len(seen) == 30:
                print("reading", flush=True)
            time.sleep(0.01)
            return read_all(fd, size)
        snapshot._read_all = slowly
        store = begat.open_store()
        try:
            store.log_artifact("x", sys.argv[1])
        except KeyboardInterrupt:
            print(time.monotonic(), flush=True)
        """,
        folder,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "reading\n"
    sent = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert float(out) - sent < 1
    assert store.artifacts() == []
    assert files_below(store.path / "tmp") == []
    assert files_below(store.path / "objects") == []


@pytest.mark.parametrize("when", ["files.write_at", "files.read_at"])
def test_ctrl_c_in_a_log_of_a_large_file_stops_it_at_once(
    when: str, tmp_path: Path, store: begat.Store
) -> None:
    (tmp_path / "large.bin").write_bytes(os.urandom(64 << 20))
    # Slowly, as from a slow disk, or as if there were much more of it.
    child = program(
        f"""
        import sys, time, begat
        from begat import files
        original, seen = {when}, []
        def slowly(*args, **options):
            seen.append(args)
            if len(seen) == 3:
                print("at work", flush=True)
            time.sleep(0.2)
            return original(*args, **options)
        {when} = slowly
        store = begat.open_store()
        try:
            store.log_artifact("x", sys.argv[1])
        except KeyboardInterrupt:
            print(time.monotonic(), flush=True)
        """,
        tmp_path,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "at work\n"
    sent = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert float(out) - sent < 1
    assert store.artifacts() == []
    assert files_below(store.path / "tmp") == []


def test_an_exit_handler_logs_many_files(folder: Path, store: begat.Store) -> None:
    child = program(
        """
        import atexit, sys, begat
        from begat import pool, snapshot
        snapshot.Pool, snapshot.BATCH_FILES = lambda: pool.Pool(2), 16
        atexit.register(lambda: print(begat.log_artifact("late", sys.argv[1]).ref))
        begat.log_artifact("early", sys.argv[1])
        """,
        folder,
    )
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err, out) == (0, "", "late:v1\n")
    assert store.get_artifact("late").digest == store.get_artifact("early").digest


def test_a_process_ends_while_a_thread_of_it_that_nobody_waits_for_logs(folder: Path) -> None:
    child = program(
        """
        import sys, threading, time, begat
        from begat import pool, snapshot
        snapshot.Pool, snapshot.BATCH_FILES = lambda: pool.Pool(2), 16
        read_all = snapshot._read_all
        is_there = threading.Event()
        def halting(fd, size):
            is_there.set()
            time.sleep(0.05)
            return read_all(fd, size)
        snapshot._read_all = halting
        store = begat.open_store()
        threading.Thread(target=store.log_artifact, args=("x", sys.argv[1]), daemon=True).start()
        is_there.wait()
        """,
        folder,
    )
    began = time.monotonic()
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, "")
    assert time.monotonic() - began < 15  # all files would take longer


# --- memory ---


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 7])
def test_files_of_half_a_gigabyte_pass_through_a_few_megabytes(count: int, tmp_path: Path) -> None:
    """The limit is the system's own: data above it is an error in the child, not a figure."""
    with memory_folder(tmp_path) as root:
        data = root / "data"
        data.mkdir()
        for number in range(2_500):
            (data / f"{number}").write_bytes(os.urandom(200_000))
        child = program(
            f"""
            import resource, sys, begat
            from begat import pool, snapshot
            snapshot.Pool = lambda: pool.Pool({count})
            store = begat.open_store(sys.argv[2])
            store.log_artifact("warm", b"all that is imported")
            text = open("/proc/self/status").read()
            now = int(text.split("VmData:")[1].split()[0]) * 1024
            # Of each thread: a stack of 8 MiB, and what malloc sets aside for it.
            most = now + (100 << 20) + {count} * (80 << 20)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
            print(store.log_artifact("x", sys.argv[1]).size_bytes)
            """,
            data,
            root / "store",
        )
        out, err = child.communicate(timeout=300)
    assert (child.returncode, out) == (0, "500000000\n"), err
