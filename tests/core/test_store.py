"""A store: made once, opened by many, read where nothing can be written, refused where it would lose data."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import begat
from begat import files
from begat.catalog.opening import refuse_network
from begat.errors import (
    BegatError,
    FormatTooNew,
    ReadOnly,
    StoreUnavailable,
)


def everything(root: Path) -> dict[str, str]:
    """Every path below a folder with its mode and a hash of its bytes."""
    found: dict[str, str] = {}
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            place = Path(folder, name)
            data = b"" if place.is_dir() else place.read_bytes()
            mode = place.lstat().st_mode
            found[str(place.relative_to(root))] = f"{mode:o} {hashlib.sha256(data).hexdigest()}"
    return found


def processes(count: int, code: str) -> list[subprocess.CompletedProcess[str]]:
    """Several Python processes at once, each with its number in argv; waits for all."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", "import os, sys, begat\n" + textwrap.dedent(code), str(n)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


# --- making ---


def test_a_store_is_made_where_there_is_none_and_found_again(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "a/b/store") as store:
        store.log_artifact("x", b"1")
        uid = store.uid
    with begat.open_store(str(tmp_path / "a/b/store")) as again:
        assert again.uid == uid
        assert again.get_artifact("x").read_bytes("x") == b"1"
    names = {path.name for path in (tmp_path / "a/b/store").iterdir()}
    assert {"format.json", "catalog.sqlite", "locks", "objects", "tmp", "damaged"} <= names


def test_several_processes_make_one_store_between_them(tmp_path: Path) -> None:
    done = processes(
        6,
        """
        store = begat.open_store(os.environ["BEGAT_STORE"])
        print(store.uid, store.log_artifact("x", sys.argv[1].encode()).number)
        """,
    )
    assert [process.stderr for process in done] == [""] * 6
    told = [process.stdout.split() for process in done]
    assert len({uid for uid, _ in told}) == 1
    assert sorted(int(number) for _, number in told) == [1, 2, 3, 4, 5, 6]


def test_making_a_store_may_be_stopped_anywhere_and_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations: list[str] = []
    monkeypatch.setattr(files, "fault", lambda operation, path: operations.append(operation))
    begat.open_store(tmp_path / "counted").close()
    assert len(operations) > 10
    for stop_at in range(len(operations)):
        path = tmp_path / f"s{stop_at}"
        pid = os.fork()
        if pid == 0:
            done: list[str] = []

            def stop(operation: str, place: str, done=done, stop_at=stop_at) -> None:
                if len(done) == stop_at:
                    os._exit(9)
                done.append(operation)

            files.fault = stop
            begat.open_store(path)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        monkeypatch.setattr(files, "fault", None)
        with begat.open_store(path) as store:
            assert store.log_artifact("x", b"1").number == 1
            assert store.verify().is_sound


@pytest.mark.parametrize("name", ["notes.txt", "objects", "catalog.sqlite", ".git"])
def test_a_folder_with_other_files_is_not_made_a_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(StoreUnavailable, match="other files"):
        begat.open_store(tmp_path / "mine")
    with pytest.raises(StoreUnavailable, match="is a file"):
        begat.open_store(tmp_path / "mine" / name)
    assert everything(tmp_path) == before


def test_objects_without_their_format_file_are_not_taken_for_a_new_store(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact("x", b"1")
    (tmp_path / "s/format.json").rename(tmp_path / "format.json")
    with pytest.raises(StoreUnavailable, match="is missing"):
        begat.open_store(tmp_path / "s")
    (tmp_path / "format.json").rename(tmp_path / "s/format.json")
    with begat.open_store(tmp_path / "s") as store:
        assert store.get_artifact("x").read_bytes("x") == b"1"


def test_catalog_and_objects_may_lie_in_two_places(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s", catalog=tmp_path / "c", objects=tmp_path / "o") as store:
        store.log_artifact("x", b"1")
    assert (tmp_path / "c/catalog.sqlite").is_file()
    assert any((tmp_path / "o/objects").iterdir())
    assert not (tmp_path / "s/objects").exists()
    with begat.open_store(tmp_path / "s") as store:
        assert store.get_artifact("x").read_bytes("x") == b"1"


# --- formats that are not ours ---


def test_a_newer_format_is_refused_and_not_one_byte_is_written(tmp_path: Path) -> None:
    begat.open_store(tmp_path / "s").close()
    facts = json.loads((tmp_path / "s/format.json").read_text())
    (tmp_path / "s/format.json").write_text(json.dumps({**facts, "format": 2, "new": "thing"}))
    before = everything(tmp_path / "s")
    with pytest.raises(FormatTooNew, match="Upgrade begat"):
        begat.open_store(tmp_path / "s")
    assert everything(tmp_path / "s") == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 0}', '{"format": "1"}', '{"format": 1}', "\xff"]
)
def test_a_damaged_format_file_is_told_and_not_one_byte_is_written(
    tmp_path: Path, text: str
) -> None:
    begat.open_store(tmp_path / "s").close()
    (tmp_path / "s/format.json").write_text(text, encoding="latin-1")
    before = everything(tmp_path / "s")
    with pytest.raises(StoreUnavailable, match=r"format\.json"):
        begat.open_store(tmp_path / "s")
    assert everything(tmp_path / "s") == before


def test_the_catalog_of_another_store_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with begat.open_store(tmp_path / name) as store:
            store.log_artifact("x", name.encode())
    shutil.copyfile(tmp_path / "a/catalog.sqlite", tmp_path / "b/catalog.sqlite")
    with pytest.raises(StoreUnavailable, match="another store"):
        begat.open_store(tmp_path / "b")


def test_a_catalog_that_is_gone_or_no_database_is_told_with_what_to_do(tmp_path: Path) -> None:
    begat.open_store(tmp_path / "s").close()
    (tmp_path / "s/catalog.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(BegatError, match="begat rebuild"):
        begat.open_store(tmp_path / "s")
    (tmp_path / "s/catalog.sqlite").unlink()
    with pytest.raises(StoreUnavailable, match="no catalog"):
        begat.open_store(tmp_path / "s")


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "lustre", "fuse.sshfs"])
def test_a_catalog_on_a_network_file_system_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with pytest.raises(StoreUnavailable, match=r"local disk.*objects may stay"):
        refuse_network(tmp_path, kind)
    refuse_network(tmp_path, "ext4")
    refuse_network(tmp_path, None)


# --- reading where nothing can be written ---


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A store with a version, whose last writer was killed, on a file system that is mounted read-only."""
    path = tmp_path / "original"
    code = f"store = begat.open_store({str(path)!r}); store.log_artifact('x', b'1'); os.kill(os.getpid(), 9)"
    [done] = processes(1, code)
    assert done.returncode == -9
    assert (path / "catalog.sqlite-wal").stat().st_size > 0
    if os.geteuid():
        modes = {place: place.stat().st_mode for place in [path, *path.rglob("*")]}
        for place, mode in modes.items():
            place.chmod(mode & ~0o222)
        yield path
        for place, mode in modes.items():
            place.chmod(mode)
        return
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "--bind", str(path), str(mounted)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(mounted)], check=True)
        yield mounted
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_store_is_read_where_nothing_can_be_written(read_only: Path, tmp_path: Path) -> None:
    before = everything(read_only)
    with begat.open_store(read_only) as store:
        assert store.is_read_only
        version = store.get_artifact("x")
        assert version.read_bytes("x") == b"1"
        assert version.path.joinpath("x").read_bytes() == b"1"
        assert version.download(tmp_path / "d").joinpath("x").read_bytes() == b"1"
        assert store.verify().is_sound
        assert store.gc().dry_run
        assert [v.ref for v in store.versions("x")] == ["x:v1"]
        assert store.lineage("x").versions
        for act in (
            lambda: store.log_artifact("x", b"2"),
            lambda: store.start_run("r"),
            lambda: store.alias("x:v1", "best"),
            lambda: store.delete("x:v1"),
            lambda: store.gc(dry_run=False),
            lambda: version.add_tags("t"),
        ):
            with pytest.raises(ReadOnly):
                act()
    assert everything(read_only) == before


# --- several handles, processes and forks ---


def test_what_one_handle_stores_another_sees_at_once(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as one, begat.open_store(tmp_path / "s") as two:
        version = one.log_artifact("x", b"1")
        assert two.get_artifact("x").uid == version.uid
        two.alias("x:v1", "best")
        assert version.aliases == ("best", "latest")
        assert not two.log_artifact("x", b"1").is_new


def test_a_closed_store_can_be_used_again(tmp_path: Path) -> None:
    store = begat.open_store(tmp_path / "s")
    store.log_artifact("x", b"1")
    store.close()
    store.close()
    with begat.open_store(tmp_path / "s") as again:
        assert again.get_artifact("x").number == 1


def test_a_store_is_used_before_and_after_a_fork(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact("x", b"0")
        pids: list[int] = []
        for n in range(4):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    store.log_artifact("x", b"child %d" % n)
                    code = 0 if store.get_artifact("x:v1").read_bytes("x") == b"0" else 2
                finally:
                    os._exit(code)
            pids.append(pid)
            store.log_artifact("x", b"parent %d" % n)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
        assert [v.number for v in store.versions("x")] == list(range(1, 10))
        assert store.verify().is_sound


def test_a_backup_is_a_whole_catalog(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        version = store.log_artifact("x", b"1", aliases=["best"])
        backup = store.backup(tmp_path / "backup.sqlite")
        store.log_artifact("x", b"2")
    for name in ("catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"):
        (tmp_path / "s" / name).unlink(missing_ok=True)
    shutil.copyfile(backup, tmp_path / "s/catalog.sqlite")
    with begat.open_store(tmp_path / "s") as store:
        assert store.get_artifact("x:best").uid == version.uid
        assert [v.number for v in store.versions("x")] == [1]
        assert store.log_artifact("x", b"3").number == 2
        assert store.verify().is_sound
