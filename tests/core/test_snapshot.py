"""Listing a folder and storing it: every path is checked first, and what is stored is what was hashed."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import begat
from begat import snapshot
from begat.errors import BadPath, SourceChanged, StoreFull, UnsupportedFile
from begat.listing import LocalFile
from begat.model import EmptyDirectory, Symlink
from begat.walk import scan
from trees import MIB, File, make


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


def listed(root: Path, **options) -> dict[str, str]:
    left_out: list[str] = []
    found = scan(root, left_out=left_out.append, **options)
    return {path: type(source).__name__ for path, source in found}


def test_files_links_and_empty_folders_are_listed(tmp_path: Path) -> None:
    make({"a/b": File(1, 0), "c": File(0, 0, is_executable=True)}, tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "l").symlink_to("a")
    found = dict(scan(tmp_path, left_out=print))
    b, c = found.pop("a/b"), found.pop("c")
    assert isinstance(b, LocalFile)
    assert isinstance(c, LocalFile)
    assert (b.path, b.size_bytes, b.is_executable) == (str(tmp_path / "a/b"), 1, False)
    assert (c.path, c.size_bytes, c.is_executable) == (str(tmp_path / "c"), 0, True)
    assert found == {
        "empty": EmptyDirectory("empty"),
        "l": Symlink("l", "a"),
    }


def test_nothing_is_read_while_a_folder_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make({"a": File(1, 0), "b/c": File(1, 0)}, tmp_path)

    def never(*args: object, **options: object) -> int:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(snapshot, "open_source", never)
    assert len(listed(tmp_path)) == 2


def test_names_that_could_not_be_restored_are_refused_before_a_byte_is_stored(
    store: begat.Store, tmp_path: Path
) -> None:
    for number, name in enumerate(
        [b"back\\slash", b"new\nline", b"\xff\xfe", "bidi\u202e".encode(), b"C:"]
    ):
        root = tmp_path / str(number)
        root.mkdir()
        (root / "a").write_bytes(b"fine")
        with open(os.path.join(os.fsencode(root), name), "wb") as file:
            file.write(b"x")
        with pytest.raises(BadPath):
            store.log_artifact("x", root)
    assert [path for path in (store.path / "objects").rglob("*") if path.is_file()] == []
    assert list((store.path / "tmp").iterdir()) == []


def test_a_socket_or_device_is_an_error_that_names_it_and_never_a_hang(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("a-socket")
        with pytest.raises(UnsupportedFile, match=r"a-socket.*socket"):
            store.log_artifact("x", tmp_path)
    with pytest.raises(UnsupportedFile, match="device"):
        store.log_artifact("x", "/dev/null")


def test_names_that_clash_elsewhere_warn_and_portable_refuses_them(
    store: begat.Store, tmp_path: Path
) -> None:
    make({"d/Readme": File(1, 0), "d/README": File(1, 0)}, tmp_path)
    with pytest.raises(BadPath, match="case-insensitive"):
        store.log_artifact("x", tmp_path / "d", portable=True)
    assert store.artifacts() == []
    with pytest.warns(begat.BegatWarning, match="case-insensitive"):
        store.log_artifact("x", tmp_path / "d")
    make({"d/con": File(1, 0), "d/trail.": File(1, 0)}, tmp_path)
    with pytest.warns(begat.BegatWarning, match=r"case-insensitive .*\(and 2 more\)"):
        store.log_artifact("x", tmp_path / "d")


def test_a_walk_that_follows_links_keeps_to_the_inside_and_ends(tmp_path: Path) -> None:
    make({"d/a/f": File(1, 0), "d/b": File(1, 0)}, tmp_path)
    (tmp_path / "d/again").symlink_to("a")
    (tmp_path / "d/file").symlink_to("b")
    assert listed(tmp_path / "d", symlinks="follow").keys() == {"a/f", "b", "again/f", "file"}
    (tmp_path / "d/a/up").symlink_to("..")
    with pytest.raises(UnsupportedFile, match="into itself"):
        listed(tmp_path / "d", symlinks="follow")
    assert listed(tmp_path / "d")["a/up"] == "Symlink"


# --- files that change while they are read ---


@pytest.mark.parametrize("size", [1000, 3 * MIB, 17 * MIB])
@pytest.mark.parametrize("how", ["grows", "shrinks", "is changed", "is replaced", "goes"])
def test_a_file_that_changes_while_it_is_read_makes_no_version(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, how: str
) -> None:
    path = tmp_path / "d/file"
    make({"d/file": File(size, 0)}, tmp_path)
    original = snapshot.open_source

    def open_source(name: str | Path, **options: int) -> int:
        if how == "goes":
            path.unlink()
        fd = original(name, **options)
        real = os.fstat

        # The change comes after the first look at the open file: as early as it can be noticed.
        def fstat(opened: int) -> os.stat_result:
            seen = real(opened)
            if opened == fd:
                monkeypatch.setattr(os, "fstat", real)
                change(path, how, size)
            return seen

        monkeypatch.setattr(os, "fstat", fstat)
        return fd

    monkeypatch.setattr(snapshot, "open_source", open_source)
    with pytest.raises(SourceChanged, match="file"):
        store.log_artifact("x", tmp_path / "d")
    monkeypatch.undo()
    assert store.artifacts() == []


def test_a_log_that_fails_leaves_nothing_of_what_it_had_stored(
    tmp_path: Path, store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "first").write_bytes(os.urandom(3_000_000))
    (tmp_path / "d" / "last").write_bytes(b"changes")
    original = snapshot.open_source
    stored: list[str] = []

    def open_source(name: str | Path, **options: int) -> int:
        if Path(name).name == "last":
            stored.extend(found for found, _ in store.objects.list())
            Path(name).unlink()
        return original(name, **options)

    monkeypatch.setattr(snapshot, "open_source", open_source)
    with pytest.raises(SourceChanged, match="last"):
        store.log_artifact("x", tmp_path / "d")
    assert len(stored) == 1  # the first file was stored already
    assert list(store.objects.list()) == []


def change(path: Path, how: str, size: int) -> None:
    if how == "grows":
        with path.open("ab") as file:
            file.write(b"more")
    elif how == "shrinks":
        os.truncate(path, size // 2)
    elif how == "is changed":
        with path.open("r+b") as file:
            file.write(b"\0" * size)
    elif how == "is replaced":
        (path.parent.parent / "other").write_bytes(b"\0" * size)
        os.replace(path.parent.parent / "other", path)


def facts_of(folder: Path) -> dict[Path, tuple[int, ...]]:
    found = {path: path.stat() for path in folder.rglob("*")}
    return {p: (s.st_ino, s.st_mtime_ns, s.st_ctime_ns, s.st_nlink) for p, s in found.items()}


def test_users_files_are_not_touched(store: begat.Store, tmp_path: Path) -> None:
    make({"d/a": File(10, 0), "d/b": File(2 * MIB, 0)}, tmp_path)
    before = facts_of(tmp_path / "d")
    store.log_artifact("x", tmp_path / "d").download(tmp_path / "copy")
    assert facts_of(tmp_path / "d") == before
    (tmp_path / "copy/b").write_bytes(b"changed")  # a copy shares nothing with the store
    assert store.verify().is_sound


def test_a_full_disk_is_told_and_leaves_no_temporary_file(
    store: begat.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from begat import files

    make({"d/a": File(10, 0), "d/b": File(2 * MIB, 0)}, tmp_path)

    def full(operation: str, path: str) -> None:
        if operation in ("write", "copy"):
            raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(files, "fault", full)
    with pytest.raises(StoreFull, match=r"(storing .*/d/b|writing to .*/tmp) failed: No space"):
        store.log_artifact("x", tmp_path / "d")
    monkeypatch.setattr(files, "fault", None)
    assert list((store.path / "tmp").iterdir()) == []
    assert store.log_artifact("x", tmp_path / "d").number == 1
