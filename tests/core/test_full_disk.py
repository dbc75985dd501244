"""What a full disk leaves possible: all reading, and freeing space. On real ones: faults/fulldisk.py."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import begat
from begat import files
from begat import sweep as sweep_module
from begat.catalog import RESERVE_FILE, Catalog, connecting, trouble
from begat.catalog.bytes import Bytes
from begat.catalog.labels import Labels
from begat.catalog.reserve import RESERVE_BYTES, Reserve
from begat.errors import BegatWarning, StoreFull, StoreUnavailable
from begat.reference import parse_reference
from begat.sweep import _Sweep
from catalog_facts import new_version
from command_line import begat as command
from trees import MIB

ASK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN IMMEDIATE")
    print("free")
except sqlite3.OperationalError as error:
    print(error.sqlite_errorname)
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.create(tmp_path / "catalog.sqlite", "store") as catalog:
        yield catalog


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> list[type[sqlite3.Connection]]:
    """No room for the file that connections share, where it is not there already; the kinds that were opened."""
    original = connecting._connected
    opened: list[type[sqlite3.Connection]] = []

    def connected(way: Any, kind: type[sqlite3.Connection] = sqlite3.Connection) -> Any:
        path = way.uri.removeprefix("file:").partition("?")[0]
        if kind is sqlite3.Connection and not os.path.exists(f"{path}-shm"):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
            raise error
        opened.append(kind)
        return original(way, kind)

    monkeypatch.setattr(connecting, "_connected", connected)
    return opened


@pytest.fixture
def no_blocks() -> Iterator[None]:
    """The disk has no block left for the reserve."""

    def fail(operation: str, path: str) -> None:
        if operation == "allocate":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    files.fault = fail
    yield
    files.fault = None


def names_beside(catalog: Catalog) -> set[str]:
    return {each.name for each in catalog.path.parent.iterdir()}


# --- reading ---


def test_where_nothing_can_be_shared_a_reader_is_alone_and_leaves_nothing(
    catalog: Catalog, no_index: list[type[sqlite3.Connection]]
) -> None:
    catalog.close()
    with Catalog.open(catalog.path) as reader:
        assert not reader.is_read_only
        assert reader.versions.list_artifacts() == []
        assert reader.check() == []
    assert set(no_index) == {connecting.Alone}
    assert names_beside(catalog) == {"catalog.sqlite"}


def test_what_a_killed_writer_left_in_the_log_is_read_alone(
    catalog: Catalog, no_index: list[type[sqlite3.Connection]], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.close()
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.undo()
            catalog.commits.commit(new_version())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (catalog.path.parent / "catalog.sqlite-wal").stat().st_size > 0
    (catalog.path.parent / "catalog.sqlite-shm").unlink()  # a power cut may take it
    with Catalog.open(catalog.path) as reader:
        assert reader.versions.resolve(parse_reference("digits")).number == 1
    assert set(no_index) == {connecting.Alone}


def test_who_reads_alone_keeps_others_out_for_one_transaction(
    catalog: Catalog, no_index: list[type[sqlite3.Connection]]
) -> None:
    def asked() -> str:
        command = [sys.executable, "-c", ASK, str(catalog.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    catalog.close()
    with catalog._engine.read() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM versions")
        assert asked() == "SQLITE_BUSY"
    assert asked() == "free"
    assert no_index == [connecting.Alone]


def test_beside_one_who_has_it_open_nobody_is_alone(
    catalog: Catalog, no_index: list[type[sqlite3.Connection]]
) -> None:
    other = sqlite3.connect(catalog.path, isolation_level=None)
    other.execute("SELECT count(*) FROM versions").fetchone()
    with Catalog.open(catalog.path) as reader:
        assert reader.versions.list_artifacts() == []
    other.close()
    assert set(no_index) == {sqlite3.Connection}


def test_one_who_came_in_between_is_waited_for_and_then_read_beside(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have it open again when we want to be alone: the first way is tried once more."""
    catalog.close()
    original = connecting._connected
    told = [sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_BUSY]
    kinds: list[type[sqlite3.Connection]] = []

    def connected(way: Any, kind: type[sqlite3.Connection] = sqlite3.Connection) -> Any:
        kinds.append(kind)
        if told:
            error = sqlite3.OperationalError("not now")
            error.sqlite_errorcode = told.pop(0)
            raise error
        return original(way, kind)

    monkeypatch.setattr(connecting, "_connected", connected)
    with catalog._engine.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM versions").scalar() == 0
    assert kinds == [sqlite3.Connection, connecting.Alone, sqlite3.Connection]


def test_threads_that_must_be_alone_read_one_after_the_other(
    catalog: Catalog, no_index: list[type[sqlite3.Connection]]
) -> None:
    catalog.close()
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(catalog.versions.list_artifacts) for _ in range(40)]
        assert [each.result() for each in found] == [[]] * 40
    assert set(no_index) == {connecting.Alone}


# --- the reserve ---


def test_a_store_is_made_with_blocks_that_are_kept_for_gc(store: begat.Store) -> None:
    found = (store.path / RESERVE_FILE).stat()
    assert found.st_size == RESERVE_BYTES
    assert found.st_blocks * 512 >= RESERVE_BYTES


def test_a_full_disk_takes_the_reserve_and_it_is_made_again_when_there_is_room(
    tmp_path: Path, no_blocks: None
) -> None:
    reserve = Reserve(tmp_path / "catalog.sqlite")
    reserve.path.write_bytes(b"torn")
    assert not reserve.keep(RESERVE_BYTES)
    assert reserve.is_spent
    files.fault = None
    assert reserve.keep(RESERVE_BYTES)
    assert reserve.path.stat().st_size == RESERVE_BYTES
    assert not reserve.is_spent


def test_a_disk_that_has_the_reserve_and_no_more_gives_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = Reserve(tmp_path / "catalog.sqlite")
    assert reserve.keep()

    def allocate(fd: int, offset: int, length: int) -> None:
        if length > RESERVE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    assert not reserve.keep(RESERVE_BYTES)
    assert not reserve.path.exists()


def test_where_blocks_cannot_be_asked_for_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    reserve = Reserve(tmp_path / "catalog.sqlite")
    assert reserve.keep(RESERVE_BYTES)
    assert reserve.path.stat().st_blocks * 512 >= RESERVE_BYTES


def test_an_older_store_gets_a_reserve_with_the_next_removal_and_with_gc(
    store: begat.Store,
) -> None:
    store.log_artifact("x", b"1", aliases=["a"])
    acts: list[Callable[[], object]] = [
        lambda: store.remove_alias("x", "a"),
        lambda: store.gc(dry_run=False),
        lambda: store.delete("x:v1"),
    ]
    for act in acts:
        (store.path / RESERVE_FILE).unlink()
        act()
        assert (store.path / RESERVE_FILE).stat().st_size == RESERVE_BYTES


def test_without_a_reserve_on_a_full_disk_what_frees_space_says_how_much_it_needs(
    store: begat.Store, no_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log_artifact("x", b"1")

    def write(what: str) -> Any:
        raise StoreFull(f"{what} failed")

    with monkeypatch.context() as patch, pytest.raises(StoreFull) as caught:
        patch.setattr(store.catalog._engine, "write", write)
        store.delete("x:v1")
    assert "remove 2 MB of other files" in caught.value.message
    assert str(files.disk_of(store.path)) in caught.value.message
    store.delete("x:v1")  # no room for the reserve is no reason to refuse
    assert not (store.path / RESERVE_FILE).exists()


def test_a_spent_reserve_is_made_again_when_the_catalog_is_closed(
    store: begat.Store, no_blocks: None
) -> None:
    store.log_artifact("x", b"1")
    store.delete("x:v1")
    assert not (store.path / RESERVE_FILE).exists()
    files.fault = None
    store.close()
    assert (store.path / RESERVE_FILE).stat().st_size == RESERVE_BYTES


# --- gc where transactions find no room ---


def test_gc_takes_less_at_once_where_the_disk_has_no_room_for_a_transaction(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions and objects go one by one then, and what has many blobs loses some of them before."""
    for number in range(3):
        draft = begat.Artifact("x")
        for at in range(2 * sweep_module.FEW_BLOBS):
            draft.add(f"{number} {at}".encode(), f"{at}")
        version = store.log_artifact(draft)
        if number < 2:
            store.catalog.labels.retire(version.uid, by="test")
    drop, forget, some = Labels.drop_bytes, Bytes.forget_objects, Bytes.forget_blobs
    pieces: list[bool] = []

    def drop_bytes(self: Labels, uids: list[str], *, by: str = "gc") -> list[str]:
        if len(uids) > 1:
            raise StoreFull("full")
        return drop(self, uids, by=by)

    def forget_objects(self: Bytes, names: list[str], *, by: str = "gc") -> list[str]:
        if len(names) > 1 or len(self.blobs_in(names[0])) > sweep_module.FEW_BLOBS:
            raise StoreFull("full")
        return forget(self, names, by=by)

    def forget_blobs(self: Bytes, name: str, most: int) -> bool:
        pieces.append(some(self, name, most))
        return pieces[-1]

    monkeypatch.setattr(Labels, "drop_bytes", drop_bytes)
    monkeypatch.setattr(Bytes, "forget_objects", forget_objects)
    monkeypatch.setattr(Bytes, "forget_blobs", forget_blobs)
    planned = store.gc()
    report = store.gc(dry_run=False)
    assert report.freed_bytes == planned.freed_bytes > 0
    assert [each.what for each in report.removed][:2] == ["x:v1", "x:v2"]
    assert pieces.count(True) >= 4
    assert pieces.count(False) == 2
    assert store.verify().is_sound
    assert store.get_artifact("x").read_bytes("1") == b"2 1"


def test_an_object_of_which_some_blobs_are_forgotten_is_relied_on_as_ever(
    store: begat.Store,
) -> None:
    """gc was stopped in the middle of one, and what it held is logged again."""
    draft = begat.Artifact("x")
    for at in range(10):
        draft.add(f"file {at}".encode(), f"{at}")
    store.log_artifact(draft)
    store.log_artifact("y", b"other")
    store.delete("x:v1")
    [dead] = store.catalog.bytes.dead_objects()
    assert store.catalog.bytes.forget_blobs(dead.name, 5)
    again = store.log_artifact(draft)
    assert not store.catalog.bytes.forget_blobs(dead.name, 5)
    assert [again.read_bytes(f"{at}") for at in range(10)] == [b"file %d" % at for at in range(10)]
    store.gc(dry_run=False)
    assert store.verify().is_sound


def test_gc_writes_packs_anew_when_what_nobody_needs_has_made_room(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, version = mostly_dead(store)
    original = _Sweep._copied
    calls: list[int] = []

    def copied(self: Any, waiting: list[Any], plan: Any) -> Any:
        calls.append(len(waiting))
        if len(calls) == 1:
            waiting.pop()
            raise StoreFull("full")
        return original(self, waiting, plan)

    monkeypatch.setattr(_Sweep, "_copied", copied)
    assert store.gc(dry_run=False).freed_bytes > 2 * MIB
    assert calls == [1, 1]
    assert version.read_bytes("kept") == kept
    assert store.gc().freed_bytes == 0


@pytest.mark.parametrize("place", ["copied", "relocate"])
def test_gc_that_cannot_write_packs_anew_says_so_and_reports_what_went(
    place: str, store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, version = mostly_dead(store)

    def fail(*_arguments: Any, **_more: Any) -> Any:
        raise StoreFull("full")

    home: type = _Sweep if place == "copied" else Bytes
    with monkeypatch.context() as patch:
        patch.setattr(home, "_copied" if place == "copied" else place, fail)
        with pytest.warns(BegatWarning, match="too full to write packs anew"):
            report = store.gc(dry_run=False)
    assert report.freed_bytes > MIB
    assert version.read_bytes("kept") == kept
    assert store.verify().is_sound
    # Nothing of the attempt is left, and the next one does it.
    assert not [each for each in store.gc().removed if "no row names it" in each.reason]
    assert store.gc(dry_run=False).freed_bytes > 0
    assert store.gc().freed_bytes == 0


def mostly_dead(store: begat.Store) -> tuple[bytes, begat.Version]:
    """A pack that is to be written anew, and an object that is to go; what is kept of the pack."""
    kept = os.urandom(100)
    store.log_artifact(begat.Artifact("x").add(kept, "kept").add(os.urandom(MIB // 2), "dead"))
    version = store.log_artifact(begat.Artifact("x").add(kept, "kept"))
    store.log_artifact("large", os.urandom(2 * MIB))
    for ref in ("x:v1", "large:v1"):
        store.delete(ref)
    return kept, version


# --- words ---


def test_a_log_that_finds_no_room_names_the_disk_and_what_frees_space(
    store: begat.Store, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(2 * MIB))

    def fail(operation: str, path: str) -> None:
        if operation in ("write", "copy"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    files.fault = fail
    try:
        with pytest.raises(StoreFull) as caught:
            store.log_artifact("x", tmp_path / "file")
    finally:
        files.fault = None
    assert str(files.disk_of(store.path)) in caught.value.message
    assert "begat gc --delete" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_disk_that_can_hold_no_more_files_is_called_one(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = sqlite3.OperationalError("unable to open database file")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    name = str(store.catalog.path)
    assert isinstance(trouble.translated(error, "opening", name), StoreUnavailable)
    found = os.statvfs(name)
    taken = os.statvfs_result((*found[:5], 60, 0, 0, *found[8:]))
    monkeypatch.setattr(os, "statvfs", lambda _path: taken)
    told = trouble.translated(error, "opening", name)
    assert isinstance(told, StoreFull)
    assert "df -i" in told.message
    assert str(files.disk_of(store.path)) in told.message


def test_doctor_says_whether_blocks_are_kept(store: begat.Store) -> None:
    def found() -> str:
        told = command("doctor", "--json").json
        return next(each["value"] for each in told if each["name"] == "kept for gc on a full disk")

    assert found() == "1.0 MB"
    (store.path / RESERVE_FILE).unlink()
    assert "begat gc --delete" in found()
