"""A folder is removed with all that is in it: through no link, however deep, and with few descriptors."""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import begat
from begat import files
from begat.cache import Cache
from begat.errors import DestinationDiffers
from begat.folders import Folder
from begat.removing import remove_tree
from trees import open_below

DEPTH = 3_000


def tree(root: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), root)
        for folder, folders, names in os.walk(root)
        for name in (*folders, *names)
    }


def plant(top: Path, *, depth: int = DEPTH) -> None:
    """A chain of folders, some with a file and a second, empty folder."""
    with Folder.at(top.parent) as above:
        here = above.enter(top.name)
    for number in range(depth):
        if number % 500 == 0:
            os.close(here.create("file"))
            here.enter("empty").close()
        inner = here.enter("d")
        here.close()
        here = Folder(top, inner._fd)  # a path that long is not needed
    here.close()


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(autouse=True)
def nothing_deep_is_left(tmp_path: Path) -> Iterator[None]:
    """Python's own way fails where a tree is deeper than its stack, and pytest's clean-up with it."""
    yield
    subprocess.run(["rm", "-rf", tmp_path], check=True)


def test_a_tree_is_removed_read_only_folders_too(tmp_path: Path) -> None:
    root = tmp_path / "r"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_text("x")
    (root / "empty").mkdir()
    for path in (root / "a" / "b" / "file", root / "a" / "b", root / "a"):
        path.chmod(0o555)
    remove_tree(root)
    assert tree(tmp_path) == set()
    assert open_below(tmp_path) == []


def test_links_in_a_tree_are_removed_and_never_followed(tmp_path: Path) -> None:
    root, precious = tmp_path / "r", tmp_path / "precious"
    (root / "d").mkdir(parents=True)
    precious.mkdir(mode=0o750)
    (precious / "file").write_text("x")
    (root / "to-folder").symlink_to(precious)
    (root / "d" / "to-file").symlink_to(precious / "file")
    (root / "d" / "up").symlink_to("..")
    (root / "dangling").symlink_to("nowhere")
    remove_tree(root)
    assert tree(tmp_path) == {"precious", "precious/file"}
    assert stat.S_IMODE(precious.stat().st_mode) == 0o750


def test_a_link_in_place_of_a_tree_is_removed_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o750)
    (precious / "file").write_text("x")
    (tmp_path / "r").symlink_to(precious)
    remove_tree(tmp_path / "r")
    assert tree(tmp_path) == {"precious", "precious/file"}
    assert stat.S_IMODE(precious.stat().st_mode) == 0o750


def test_removing_a_tree_that_is_not_there_does_nothing(tmp_path: Path) -> None:
    remove_tree(tmp_path / "r")
    remove_tree(tmp_path / "r" / "s")


def test_a_tree_is_removed_whose_paths_are_longer_than_the_system_takes(tmp_path: Path) -> None:
    # 4096 bytes are allowed inside a version, and the folder it is restored to comes on top of them.
    folders = [Folder.at(tmp_path / "r")]
    for _ in range(20):
        folders.append(folders[-1].enter("x" * 250))
    os.close(folders[-1].create("file"))
    folders[-1].sync()
    for folder in folders:
        folder.close()
    remove_tree(tmp_path / "r")
    assert tree(tmp_path) == set()


def test_sockets_and_pipes_in_a_tree_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r").mkdir()
    os.mkfifo(tmp_path / "r" / "pipe")
    monkeypatch.chdir(tmp_path / "r")  # the address of a socket may have 107 bytes only
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    remove_tree(tmp_path / "r")
    assert tree(tmp_path) == set()


@pytest.mark.usefixtures("few_descriptors")
def test_a_tree_is_removed_that_is_deeper_than_the_stack_and_the_descriptors(
    tmp_path: Path,
) -> None:
    plant(tmp_path / "r")
    remove_tree(tmp_path / "r")
    assert os.listdir(tmp_path) == []
    assert open_below(tmp_path) == []


def test_a_folder_that_is_moved_away_meanwhile_is_not_followed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going up again from a folder that was moved would lead to where it is now, and empty that."""
    (tmp_path / "r" / "a" / "b").mkdir(parents=True)
    (tmp_path / "r" / "a" / "b" / "file").touch()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "kept").touch()

    def move(operation: str, path: str) -> None:
        if operation == "remove" and path.endswith("/b/file"):
            os.rename(tmp_path / "r" / "a" / "b", tmp_path / "precious" / "b")

    monkeypatch.setattr(files, "fault", move)
    with pytest.raises(DestinationDiffers, match="was moved"):
        remove_tree(tmp_path / "r")
    assert open_below(tmp_path) == []
    assert tree(tmp_path / "precious") == {"kept", "b"}


def test_what_others_remove_or_add_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r" / "a").mkdir(parents=True)
    (tmp_path / "r" / "a" / "file").touch()
    (tmp_path / "r" / "b").mkdir()

    def meddle(operation: str, path: str) -> None:
        if operation == "remove" and path.endswith("/a/file"):
            (tmp_path / "r" / "a" / "file").unlink()
            (tmp_path / "r" / "a" / "new").touch()
        if operation == "rmdir" and path.endswith("/b") and (tmp_path / "r" / "b").exists():
            (tmp_path / "r" / "b").rmdir()

    monkeypatch.setattr(files, "fault", meddle)
    remove_tree(tmp_path / "r")
    assert tree(tmp_path) == {"r", "r/a", "r/a/new"}


# --- where somebody may have planted one ---


def test_gc_removes_a_tree_that_was_planted_in_tmp(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        plant(store.objects.tmp / "deep")
        (store.objects.tmp / "deep" / "d" / "leftover").write_bytes(b"1234567")
        assert store.gc().freed_bytes == 7
        assert store.gc(dry_run=False).freed_bytes == 7
        assert os.listdir(store.objects.tmp) == []


def test_a_cached_folder_with_a_planted_tree_is_mended_and_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEGAT_CACHE", str(tmp_path / "cache"))
    with begat.open_store(tmp_path / "s") as store:
        version = store.log_artifact("a", b"bytes")
        names = [entry.path for entry in version.entries]
        folder = version.path
        folder.chmod(0o755)
        plant(folder / "deep")
        assert version.path == folder
        assert os.listdir(folder) == names
        plant(folder.parent / "deep")
        store._cache._held.pop(version.digest).release()  # as when this process has ended
        assert Cache(folder.parents[1]).remove(version.digest)
        assert not folder.parent.exists()
