"""A version of very many files: what is held in memory is bounded, and everything comes out as with a few."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import begat
from begat import statcache
from begat.blobs import writer
from begat.catalog.commits import Commits
from begat.errors import StoreUnavailable
from begat.model import Commit, NewVersion
from trees import memory_folder, seen


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[begat.Store]:
    """A store that remembers little: packs of 50 blobs, each known to the catalog at once, and few look-ups."""
    monkeypatch.setattr(writer, "PACK_BLOBS", 50)
    monkeypatch.setattr(writer, "PLACED_EARLY_BLOBS", 50)
    monkeypatch.setattr(writer, "MOST_LOOK_UPS", 20)
    monkeypatch.setattr(statcache, "YOUNG_NS", -10 * 10**9)
    with begat.open_store() as opened:
        yield opened


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "d"
    for number in range(600):
        (folder / f"{number // 100}").mkdir(parents=True, exist_ok=True)
        (folder / f"{number // 100}/{number}").write_bytes(b"%d" % number)
    (folder / "large").write_bytes(bytes(range(256)) * 8192)
    return folder


def test_what_the_catalog_was_told_early_is_part_of_the_version(
    store: begat.Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Commits.commit
    waiting: list[int] = []

    def commit(self: Commits, new: NewVersion) -> Commit:
        waiting.append(sum(len(staged.blobs) for staged in new.staged))
        return original(self, new)

    monkeypatch.setattr(Commits, "commit", commit)
    version = store.log_artifact("x", root)
    assert waiting[0] < 100
    total = sum(path.stat().st_size for path in objects_of(store))
    assert version.new_bytes == pytest.approx(total, abs=20_000)  # the last pack has an index, too
    assert seen(version.download(root.parent / "out")) == seen(root)
    assert store.verify().is_sound
    assert store.gc().removed == ()


def test_what_the_catalog_was_told_early_is_new_and_not_shared(
    store: begat.Store, root: Path
) -> None:
    assert store.log_artifact("x", root, exclude="large").shared_bytes == 0
    again = store.log_artifact("y", root / "1")
    assert again.shared_bytes == again.size_bytes > 0


def test_what_was_told_early_serves_the_next_attempt_and_is_garbage_without_one(
    store: begat.Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Commits.commit

    def fail(self: Commits, new: NewVersion) -> Commit:
        raise StoreUnavailable("no")

    monkeypatch.setattr(Commits, "commit", fail)
    with pytest.raises(StoreUnavailable):
        store.log_artifact("x", root)
    monkeypatch.setattr(Commits, "commit", original)
    assert store.artifacts() == []
    begun = len(objects_of(store))
    store.log_artifact("y", root / "1")  # 100 of its files
    # Those are here already: what is new is the manifest and the record, in one pack.
    assert len(objects_of(store)) == begun + 1
    store.gc(dry_run=False)
    assert len(objects_of(store)) < begun
    assert store.verify().is_sound
    assert seen(store.log_artifact("x", root).download(root.parent / "out")) == seen(root)
    assert store.verify().is_sound


def test_a_change_among_many_files_is_found(store: begat.Store, root: Path) -> None:
    store.log_artifact("x", root)
    (root / "3/399").write_bytes(b"new")
    version = store.log_artifact("x", root)
    assert version.number == 2
    assert seen(version.download(root.parent / "out")) == seen(root)
    assert store.verify().is_sound
    # From a draft of the version itself all files are looked up, and none is read.
    draft = version.draft()
    (root / "3/399").unlink()
    third = store.log_artifact(draft.add(b"more", "z"))
    assert third.file_count == version.file_count + 1
    assert third.read_bytes("3/399") == b"new"


def objects_of(store: begat.Store) -> list[Path]:
    return [path for path in (store.path / "objects").rglob("*") if path.is_file()]


_LOG = textwrap.dedent(
    """
    import sys, threading
    import begat

    def anonymous():
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024

    peak, done = 0, threading.Event()

    def watch():
        global peak
        while not done.wait(0.01):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with begat.open_store(sys.argv[1]) as store:
        version = store.log_artifact("many", sys.argv[2])
    done.set()
    watcher.join()
    print(version.number, version.is_new, peak)
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="anonymous memory is told by Linux only")
def test_memory_does_not_grow_with_the_files_as_their_number_does(tmp_path: Path) -> None:
    """What each file more takes is so little that a million stay below 500 MB."""
    peaks: dict[int, int] = {}
    with memory_folder(tmp_path) as place:
        (place / "one").write_bytes(b"1")
        for count in (20_000, 120_000):
            for number in range(count):
                if number % 1000 == 0:
                    (place / f"{count}/{number // 1000}").mkdir(parents=True)
                # A second name is made faster than a file.
                os.link(place / "one", place / f"{count}/{number // 1000}/{number}")
            told = subprocess.run(
                [sys.executable, "-c", _LOG, str(place / "store"), str(place / str(count))],
                capture_output=True,
                text=True,
                check=True,
            )
            peaks[count] = int(told.stdout.split()[2])
    assert peaks[120_000] - peaks[20_000] < 100_000 * 350
