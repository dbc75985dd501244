"""A manifest becomes a folder: verified bytes under final names only, and nothing outside of the destination."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import begat
import begat.checkout
from begat import threads
from begat.blobs import copying, reader
from begat.checkout import checkout
from begat.errors import Corrupt, DestinationDiffers
from begat.folders import Folder
from begat.identity import digest_of
from begat.model import EmptyDirectory, StoredFile, Symlink
from begat.objects import ObjectStore
from trees import MIB, File, make, seen


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


def test_entries_are_written_in_any_order_given(store: begat.Store, tmp_path: Path) -> None:
    store.log_artifact(begat.Artifact("x").add(b"1", "d/a").add(b"2", "d/e/b").add(b"3", "d-c"))
    entries = list(store.get_artifact("x").entries)
    for number, order in enumerate((entries, entries[::-1], [entries[1], entries[0], entries[2]])):
        checkout(order, tmp_path / str(number), store.reader())
        assert set(seen(tmp_path / str(number))) == {
            "d",
            "d/a",
            "d/e",
            "d/e/b",
            "d-c",
        }


def test_modes_follow_the_executable_bit_and_the_umask(store: begat.Store, tmp_path: Path) -> None:
    make({"d/a": File(1, 0), "d/run": File(1, 0, is_executable=True)}, tmp_path)
    entries = store.log_artifact("x", tmp_path / "d").entries
    checkout(entries, tmp_path / "mine", store.reader())
    checkout(entries, tmp_path / "shared", store.reader(), read_only=True)
    modes = {
        path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for folder in ("mine", "shared")
        for path in (tmp_path / folder).iterdir()
    }
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {
        "mine/a": 0o666 & ~mask,
        "mine/run": 0o777 & ~mask,
        "shared/a": 0o444,
        "shared/run": 0o555,
    }


@pytest.mark.parametrize("size", [100, 3 * MIB])
def test_a_file_whose_bytes_are_not_there_gets_no_name(
    store: begat.Store, tmp_path: Path, size: int
) -> None:
    store.log_artifact("x", File(size, 0).data)
    for path in (store.path / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            data = bytearray(path.read_bytes())
            data[10] ^= 1
            path.write_bytes(data)
    wanted = [StoredFile("a/b", size, digest_of(File(size, 0).data))]
    with pytest.raises(Corrupt, match="'a/b' was not written"):
        checkout(wanted, tmp_path / "out", store.reader())
    assert seen(tmp_path / "out").keys() == {"a"}


def test_a_link_is_written_last_so_that_nothing_is_written_through_it(
    store: begat.Store, tmp_path: Path
) -> None:
    store.log_artifact("x", b"1")
    digest = digest_of(b"1")
    # No manifest may have both; whoever builds such a list all the same gets nothing outside.
    hostile = [Symlink("d", ".."), StoredFile("d/escaped", 1, digest)]
    with pytest.raises((DestinationDiffers, Corrupt)):
        checkout(hostile, tmp_path / "out", store.reader())
    assert not (tmp_path / "escaped").exists()


def test_a_folder_in_the_way_of_a_file_is_left_and_a_file_in_the_way_of_a_folder_too(
    store: begat.Store, tmp_path: Path
) -> None:
    store.log_artifact("x", b"1")
    make({"one/a/mine": File(1, 0), "two/a": File(1, 0)}, tmp_path)
    digest = digest_of(b"1")
    with pytest.raises(DestinationDiffers):
        checkout(
            [StoredFile("a", 1, digest)], tmp_path / "one", store.reader(), overwrite="overwrite"
        )
    with pytest.raises(DestinationDiffers):
        checkout(
            [StoredFile("a/b", 1, digest)], tmp_path / "two", store.reader(), overwrite="overwrite"
        )
    assert seen(tmp_path / "one").keys() == {"a", "a/mine"}
    assert seen(tmp_path / "two").keys() == {"a"}


def test_an_empty_folder_that_is_there_already_is_fine(store: begat.Store, tmp_path: Path) -> None:
    (tmp_path / "out/empty").mkdir(parents=True)
    checkout([EmptyDirectory("empty"), EmptyDirectory("new/er")], tmp_path / "out", store.reader())
    assert seen(tmp_path / "out").keys() == {"empty", "new", "new/er"}


# --- on several threads ---


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (threads, begat.checkout, copying):
        monkeypatch.setattr(module, "cores", lambda: 4)


def many(folder: Path, count: int = 600) -> dict[str, bytes]:
    content = {f"d{n % 7}/e{n % 3}/{n}": b"%d" % n * (n % 50) for n in range(count)}
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return content


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.usefixtures("four_cores")
def test_many_small_files_are_read_in_runs_and_written_by_several_threads(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = many(tmp_path / "in")
    version = store.log_artifact("x", tmp_path / "in")
    opened: list[str] = []
    writers: set[str] = set()
    open_object, put = ObjectStore.open, Folder.put

    def count(objects: ObjectStore, name: str) -> int:
        opened.append(name)
        return open_object(objects, name)

    def note(folder: Folder, *args: Any, **named: Any) -> None:
        writers.add(threading.current_thread().name)
        time.sleep(0.0005)  # so that every thread gets its share
        put(folder, *args, **named)

    monkeypatch.setattr(ObjectStore, "open", count)
    monkeypatch.setattr(Folder, "put", note)
    version.download(tmp_path / "out")
    assert content_of(tmp_path / "out") == content
    assert len(writers) > 1
    assert 1 <= len(opened) < 20  # and not once for each of 600 files


@pytest.mark.parametrize(
    ("wait_s", "size", "is_one"), [(0, 10, True), (0.001, 10, False), (0, 90_000, False)]
)
@pytest.mark.usefixtures("four_cores")
def test_tiny_files_are_written_by_one_thread_where_nothing_makes_it_wait(
    wait_s: float,
    size: int,
    is_one: bool,
    store: begat.Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(400):
        (tmp_path / f"in/{number}").write_bytes(b"%d" % number * (size // 3))
    version = store.log_artifact("x", tmp_path / "in")
    asked: list[int | None] = []
    each = begat.checkout.each

    def note(items: Any, work: Any, *, most: int | None = None) -> None:
        asked.append(most)
        each(items, work, most=most)

    put = Folder.put

    def slowly(folder: Folder, *args: Any, **named: Any) -> None:
        time.sleep(wait_s)
        put(folder, *args, **named)

    monkeypatch.setattr(begat.checkout, "each", note)
    monkeypatch.setattr(Folder, "put", slowly)
    if not wait_s:  # another process may have the core meanwhile
        monkeypatch.setattr(time, "thread_time", time.perf_counter)
    version.download(tmp_path / "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "in")
    assert asked[1] == (1 if is_one else None)


@pytest.mark.usefixtures("four_cores")
def test_of_many_files_the_first_damaged_one_is_named_and_the_sound_ones_are_written(
    store: begat.Store, tmp_path: Path
) -> None:
    content = many(tmp_path / "in")
    version = store.log_artifact("x", tmp_path / "in")
    broken = sorted(path for path, data in content.items() if len(data) > 40)[5:9]
    places = store.catalog.bytes.locations(digest_of(content[path]) for path in broken)
    for place in places.values():
        path = store.path / "objects" / place.object
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(place.offset + place.stored_length // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Corrupt, match=f"'{broken[0]}' was not written"):
        version.download(tmp_path / "out")
    found = content_of(tmp_path / "out")
    assert found.items() <= content.items()
    assert not found.keys() & set(broken)
    assert len(found) == len(content) - len(broken)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("count", [1, 3])
def test_parts_of_a_large_file_are_written_by_several_threads(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    # The second version of each file has few new parts, so it lies in packs and not in one piece.
    for number in range(count):
        store.log_artifact(f"old{number}", File(40 * MIB, number).data)
    wanted: dict[str, bytes] = {}
    for number in range(count):
        data = bytearray(File(40 * MIB, number).data)
        data[20 * MIB : 20 * MIB + 5] = b"other"
        wanted[f"f{number}"] = bytes(data)
    draft = begat.Artifact("new")
    for path, data in wanted.items():
        draft.add(data, path)
    version = store.log_artifact(draft)
    writers: set[int] = set()
    write_at = reader.write_at

    def note(fd: int, data: bytes, offset: int) -> None:
        writers.add(threading.get_ident())
        write_at(fd, data, offset)

    monkeypatch.setattr(reader, "write_at", note)
    version.download(tmp_path / "out")
    assert content_of(tmp_path / "out") == wanted
    assert len(writers) > 1


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("at", [0, 5 * MIB, 9 * MIB - 1])
def test_a_large_file_is_hashed_behind_the_kernels_copy(
    store: begat.Store, tmp_path: Path, at: int
) -> None:
    version = store.log_artifact("x", File(9 * MIB, 0).data)
    version.download(tmp_path / "sound")
    assert content_of(tmp_path / "sound") == {"x": File(9 * MIB, 0).data}
    [path] = [
        p for p in (store.path / "objects").rglob("*") if p.is_file() and p.stat().st_size > MIB
    ]
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(Corrupt):
        version.download(tmp_path / "out")
    assert seen(tmp_path / "out") == {}


INTERRUPTED = """
import sys, time, begat
from begat import files, threads, checkout
threads.cores = checkout.cores = lambda: 3
count = 0
def slow(operation, path):
    global count
    count += 1
    if count == 400:
        print("going", flush=True)
    time.sleep(0.002)
files.fault = slow
begat.get_artifact("x").download(sys.argv[1])
"""


def test_an_interrupt_stops_within_a_second_and_leaves_complete_files_only(
    store: begat.Store, tmp_path: Path
) -> None:
    content = many(tmp_path / "in", 2000)
    store.log_artifact("x", tmp_path / "in")
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "going\n"
        child.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, told = child.communicate(timeout=60)
    assert time.monotonic() - started < 1
    assert "KeyboardInterrupt" in told
    found = content_of(tmp_path / "out")
    assert 0 < len(found) < len(content)
    assert found.items() <= content.items()


def test_many_files_are_written_while_the_interpreter_ends(
    store: begat.Store, tmp_path: Path
) -> None:
    content = many(tmp_path / "in")
    store.log_artifact("x", tmp_path / "in")
    code = (
        "import atexit, sys, begat\n"
        "version = begat.get_artifact('x')\n"
        "atexit.register(lambda: version.download(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert content_of(tmp_path / "out") == content


@pytest.mark.usefixtures("four_cores")
def test_what_is_there_already_is_compared_by_several_threads_and_the_first_difference_named(
    store: begat.Store, tmp_path: Path
) -> None:
    content = many(tmp_path / "in")
    version = store.log_artifact("x", tmp_path / "in")
    version.download(tmp_path / "out")
    differing = sorted(content)[200:203]
    for path in differing:
        (tmp_path / "out" / path).write_bytes(b"mine")
    with pytest.raises(DestinationDiffers, match=f"{differing[0]} is there"):
        version.download(tmp_path / "out")
    with pytest.warns(begat.BegatWarning, match=f"3 files .*, '{differing[0]}' first"):
        version.download(tmp_path / "out", overwrite="preserve")
    version.download(tmp_path / "out", overwrite="overwrite")
    assert content_of(tmp_path / "out") == content


# --- hard links, where they are asked for ---


@pytest.fixture
def linked(store: begat.Store, tmp_path: Path) -> tuple[begat.Version, Path]:
    """A version with a large file, and that file as a hard link of the store's own."""
    make(
        {
            "in/large": File(3 * MIB, 0),
            "in/small": File(10, 1),
            "in/run": File(2 * MIB, 2, is_executable=True),
        },
        tmp_path,
    )
    version = store.log_artifact("x", tmp_path / "in")
    version.download(tmp_path / "out", link="hard")
    return version, tmp_path / "out/large"


def object_of(store: begat.Store, data: bytes) -> Path:
    [place] = store.catalog.bytes.readable_locations([digest_of(data)]).values()
    return store.path / "objects" / place.object


def edit(path: Path) -> None:
    """As root may at any time, and an owner after a chmod: in place, without a trace in size or time."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"edited in place")
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_large_files_become_read_only_links_where_asked_for(
    store: begat.Store, linked: tuple[begat.Version, Path], tmp_path: Path
) -> None:
    version, path = linked
    data = File(3 * MIB, 0).data
    assert path.samefile(object_of(store, data))
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert seen(tmp_path / "out").keys() == {"large", "small", "run"}
    assert (tmp_path / "out/run").stat().st_nlink == 1  # its mode is not the object's
    assert stat.S_IMODE((tmp_path / "out/run").stat().st_mode) & stat.S_IXUSR
    version.download(tmp_path / "plain")
    assert (tmp_path / "plain/large").stat().st_nlink == 1
    assert path.read_bytes() == (tmp_path / "plain/large").read_bytes() == data
    with pytest.raises(TypeError, match="'soft'"):
        version.download(tmp_path / "other", link="soft")  # type: ignore[arg-type]


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_log_does_not_rely_on_a_link_that_was_edited_in_place(
    store: begat.Store, linked: tuple[begat.Version, Path], tmp_path: Path, is_gone: bool
) -> None:
    _, path = linked
    edit(path)
    if is_gone:  # then nothing of the file system tells that there was a link
        path.unlink()
    again = store.log_artifact("y", tmp_path / "in/large")
    assert again.new_bytes >= 3 * MIB
    assert again.read_bytes("large") == File(3 * MIB, 0).data
    assert store.get_artifact("x").read_bytes("large") == File(3 * MIB, 0).data
    assert store.verify().is_sound


def test_a_link_that_was_not_edited_is_relied_on(
    store: begat.Store, linked: tuple[begat.Version, Path], tmp_path: Path
) -> None:
    assert store.log_artifact("y", tmp_path / "in/large").new_bytes < MIB
    assert store.verify().is_sound


def test_a_link_takes_the_place_of_a_link(
    linked: tuple[begat.Version, Path], tmp_path: Path
) -> None:
    version, path = linked
    path.chmod(0o755)  # now it is not the entry any more, and still the same file
    version.download(tmp_path / "out", overwrite="overwrite", link="hard")
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"large", "small", "run"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.parametrize("link", [None, "hard"])
def test_what_was_edited_through_a_link_is_never_handed_out(
    store: begat.Store, linked: tuple[begat.Version, Path], tmp_path: Path, link: Any
) -> None:
    version, path = linked
    edit(path)
    with pytest.raises(Corrupt, match="'large' was not written"):
        version.download(tmp_path / "again", link=link)
    assert not (tmp_path / "again/large").exists()
    with pytest.raises(Corrupt):
        _ = version.path
    with pytest.raises(Corrupt):
        version.read_bytes("large")
    assert not store.verify().is_sound
    store.log_artifact("y", tmp_path / "in/large")  # mends both
    assert version.read_bytes("large") == File(3 * MIB, 0).data


def test_what_a_user_still_has_is_not_freed_by_gc(
    store: begat.Store, linked: tuple[begat.Version, Path], tmp_path: Path
) -> None:
    version, path = linked
    version.delete(force=True)
    told = store.gc().freed_bytes
    freed = store.gc(dry_run=False, wait=10).freed_bytes
    assert told == freed < 3 * MIB  # the executable one, and the pack
    assert path.read_bytes() == File(3 * MIB, 0).data
    assert list((store.path / "linked").iterdir()) == []


def test_where_no_link_can_be_made_files_are_copied(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.log_artifact("x", File(3 * MIB, 0).data)

    def refuse(*_args: Any, **_named: Any) -> None:
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    version.download(tmp_path / "out", link="hard")
    assert (tmp_path / "out/x").read_bytes() == File(3 * MIB, 0).data
    assert (tmp_path / "out/x").stat().st_nlink == 1
