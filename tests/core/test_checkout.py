"""A manifest becomes a folder: verified bytes under final names only, and nothing outside of the destination."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import begat
from begat.checkout import checkout, read_manifest
from begat.errors import Corrupt, DestinationDiffers
from begat.identity import digest_of
from begat.model import EmptyDirectory, StoredFile, Symlink
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


def test_the_manifest_is_read_back_from_its_pages(store: begat.Store) -> None:
    draft = begat.Artifact("x")
    for number in range(3000):
        draft.add(b"%d" % (number % 7), f"d{number % 13}/{number}")
    version = store.log_artifact(draft)
    record = store.catalog.versions.get(version.uid)
    manifest = read_manifest(store.reader(), record.root)
    assert manifest.digest == version.digest
    assert len(manifest.entries) == 3000
    assert version.entries == manifest.entries
