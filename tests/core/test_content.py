"""What is in a version, read in every way: while its bytes are kept, damaged, dropped; and of one that was deleted."""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import begat
from begat.content import Content
from begat.errors import BegatError, BytesRetired, Corrupt, VersionDeleted
from command_line import begat as command
from command_line import done

LARGE = random.Random(7).randbytes(3 << 20)  # of several parts: an open file reads on in the store

# Each gets a version of one file named `a`, and an empty folder.
WAYS: dict[str, Callable[[begat.Version, Path], object]] = {
    "path": lambda version, folder: version.path,
    "file": lambda version, folder: version.file,
    "entries": lambda version, folder: version.entries,
    "files": lambda version, folder: version.files(),
    "files of a glob": lambda version, folder: version.files("a*"),
    "below": lambda version, folder: version.below("a"),
    "open": lambda version, folder: version.open("a").read(),
    "read_bytes": lambda version, folder: version.read_bytes("a"),
    "stream": lambda version, folder: list(version.stream("a")),
    "download": lambda version, folder: version.download(folder / "all"),
    "download of some": lambda version, folder: version.download(folder / "some", include="a"),
    "links": lambda version, folder: version.download(folder / "links", link="hard"),
    "draft": lambda version, folder: version.draft(),
    "diff": lambda version, folder: version.diff(version),
    "verify": lambda version, folder: version.verify(),
    "check_bytes": lambda version, folder: version.check_bytes(),
}
# These read no file: the manifest is all they need.
NEEDS_NO_FILE = {"entries", "files", "files of a glob", "below", "draft", "diff", "check_bytes"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[begat.Store]:
    with begat.open_store(tmp_path / "store") as opened:
        yield opened


def log(store: begat.Store, data: bytes = LARGE, name: str = "digits") -> begat.Version:
    return store.log_artifact(begat.Artifact(name).add(data, "a"))


def read_in_every_way(version: begat.Version, folder: Path) -> dict[str, str]:
    """Way -> what was said, for the ways that failed."""
    failed: dict[str, str] = {}
    for name, read in WAYS.items():
        try:
            read(version, folder)
        except BegatError as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return failed


def delete_and_collect(store: begat.Store, version: begat.Version) -> None:
    version.delete()
    assert store.gc(dry_run=False).freed_bytes > 0


def words(store: begat.Store, ref: str = "digits:v1") -> re.Pattern[str]:
    name = re.escape(ref.partition(":")[0])
    return re.compile(
        rf"{ref} was deleted on \d{{4}}-\d\d-\d\d at \d\d:\d\d UTC by {store.user}; its place in the lineage is kept\. "
        rf"Nothing was changed; {name} has no version that is not deleted \(begat history {name}\)"
    )


# --- deleted ---


@pytest.mark.parametrize("is_known", [False, True], ids=["fresh", "read before"])
@pytest.mark.parametrize("is_collected", [False, True], ids=["not collected", "collected"])
def test_a_deleted_version_says_so_in_the_same_words_however_it_is_read(
    store: begat.Store, tmp_path: Path, is_known: bool, is_collected: bool
) -> None:
    version = log(store)
    if (
        is_known
    ):  # manifest, places of blobs and the cached folder: all that could answer in its stead
        assert read_in_every_way(version, tmp_path / "before") == {}
    version.delete()
    if is_collected:
        store.gc(dry_run=False)
    said = read_in_every_way(version, tmp_path / "after")
    assert said.keys() == WAYS.keys()
    [one] = set(said.values())
    assert words(store).fullmatch(one.removeprefix("VersionDeleted: "))
    assert not (tmp_path / "after").exists()


def test_a_version_deleted_by_another_process_says_so(store: begat.Store, tmp_path: Path) -> None:
    version = log(store)
    assert read_in_every_way(version, tmp_path / "before") == {}
    with begat.open_store(tmp_path / "store") as other:
        delete_and_collect(other, other.get_artifact("digits:v1"))
    assert read_in_every_way(version, tmp_path / "after").keys() == WAYS.keys()


def test_a_deleted_version_says_so_though_another_one_has_the_same_bytes(
    store: begat.Store, tmp_path: Path
) -> None:
    version, other = log(store), log(store, name="copy")
    version.delete()
    store.gc(dry_run=False)
    assert read_in_every_way(version, tmp_path / "a").keys() == WAYS.keys()
    assert read_in_every_way(other, tmp_path / "b") == {}


def test_the_difference_to_a_deleted_version_is_refused(store: begat.Store) -> None:
    version, other = log(store), log(store, b"another")
    assert version.diff(other).changed
    delete_and_collect(store, version)
    for act in (lambda: version.diff(other), lambda: other.diff(version)):
        with pytest.raises(VersionDeleted, match="the newest is digits:v2"):
            act()


def test_an_open_file_reads_on_until_its_bytes_are_collected(store: begat.Store) -> None:
    version = log(store)
    with version.open("a") as file:
        version.delete()
        assert file.read(10) == LARGE[:10]
        assert file.seek(-10, os.SEEK_END)
        assert file.read() == LARGE[-10:]
        assert store.gc(dry_run=False).freed_bytes > 0
        for at in (0, len(LARGE) // 2):
            file.seek(at)
            with pytest.raises(VersionDeleted) as caught:
                file.read()
            assert words(store).fullmatch(str(caught.value))


@pytest.mark.parametrize("way", sorted(WAYS.keys() - NEEDS_NO_FILE))
@pytest.mark.parametrize("is_known", [False, True], ids=["fresh", "read before"])
def test_what_is_collected_between_the_question_and_the_bytes_is_deleted_and_no_damage(
    store: begat.Store, tmp_path: Path, way: str, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = log(store)
    if is_known:  # so it is the file's bytes that are missing, and not the manifest
        assert version.entries
    check = Content.check

    def check_then_delete(content: Content) -> object:
        found = check(content)
        delete_and_collect(store, version)
        return found

    monkeypatch.setattr(Content, "check", check_then_delete)
    with pytest.raises(VersionDeleted) as caught:
        WAYS[way](version, tmp_path / "there")
    assert words(store).fullmatch(str(caught.value))


def test_every_command_says_the_same_of_a_deleted_version() -> None:
    Path("a").write_bytes(b"one")
    done("log", "digits", "a")
    digest = done("show", "digits:v1", "--json").json["digest"]
    Path("a").write_bytes(b"two")
    done("log", "digits", "a")
    done("rm", "digits:v1", "--yes")
    done("gc", "--delete")
    lines = [
        *("ls digits:v1", "ls digits:v1/a", f"ls digits@{digest}", "get digits:v1", "get digits:v1/a"),
        *("diff digits:v1 digits:v2", "diff digits:v2 digits:v1", "verify digits:v1"),
        *("alias digits:v1 best", "tag digits:v1 seen", "rm digits:v1 --yes"),
        *("run --uses digits:v1 -- true", f"run --uses digits@{digest[:12]} -- true"),
    ]  # fmt: skip
    said = {line: command(*line.split()) for line in lines}
    assert {told.code for told in said.values()} == {1}
    [one] = {" ".join(told.err.split()) for told in said.values()}
    assert re.search(
        r"digits:v1 was deleted on .* by \w+; .*the newest is digits:v2 \(begat history", one
    )
    # What is told of a deleted version itself is told as before.
    assert "deleted" in done("show", "digits:v1").out
    assert done("why", "digits:v1").out.startswith("digits:v1 was deleted on ")


# --- retired, and dropped ---


def test_a_version_without_bytes_says_so_in_the_same_words_however_it_is_read(
    store: begat.Store, tmp_path: Path
) -> None:
    version = log(store)
    store.catalog.labels.retire(version.uid, by="test")
    assert read_in_every_way(version, tmp_path / "before") == {}
    assert store.gc(dry_run=False).freed_bytes > 0
    said = read_in_every_way(version, tmp_path / "after")
    assert said.keys() == WAYS.keys()
    [one] = set(said.values())
    assert one.startswith("BytesRetired: the bytes of 'digits:v1' were dropped")
    with pytest.raises(BytesRetired):
        store.verify("digits:v1")


# --- damaged ---


@pytest.mark.parametrize("is_known", [False, True], ids=["fresh", "read before"])
def test_a_damaged_version_that_is_not_deleted_says_what_is_damaged(
    store: begat.Store, tmp_path: Path, is_known: bool
) -> None:
    version = log(store)
    ways = WAYS.keys() - NEEDS_NO_FILE - {"verify"}
    if is_known:
        assert read_in_every_way(version, tmp_path / "before") == {}
    for path in (store.path / "objects").rglob("*-*"):
        path.unlink()
    shutil.rmtree(os.environ["BEGAT_CACHE"], ignore_errors=True)
    said = read_in_every_way(version, tmp_path / "after")
    assert said.keys() >= (ways if is_known else WAYS.keys() - {"verify", "check_bytes"})
    for one in said.values():
        assert one.startswith("ObjectMissing: digits:v1: ")
    assert version.verify()[0].place.startswith("digits:v1")


def test_what_an_open_file_finds_damaged_is_named(store: begat.Store) -> None:
    version = log(store)
    with version.open("a") as file:
        for path in (store.path / "objects").rglob("*-*"):
            path.unlink()
        file.seek(len(LARGE) // 2)
        with pytest.raises(Corrupt, match=r"^digits:v1: "):
            file.read()


def test_one_damaged_file_is_named_with_its_version_when_it_is_got() -> None:
    Path("a").write_bytes(LARGE)
    done("log", "digits", "a")
    for path in (Path(os.environ["BEGAT_STORE"]) / "objects").rglob("*-*"):
        if path.stat().st_size >= len(LARGE):
            path.unlink()
    told = command("get", "digits:v1/a", "there")
    assert told.code == 1
    assert "digits:v1: 'there' was not written" in told.err
