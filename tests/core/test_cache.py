"""Read-only folders of versions: checked out once, then only looked at, mended when touched, pruned when unused."""

import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import begat
from begat import files
from trees import MIB, Empty, File, Link, Tree, make, seen

TREE: Tree = {
    "a": File(10, 1),
    "run.sh": File(10, 1, is_executable=True),
    "sub/large": File(MIB + 1, 2),
    "sub/empty": Empty(),
    "l": Link("sub/large"),
}


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


@pytest.fixture
def version(store: begat.Store, tmp_path: Path) -> Iterator[begat.Version]:
    version = store.log_artifact("x", make(TREE, tmp_path / "d"))
    yield version
    for folder, _, _ in os.walk(store.cache.root):
        os.chmod(folder, 0o700)


def counted(act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The changes to the file system that an act makes, locks aside."""
    operations: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(files, "fault", lambda operation, path: operations.append(operation))
        act()
    return [operation for operation in operations if operation != "open-lock"]


def test_the_folder_has_the_files_and_nothing_in_it_can_be_written(
    version: begat.Version, tmp_path: Path
) -> None:
    folder = version.path
    assert seen(folder) == seen(tmp_path / "d")
    modes = {
        p.relative_to(folder).as_posix(): stat.S_IMODE(p.lstat().st_mode) for p in folder.rglob("*")
    }
    del modes["l"]
    assert modes == {
        "a": 0o444,
        "run.sh": 0o555,
        "sub": 0o555,
        "sub/large": 0o444,
        "sub/empty": 0o555,
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o555


def test_the_cache_lies_outside_of_the_store(version: begat.Version, store: begat.Store) -> None:
    assert version.path.is_relative_to(os.environ["BEGAT_CACHE"])
    assert not version.path.is_relative_to(store.path)


def test_a_second_call_changes_nothing_and_reads_no_object(
    version: begat.Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = version.path
    assert counted(lambda: version.path, monkeypatch) == []
    monkeypatch.setattr(type(version._home.reader()), "copy", None)  # any copy would fail
    with begat.open_store() as other:
        assert other.get_artifact("x").path == first


def test_versions_of_equal_content_share_a_folder(
    version: begat.Version, store: begat.Store
) -> None:
    other = store.log_artifact(version.draft(), metadata={"other": 1})
    assert other.uid != version.uid
    assert other.path == version.path


def change_content(folder: Path) -> None:
    path = folder / "a"
    path.chmod(0o644)
    before = path.stat()
    path.write_bytes(b"x" * 10)
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def add_file(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "extra").write_bytes(b"x")


def add_folder(folder: Path) -> None:
    (folder / "sub").chmod(0o755)
    (folder / "sub/more/and/more").mkdir(parents=True)


def remove_file(folder: Path) -> None:
    (folder / "sub").chmod(0o755)
    (folder / "sub/large").unlink()


def make_writable(folder: Path) -> None:
    (folder / "a").chmod(0o644)


def make_folder_writable(folder: Path) -> None:
    (folder / "sub").chmod(0o755)


def make_executable(folder: Path) -> None:
    (folder / "a").chmod(0o555)


def replace_by_folder(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "a").unlink()
    (folder / "a/b").mkdir(parents=True)


def replace_folder_by_link(folder: Path) -> None:
    folder.chmod(0o755)
    outside = Path("outside")
    outside.mkdir()
    (outside / "large").write_bytes(b"mine")
    (folder / "sub").chmod(0o755)
    shutil.rmtree(folder / "sub")
    (folder / "sub").symlink_to(outside.absolute())


def change_link(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "l").unlink()
    (folder / "l").symlink_to("a")


def remove_all(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "sub").chmod(0o755)
    (folder / "sub/empty").chmod(0o755)
    shutil.rmtree(folder)


def damage_seal(folder: Path) -> None:
    (folder.parent / "seal").write_bytes(b"not a seal")


@pytest.mark.parametrize(
    "tamper",
    [
        *(change_content, add_file, add_folder, remove_file, make_writable, make_folder_writable),
        *(
            make_executable,
            replace_by_folder,
            replace_folder_by_link,
            change_link,
            remove_all,
            damage_seal,
        ),
    ],
)
def test_a_folder_that_was_touched_is_mended(
    version: begat.Version,
    tmp_path: Path,
    tamper: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = version.path
    tamper(folder)
    assert version.path == folder
    assert seen(folder) == seen(tmp_path / "d")
    for place in [folder, *folder.rglob("*")]:
        assert place.is_symlink() or not stat.S_IMODE(place.stat().st_mode) & 0o222
    assert counted(lambda: version.path, monkeypatch) == []
    if Path("outside").exists():
        assert Path("outside/large").read_bytes() == b"mine"


def test_building_may_be_killed_anywhere_and_is_done_again(
    version: begat.Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = counted(lambda: version.path, monkeypatch)
    assert len(operations) > 15
    for stop_at in range(0, len(operations), 2):
        pid = os.fork()
        if pid == 0:
            done: list[str] = []

            def stop(operation: str, path: str, done=done, stop_at=stop_at) -> None:
                if operation != "open-lock":
                    if len(done) == stop_at:
                        os._exit(9)
                    done.append(operation)

            files.fault = stop
            os.environ["BEGAT_CACHE"] = str(tmp_path / f"cache{stop_at}")
            with begat.open_store() as child:
                _ = child.get_artifact("x").path
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        monkeypatch.setenv("BEGAT_CACHE", str(tmp_path / f"cache{stop_at}"))
        with begat.open_store() as store:
            assert seen(store.get_artifact("x").path) == seen(tmp_path / "d")


def test_several_threads_and_processes_build_one_folder(
    version: begat.Version, tmp_path: Path
) -> None:
    code = "import begat; print(begat.get_artifact('x').path)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(version.path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found += [Path(process.communicate(timeout=60)[0].strip()) for process in started]
    assert found == [version.path] * 7
    assert seen(version.path) == seen(tmp_path / "d")


# --- how much is kept ---


def test_folders_are_listed_by_last_use_with_their_size(store: begat.Store) -> None:
    one, two = (store.log_artifact(name, name.encode() * 100) for name in ("one", "two"))
    for version, age in ((one, 1), (two, 2)):
        seal = version.path.parent / "seal"
        used_at = seal.stat().st_mtime - age * 3600
        os.utime(seal, (used_at, used_at))
    listed = store.cache.list()
    assert [(folder.ref, folder.size_bytes, folder.is_in_use) for folder in listed] == [
        ("two:v1", 300, True),
        ("one:v1", 300, True),
    ]
    assert [folder.path for folder in listed] == [two.path, one.path]


HOLDER = """
    import sys, begat
    print(begat.get_artifact("held").path, flush=True)
    sys.stdin.read()
"""


def test_what_a_process_was_given_is_not_pruned_under_it(store: begat.Store) -> None:
    store.log_artifact("held", b"h" * 1000)
    store.log_artifact("free", b"f" * 1000)
    code = "import begat; begat.get_artifact('free').path"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    folder = Path(holder.stdout.readline().strip())
    assert [removed.ref for removed in store.cache.prune(0)] == ["free:v1"]
    assert folder.joinpath("held").read_bytes() == b"h" * 1000
    assert not store.cache.remove(store.get_artifact("held").digest)
    holder.communicate(timeout=60)
    assert [removed.ref for removed in store.cache.prune(0)] == ["held:v1"]
    assert store.cache.list() == []
    assert not folder.exists()


def test_a_new_folder_pushes_out_the_least_recently_used(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        store.log_artifact(name, name.encode() * 1000)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "BEGAT_CACHE_SIZE": "1500",
    }
    for name in ("a", "b"):
        code = f"import begat; begat.get_artifact({name!r}).path"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert [folder.ref for folder in store.cache.list()] == ["b:v1"]


def test_a_forked_child_holds_what_it_asks_for_itself(store: begat.Store) -> None:
    version = store.log_artifact("held", b"h")
    read, write = os.pipe()
    ready, told = os.pipe()
    _ = version.path
    pid = os.fork()
    if pid == 0:
        _ = version.path
        os.write(told, b"x")
        os.read(read, 1)
        os._exit(0)
    os.read(ready, 1)
    for lock in store.cache._held.values():
        lock.release()
    store.cache._held.clear()
    assert not store.cache.remove(version.digest)
    os.write(write, b"x")
    os.waitpid(pid, 0)
    assert store.cache.remove(version.digest)


def test_reading_works_without_the_objects_once_it_is_cached(
    version: begat.Version, store: begat.Store
) -> None:
    folder = version.path
    (store.path / "objects").rename(store.path / "away")
    assert version.path == folder
    with version.open("a") as file:
        assert file.read() == (folder / "a").read_bytes()
