"""What a kill leaves of a recorder's work is made up for by `sync`: every version once, and right, or named as lost."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

import begat
from begat import Recorder, files
from begat.process import current_boot
from begat.recording.journal import SyncReport, sync
from begat.recording.staging import JOURNAL, STAGING, Journal, Staged
from workers import asleep

CONTENT = os.urandom(2 << 20)


@pytest.fixture
def store() -> begat.Store:
    return begat.open_store()


def in_a_child(act: Callable[[], object]) -> bool:
    """Fork, act, and end at once without any exit handler; whether the child was killed on the way."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:  # noqa: BLE001 - pytest must not go on in the child
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


class KillAt:
    """A fault that kills the process at its n-th change of a file."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, operation: str, path: str) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def checkpoint(name: str = "a.ckpt", content: bytes = CONTENT) -> Path:
    path = Path(name)
    path.write_bytes(content)
    return path


def save_without_shipping(**options: Any) -> Recorder:
    """A checkpoint is taken in, and no worker gets to it: this is for a child that ends right after."""
    recorder = Recorder.attach(name="net", job="train")
    with asleep(recorder):
        recorder.saved(checkpoint(), **options)
    return recorder


def versions(store: begat.Store) -> list[begat.Version]:
    return list(store.versions("net")) if store.artifacts() else []


# --- kills ---


def test_whenever_it_is_killed_while_shipping_the_version_is_there_once_after_a_sync(
    store: begat.Store,
) -> None:
    points = 0
    for at in range(1, 200):
        name = f"net-{at}"
        was_killed = in_a_child(lambda at=at, name=name: _killed_while_shipping(name, at))
        report = sync(store)
        (version,) = store.versions(name)
        assert version.read_bytes("a.ckpt") == CONTENT
        assert version.aliases == ("best", "latest")
        assert version.produced_by is not None
        known = store.catalog.commits.find_token(name)  # what a resumed training asks
        assert known is not None
        assert known.version.uid == version.uid
        assert report.lost == ()
        assert not list((store.path / STAGING).iterdir())
        if not was_killed:
            break
        points += 1
    assert points > 10
    assert store.verify().damaged == ()


def _killed_while_shipping(name: str, at: int) -> None:
    recorder = Recorder.attach(name=name, job="train")
    with asleep(recorder):
        recorder.saved(checkpoint(), uid=name, aliases=["best"])
    files.fault = KillAt(at)
    recorder.finish()


def test_whenever_it_is_killed_while_staging_there_is_a_whole_version_or_none(
    store: begat.Store,
) -> None:
    points = 0
    for at in range(1, 100):
        was_killed = in_a_child(lambda at=at: _killed_while_staging(at))
        report = sync(store)
        assert report.lost == ()
        assert all(version.read_bytes("a.ckpt") == CONTENT for version in versions(store))
        if not was_killed:
            break
        points += 1
    assert points > 5


def _killed_while_staging(at: int) -> None:
    recorder = Recorder.attach(name="net", job="train")
    path = checkpoint()
    with asleep(recorder):
        files.fault = KillAt(at)
        recorder.saved(path)


# --- what sync does ---


def test_what_was_staged_is_shipped_with_its_metadata_and_run(store: begat.Store) -> None:
    in_a_child(lambda: save_without_shipping(step=3, score=0.5, monitor="v"))
    assert sync(store) == SyncReport(shipped=("net:v1",))
    (version,) = versions(store)
    assert version.metadata == {"path": "a.ckpt", "step": 3, "score": 0.5, "monitor": "v"}
    assert version.produced_by == store.runs()[0]


def test_a_second_sync_finds_nothing(store: begat.Store) -> None:
    in_a_child(save_without_shipping)
    sync(store)
    assert sync(store) == SyncReport()
    assert len(versions(store)) == 1


def test_what_was_only_staged_before_another_boot_is_named_as_lost(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_child(save_without_shipping)
    monkeypatch.setattr("begat.recording.journal.current_boot", lambda: "another")
    report = sync(store)
    assert report.shipped == ()
    assert "net (a.ckpt)" in report.lost[0]
    assert versions(store) == []
    assert not list((store.path / STAGING).iterdir())


def test_what_was_sealed_before_another_boot_is_shipped(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_child(_save_and_seal)
    monkeypatch.setattr("begat.recording.journal.current_boot", lambda: "another")
    assert sync(store).shipped == ("net:v1",)
    assert versions(store)[0].read_bytes("a.ckpt") == CONTENT


def _save_and_seal() -> None:
    with asleep(save_without_shipping()) as shipping:
        journal = shipping.journal
    for step in list(journal.pending.values()):
        assert isinstance(step, Staged)
        journal.seal(step)


def test_sealed_bytes_that_changed_are_lost_and_never_a_version(store: begat.Store) -> None:
    in_a_child(_save_and_seal)
    (staged,) = (store.path / STAGING).glob("*/*/0")
    staged.write_bytes(CONTENT[:-1] + b"x")
    assert "other bytes" in sync(store).lost[0]
    assert versions(store) == []


def test_a_staged_file_that_is_cut_short_is_lost_and_never_a_version(store: begat.Store) -> None:
    in_a_child(save_without_shipping)
    (staged,) = (store.path / STAGING).glob("*/*/0")
    os.truncate(staged, 100)
    assert "not whole" in sync(store).lost[0]
    assert versions(store) == []


def test_a_line_that_was_torn_by_the_kill_is_left_out(store: begat.Store) -> None:
    in_a_child(save_without_shipping)
    (journal,) = (store.path / STAGING).glob(f"*/{JOURNAL}")
    with journal.open("ab") as lines:
        lines.write(b'{"step":"retired","id":"x","tok')
    report = sync(store)
    assert report.shipped == ("net:v1",)
    assert "1 line(s)" in report.lost[0]
    assert versions(store)[0].state == "live"


@pytest.mark.parametrize("hostile", ["../../../outside", "/outside", "..", ""])
def test_a_journal_that_names_other_places_touches_nothing_there(
    store: begat.Store, tmp_path: Path, hostile: str
) -> None:
    (outside := store.path.parent / "outside").mkdir()
    (outside / "0").write_bytes(b"a secret")
    (folder := store.path / STAGING / "planted").mkdir(parents=True)
    staged = {
        "step": "staged",
        "id": hostile,
        "at": 0,
        "boot": current_boot(),
        "name": "net",
        "type": None,
    }
    linked = {"path": "a", "file": "../../../outside/0", "size_bytes": 8}
    lines = [
        {**staged, "pieces": [{"path": "a", "file": "0", "size_bytes": 8}]},
        {**staged, "id": "token", "pieces": [linked]},
        {"step": "lost", "id": hostile, "why": ""},
    ]
    bodies = [json.dumps(line).encode() for line in lines]
    (folder / JOURNAL).write_bytes(b"".join(b"%08x %s\n" % (crc32(b), b) for b in bodies))
    report = sync(store)
    assert (report.shipped, report.pending) == ((), ())
    assert "3 line(s)" in report.lost[0]
    assert versions(store) == []
    assert (outside / "0").read_bytes() == b"a secret"


def test_what_was_removed_before_the_kill_is_retired(store: begat.Store) -> None:
    in_a_child(_save_and_remove)
    sync(store)
    assert versions(store)[0].state == "retired"


def _save_and_remove() -> None:
    recorder = save_without_shipping()
    with asleep(recorder):
        recorder.removed("a.ckpt")


def test_the_journal_of_a_living_process_is_left_to_it(store: begat.Store) -> None:
    recorder = save_without_shipping()
    assert sync(store) == SyncReport()
    assert len(list((store.path / STAGING).glob("*/*/0"))) == 1
    recorder.finish()


def test_garbage_collection_leaves_what_is_staged(store: begat.Store) -> None:
    in_a_child(save_without_shipping)
    store.gc(dry_run=False)
    assert sync(store).shipped == ("net:v1",)


def test_a_run_that_has_ended_still_made_what_it_had_saved(store: begat.Store) -> None:
    in_a_child(save_without_shipping)
    (run,) = store.runs()
    store.catalog.runs.mark_lost(run.id)
    assert sync(store).shipped == ("net:v1",)
    assert run.outputs == tuple(versions(store))
    assert run.status == "lost"


def test_an_alias_that_somebody_else_moved_since_stays_there(store: begat.Store) -> None:
    in_a_child(lambda: save_without_shipping(aliases=["best"]))
    mine = store.log_artifact("net", b"mine", type="model", aliases=["best"])
    sync(store)
    assert store.get_artifact("net:best") == mine
    assert store.get_artifact("net:latest").number == 2


def test_while_the_store_cannot_take_it_the_version_waits(store: begat.Store) -> None:
    in_a_child(save_without_shipping)
    objects, aside = store.path / "objects", store.path / "aside"
    objects.rename(aside)
    objects.write_bytes(b"in the way")
    report = sync(store)
    assert report.shipped == report.lost == ()
    assert "net (a.ckpt)" in report.pending[0]
    objects.unlink()
    aside.rename(objects)
    assert sync(store).shipped == ("net:v1",)


def test_a_name_of_another_type_is_named_as_lost(store: begat.Store) -> None:
    in_a_child(save_without_shipping)
    store.log_artifact("net", b"0123", type="dataset")
    assert "'dataset'" in sync(store).lost[0]


def test_the_next_recorder_stores_what_a_killed_one_left(store: begat.Store) -> None:
    in_a_child(save_without_shipping)
    recorder = Recorder.attach(name="other")
    recorder.saved(checkpoint("b.ckpt", b"b"))
    recorder.finish()
    assert len(versions(store)) == 1


def test_a_journal_without_pending_steps_leaves_no_folder(store: begat.Store) -> None:
    journal = Journal.begin(store.path / STAGING)
    assert list((store.path / STAGING).iterdir()) == [journal.folder]
    journal.close()
    assert not list((store.path / STAGING).iterdir())
