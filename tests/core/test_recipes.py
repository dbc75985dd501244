"""A part that lies in a large file is found by that file's recipe, also when the file has no version any more."""

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import begat
from begat import sweep as sweep_module
from begat.catalog.commits import Commits
from begat.rebuild import RebuildReport, rebuild_store
from trees import MIB


@pytest.fixture
def store(tmp_path: Path) -> Iterator[begat.Store]:
    with begat.open_store(tmp_path / "s") as opened:
        yield opened


def log(store: begat.Store, name: str, **files: bytes) -> begat.Version:
    """Log files, each `kind=data` under the path `f.kind`."""
    draft = begat.Artifact(name)
    for kind, data in files.items():
        draft.add(data, f"f.{kind}")
    return store.log_artifact(draft)


def rebuilt(store: begat.Store) -> RebuildReport:
    store.close()
    (store.path / "catalog.sqlite").unlink()
    return rebuild_store(store.path)


def read(store: begat.Store, ref: str, path: str) -> bytes:
    with begat.open_store(store.path) as again:
        return again.get_artifact(ref).read_bytes(path)


def during_commit(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Do something when the next log has stored its bytes, and has not committed them."""
    original = Commits.commit

    def commit(self: Commits, new: Any) -> Any:
        monkeypatch.setattr(Commits, "commit", original)
        act()
        return original(self, new)

    monkeypatch.setattr(Commits, "commit", commit)


def test_gc_keeps_a_recipe_that_its_file_does_not_have_any_more(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file has the recipe of who came last; what lies in it may be found by the other one only."""
    dice = random.Random(3)
    file = dice.randbytes(5 * MIB)
    shared = file[: 4 * MIB] + dice.randbytes(MIB)

    def first() -> None:
        log(store, "first", bin=file, filler=dice.randbytes(900_000))
        log(store, "kept", bin=shared)

    during_commit(monkeypatch, first)
    log(store, "second", gz=file)
    for ref in ("first:v1", "second:v1"):
        store.delete(ref)
    assert store.gc(dry_run=False).freed_bytes > 800_000
    store.gc(dry_run=False)
    assert rebuilt(store).problems == ()
    assert read(store, "kept", "f.bin") == shared


def test_a_record_that_is_damaged_while_a_log_relies_on_it_is_written_anew(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest and its files lie elsewhere too, so that only the record is lost."""
    log(store, "same", bin=b"content")
    version = log(store, "x", bin=b"content")
    record = store.catalog.versions.record_of(version.uid)
    assert record is not None
    place = store.catalog.bytes.locations([record])[record]

    def damage() -> None:
        (store.path / "objects" / place.object).unlink()
        store.verify()

    during_commit(monkeypatch, damage)
    assert log(store, "x", bin=b"content").uid == version.uid
    store.gc(dry_run=False)
    assert store.verify().is_sound
    assert rebuilt(store).problems == ()
    assert read(store, "x:v1", "f.bin") == b"content"


def test_a_record_that_a_version_was_given_meanwhile_is_kept(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between gc's copy and its move a version comes to rely, by being mended, on what was dead in a pack it holds."""
    dice = random.Random(6)
    small = dice.randbytes(1000)
    gone = log(store, "x", small=small, filler=dice.randbytes(900_000))
    kept = log(store, "x", small=small)
    record = store.catalog.versions.record_of(gone.uid)
    assert record is not None
    store.delete("x:v1")
    copy = sweep_module._Sweep._copied
    rounds: list[int] = []

    def copied(self: Any, waiting: Any, plan: Any) -> Any:
        done = copy(self, waiting, plan)
        rounds.append(len(done.packs))
        with sqlite3.connect(store.path / "catalog.sqlite") as catalog:
            catalog.execute("UPDATE versions SET record = ? WHERE uid = ?", (record, kept.uid))
        return done

    monkeypatch.setattr(sweep_module._Sweep, "_copied", copied)
    store.gc(dry_run=False)
    assert rounds == [1]
    assert store.catalog.bytes.locations([record]).keys() == {record}
