"""The one order of steps of a log: checked, stored, durable, and only then visible."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

import begat
from begat import files
from begat.catalog import StageAgain
from begat.catalog.commits import Commits
from begat.errors import BadPath, CatalogBusy, StoreUnavailable, VersionExists
from begat.listing import Data, Planned
from begat.model import Commit, NewVersion
from begat.publish import Publication, in_order, publish


@pytest.fixture
def store() -> Iterator[begat.Store]:
    with begat.open_store() as opened:
        yield opened


def publication(content: bytes = b"1", **fields) -> Publication:
    return Publication(name="x", type=None, plan=[Planned("a", Data(content))], **fields)


def published(store: begat.Store, what: Publication) -> Commit:
    return publish(what, catalog=store.catalog, objects=store.objects, locks=store.locks)


def test_every_byte_is_durable_before_the_version_is_visible(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    original = Commits.commit

    def commit(self: Commits, new: NewVersion) -> Commit:
        steps.append("commit")
        return original(self, new)

    monkeypatch.setattr(Commits, "commit", commit)
    monkeypatch.setattr(files, "fault", lambda operation, path: steps.append(operation))
    store.log_artifact(begat.Artifact("x").add(b"small", "a").add(os.urandom(2 << 20), "b"))
    assert steps[-1] == "commit"
    for written in ("write", "copy"):
        if written in steps:
            assert "fsync" in steps[steps.index(written) :]
    renames = [at for at, step in enumerate(steps) if step == "rename"]
    assert len(renames) == 2  # the large file, and one pack for all the rest
    for at in renames:
        assert steps[at - 1] == "fsync"
        assert steps[at + 1] == "fsync-directory"


def test_the_same_token_is_the_same_version(store: begat.Store) -> None:
    first = published(store, publication(token="attempt"))
    again = published(store, publication(token="attempt"))
    assert (first.is_new, again.version.uid) == (True, first.version.uid)
    assert len(store.versions("x")) == 1


def test_a_log_whose_answer_was_lost_is_found_by_its_token(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Commits.commit

    def commit(self: Commits, new: NewVersion) -> Commit:
        original(self, new)
        raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(Commits, "commit", commit)
    with pytest.raises(StoreUnavailable):
        published(store, publication(token="attempt"))
    monkeypatch.undo()
    assert published(store, publication(token="attempt")).version.number == 1
    assert len(store.versions("x")) == 1


def test_a_log_that_another_one_overtakes_is_staged_again(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log_artifact("x", b"1")
    original, calls = Commits.commit, []

    def commit(self: Commits, new: NewVersion) -> Commit:
        calls.append(new)
        if len(calls) == 1:  # between the look at the latest version and the commit, it changes
            with begat.open_store() as other:
                monkeypatch.setattr(Commits, "commit", original)
                other.log_artifact("x", b"2")
                monkeypatch.setattr(Commits, "commit", commit)
        return original(self, new)

    monkeypatch.setattr(Commits, "commit", commit)
    version = store.log_artifact("x", b"1")  # seems to be the latest already, and is not any more
    assert (version.number, version.is_new, len(calls)) == (3, True, 2)
    assert store.catalog.versions.record_of(version.uid) is not None
    monkeypatch.undo()
    assert store.verify().is_sound


def test_a_label_that_another_log_took_is_chosen_again(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Commits.commit

    def commit(self: Commits, new: NewVersion) -> Commit:
        monkeypatch.setattr(Commits, "commit", original)
        with begat.open_store() as other:
            other.log_artifact("x", b"2", bump="minor")
        return original(self, new)

    monkeypatch.setattr(Commits, "commit", commit)
    assert store.log_artifact("x", b"1", bump="minor").version == "0.2.0"
    assert store.get_artifact("x:0.1.0").read_bytes("x") == b"2"
    with pytest.raises(VersionExists):
        store.log_artifact("x", b"3", version="0.2.0")


def test_a_log_that_never_gets_through_gives_up_in_words(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(self: Commits, new: NewVersion) -> Commit:
        raise StageAgain

    monkeypatch.setattr(Commits, "commit", commit)
    with pytest.raises(CatalogBusy, match="no version was made"):
        store.log_artifact("x", b"1")
    monkeypatch.undo()
    store.gc(dry_run=False)
    assert [path for path in (store.path / "objects").rglob("*") if path.is_file()] == []


def test_the_plan_is_checked_as_a_whole(store: begat.Store) -> None:
    what = publication()
    clash = [Planned("a", Data(b"1")), Planned("a/b", Data(b"2"))]
    with pytest.raises(BadPath):
        in_order(clash)
    with pytest.raises(BadPath):
        published(store, replace(what, plan=[Planned("../a", Data(b"1"))]))
    ordered = in_order([Planned("b", Data(b"")), Planned("a", Data(b""))])
    assert [planned.path for planned in ordered] == ["a", "b"]
    assert list((store.path / "tmp").iterdir()) == []


def test_threads_get_contiguous_numbers(store: begat.Store) -> None:
    numbers: list[int] = []

    def log(which: int) -> None:
        for at in range(5):
            numbers.append(store.log_artifact("x", b"%d %d" % (which, at)).number)

    threads = [threading.Thread(target=log, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))


def test_equal_content_of_two_threads_is_one_version(store: begat.Store) -> None:
    found: list[begat.Version] = []
    data = os.urandom(2 << 20)
    threads = [
        threading.Thread(target=lambda: found.append(store.log_artifact("x", data)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {version.number for version in found} == {1}
    assert sorted(version.is_new for version in found) == [False, False, False, True]
    store.gc(dry_run=False)  # what the slower ones had stored
    stored = sum(
        path.stat().st_size for path in (store.path / "objects").rglob("*") if path.is_file()
    )
    assert stored < (2 << 20) + 10_000
    assert store.verify().is_sound


def test_a_log_inside_a_log_does_not_wait_for_itself(store: begat.Store, tmp_path: Path) -> None:
    with store.locks.writing():
        assert store.log_artifact("x", b"1").number == 1
