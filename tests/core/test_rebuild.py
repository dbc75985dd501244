"""A catalog that is lost is made anew from the objects: names, numbers, digests, metadata, labels, lineage."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import begat
from begat import rebuild
from begat.errors import CatalogBusy, DigestMismatch, StoreUnavailable, VersionDeleted
from begat.packs import FOOTER_BYTES
from begat.rebuild import RebuildReport, rebuild_store
from trees import MIB


def facts(store: begat.Store) -> dict[str, Any]:
    """All that a rebuild promises to bring back."""
    found: dict[str, Any] = {}
    for artifact in store.artifacts():
        for version in store.versions(artifact.name):
            record = store.catalog.versions.get(version.uid)
            run = version.produced_by
            found[version.ref] = {
                "uid": version.uid,
                "type": version.type,
                "digest": version.digest,
                "version": version.version,
                "metadata": version.metadata,
                "description": version.description,
                "tags": version.tags,
                "sizes": (version.size_bytes, version.file_count),
                "entries": [(entry, entry.metadata) for entry in version.entries],
                "bytes": {file.path: version.read_bytes(file.path) for file in version.files()},
                "created": record.created_at,
                "run": run
                and (run.id, run.name, run.job, run.params, dict(run.git), dict(run.environment)),
                "made from": {v.ref for v in store.lineage(version, "upstream").versions},
                "requested": run
                and [(e.version_uid, e.requested, e.role) for e in run.edges if e.kind == "used"],
            }
    return found


def lose_catalog(path: Path) -> None:
    for leftover in path.glob("catalog.sqlite*"):
        leftover.unlink()


def rebuilt(path: Path) -> RebuildReport:
    lose_catalog(path)
    return rebuild_store(path)


def fill(store: begat.Store, seed: int) -> None:
    """Runs that use and make versions of several artifacts, of files of every way to be stored."""
    chance = random.Random(seed)
    large = [chance.randbytes(5 * MIB) for _ in range(2)]
    contents = [b"", b"small", b"text " * 5000, chance.randbytes(2 * MIB), *large]
    contents += [large[0] + chance.randbytes(MIB), large[1][: 4 * MIB] + large[0][: 4 * MIB]]
    names = ["data", "team/model", "predictions"]
    for number in range(12):
        name = chance.choice(names)
        draft = begat.Artifact(
            name, metadata={"n": number}, description=f"d{number}", tags=[f"t{number}"]
        )
        for path in chance.sample(["a", "d/b", "d/c.bin", "e.safetensors"], chance.randint(1, 3)):
            draft.add(
                chance.choice(contents),
                path,
                metadata={"p": path} if chance.random() < 0.5 else None,
            )
        known = [artifact.name for artifact in store.artifacts()]
        if chance.random() < 0.2:
            store.log_artifact(draft)
            continue
        with store.start_run(f"run{number}", job="j", params={"number": number}) as run:
            for used in chance.sample(known, min(len(known), 2)):
                version = run.use_artifact(used, role=chance.choice([None, "test"]))
                if chance.random() < 0.5:
                    run.use_artifact(version)  # by its number: another question
            run.log_artifact(draft, bump=chance.choice([None, "minor", "major"]))
            if chance.random() < 0.5:
                run.use_artifact(name)
                run.log_artifact(name, b"again %d" % number, if_unchanged="new")


@pytest.mark.parametrize("seed", range(4))
def test_everything_that_a_record_says_comes_back(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "s"
    with begat.open_store(path) as store:
        fill(store, seed)
        before, uid = facts(store), store.uid
    report = rebuilt(path)
    assert report.problems == ()
    assert report.versions == len(before)
    with begat.open_store(path) as store:
        assert store.uid == uid
        assert facts(store) == before
        assert store.verify().damaged == ()
        assert store.gc(dry_run=False).freed_bytes == 0
        for name in {ref.partition(":")[0] for ref in before}:
            newest = store.get_artifact(name)
            assert not store.log_artifact(newest.draft()).is_new
            assert store.log_artifact(name, b"next").number == newest.number + 1


def test_a_rebuilt_store_can_be_rebuilt_again(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        fill(store, 9)
        before = facts(store)
    first, second = rebuilt(tmp_path / "s"), rebuilt(tmp_path / "s")
    assert first == second
    with begat.open_store(tmp_path / "s") as store:
        assert facts(store) == before


def test_an_input_that_was_found_first_and_asked_for_later_comes_back_as_one(
    tmp_path: Path,
) -> None:
    with begat.open_store(tmp_path / "s") as store:
        found = store.log_artifact("data", b"1")
        with store.start_run("train") as run:
            store.catalog.runs.use(run.id, found.uid, requested=None, declared=False, detected=True)
            run.log_artifact("early", b"1")
            run.use_artifact("data:v1", role="train")
            run.use_artifact("data:latest")
            run.log_artifact("late", b"2")
        before = [replace(edge, at=0) for edge in run.edges]
    assert [edge.requested for edge in before] == ["data:v1", None, "data:latest", None]
    assert rebuilt(tmp_path / "s").problems == ()
    with begat.open_store(tmp_path / "s") as store:
        assert [replace(edge, at=0) for edge in store.get_run(run.id).edges] == before


def test_the_old_catalog_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact("x", b"1", aliases=["best"])
        store.alias("x:v1", "later")
    rebuild_store(tmp_path / "s")
    [old] = (tmp_path / "s").glob("catalog.sqlite.*.old")
    with begat.open_store(tmp_path / "s") as store:
        assert store.get_artifact("x:best").aliases == (
            "best",
            "latest",
        )  # `later` is in the old one only
    lose_catalog_but = old.read_bytes()
    lose_catalog(tmp_path / "s")
    (tmp_path / "s/catalog.sqlite").write_bytes(lose_catalog_but)
    with begat.open_store(tmp_path / "s") as store:
        assert store.get_artifact("x:later").number == 1


def test_a_damaged_catalog_is_no_reason_not_to_rebuild(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact("x", b"1")
    (tmp_path / "s/catalog.sqlite").write_bytes(b"damaged" * 5000)
    assert rebuild_store(tmp_path / "s").versions == 1
    with begat.open_store(tmp_path / "s") as store:
        assert store.get_artifact("x").read_bytes("x") == b"1"


def test_what_was_deleted_and_collected_keeps_its_number(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        versions = [store.log_artifact("x", b"%d" % n) for n in range(4)]
        with store.start_run("r", uses=["x:v2"]) as run:
            made = run.log_artifact("y", b"y")
        for version in versions[:2]:
            version.delete()
        store.gc(dry_run=False)
    assert rebuilt(tmp_path / "s").problems == ()
    with begat.open_store(tmp_path / "s") as store:
        assert [v.number for v in store.versions("x")] == [3, 4]
        assert [v.number for v in store.versions("x", with_deleted=True)] == [1, 2, 3, 4]
        with pytest.raises(VersionDeleted):
            store.get_artifact("x:v2")
        assert [v.uid for v in store.get_run(run.id).inputs] == [versions[1].uid]
        assert {v.ref for v in store.lineage(made, "upstream").versions} == {"x:v2", "y:v1"}
        assert store.verify().is_sound
        assert store.log_artifact("x", b"next").number == 5


def test_a_log_that_was_staged_twice_comes_back_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from begat.catalog import StageAgain
    from begat.catalog.commits import Commits

    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact("x", b"0")
        original, calls = Commits.commit, []

        def commit(self: Commits, new: Any) -> Any:
            calls.append(new)
            if len(calls) == 1:
                raise StageAgain
            return original(self, new)

        monkeypatch.setattr(Commits, "commit", commit)
        store.log_artifact("x", b"1", bump="minor")
        assert len(calls) == 2
        monkeypatch.undo()
        store.log_artifact("x", b"2")
        before = facts(store)
    assert rebuilt(tmp_path / "s").problems == ()
    with begat.open_store(tmp_path / "s") as store:
        assert facts(store) == before


def test_a_damaged_pack_is_told_and_the_rest_comes_back(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact("lost", b"1")
        [lost] = [path for path in (tmp_path / "s/objects").rglob("*") if path.is_file()]
        store.log_artifact("kept", b"2")
    lost.chmod(0o644)
    data = bytearray(lost.read_bytes())
    data[-FOOTER_BYTES - 1] ^= 1  # in the index
    lost.write_bytes(data)
    report = rebuilt(tmp_path / "s")
    assert report.versions == 1
    assert [lost.name in problem for problem in report.problems] == [True]
    with begat.open_store(tmp_path / "s") as store:
        assert [artifact.name for artifact in store.artifacts()] == ["kept"]
        assert store.get_artifact("kept").read_bytes("kept") == b"2"


def test_a_version_without_its_large_file_is_told_and_keeps_its_place(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact(
            begat.Artifact("x").add(random.Random(0).randbytes(2 * MIB), "large").add(b"1", "small")
        )
    [large] = [
        p for p in (tmp_path / "s/objects").rglob("*") if p.is_file() and p.stat().st_size >= MIB
    ]
    large.unlink()
    report = rebuilt(tmp_path / "s")
    assert len(report.problems) == 1
    assert "x:v1/large" in report.problems[0]
    with begat.open_store(tmp_path / "s") as store:
        version = store.get_artifact("x:v1")
        assert version.read_bytes("small") == b"1"
        assert [damage.place for damage in version.verify()] == ["x:v1/large"]


def test_what_is_sound_in_a_pack_that_was_set_aside_is_still_read(tmp_path: Path) -> None:
    files = {name: random.Random(name).randbytes(500) for name in "abc"}
    with begat.open_store(tmp_path / "s") as store:
        draft = begat.Artifact("x")
        for name, data in files.items():
            draft.add(data, name)
        version = store.log_artifact(draft)
        flip(tmp_path / "s", files["b"])
        with pytest.raises(DigestMismatch):
            version.read_bytes("b")
    assert any((tmp_path / "s/damaged").iterdir())
    rebuilt(tmp_path / "s")
    with begat.open_store(tmp_path / "s") as store:
        store.gc(dry_run=False)
        version = store.get_artifact("x:v1")
        assert version.read_bytes("a") == files["a"]
        assert version.read_bytes("c") == files["c"]
        assert [damage.place for damage in store.verify().damaged] == ["x:v1/b"]
        assert not store.log_artifact(draft).is_new
        assert store.verify().is_sound


def flip(store: Path, data: bytes) -> None:
    """Change one bit of these bytes in the object that holds them."""
    for path in (store / "objects").rglob("*"):
        at = path.read_bytes().find(data) if path.is_file() else -1
        if at >= 0:
            path.chmod(0o644)
            changed = bytearray(path.read_bytes())
            changed[at] ^= 1
            path.write_bytes(changed)
            return
    raise AssertionError("no object holds these bytes")


def test_a_copy_of_a_pack_that_a_user_stored_is_a_file(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact(
            begat.Artifact("x")
            .add(random.Random(1).randbytes(MIB - 1), "a")
            .add(random.Random(2).randbytes(99), "b")
        )
        [pack] = [path for path in (tmp_path / "s/objects").rglob("*") if path.is_file()]
        assert pack.stat().st_size > MIB
        data = pack.read_bytes()
        store.log_artifact("pack", data)
    assert rebuilt(tmp_path / "s").problems == ()
    with begat.open_store(tmp_path / "s") as store:
        assert store.get_artifact("pack").read_bytes("pack") == data
        assert store.verify().is_sound


def test_while_somebody_logs_nothing_is_rebuilt(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact("x", b"1")
        with store.locks.writing():
            pid_done: list[Callable[[], None]] = []
            import threading

            def act() -> None:
                with pytest.raises(CatalogBusy):
                    rebuild_store(tmp_path / "s")
                pid_done.append(act)

            thread = threading.Thread(target=act)
            thread.start()
            thread.join()
        assert len(pid_done) == 1
        assert store.get_artifact("x").number == 1


def test_where_there_is_no_store_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="no store"):
        rebuild_store(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_process_that_had_the_store_open_goes_on_in_the_new_catalog(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with begat.open_store(path) as store:
        store.log_artifact("digits", b"1")
        rebuild_store(path)
        assert store.log_artifact("digits", b"2").ref == "digits:v2"
        store.alias("digits:v1", "best")
        with begat.open_store(path) as other:
            assert [version.ref for version in other.versions("digits")] == [
                "digits:v1",
                "digits:v2",
            ]
            assert other.get_artifact("digits:best").ref == "digits:v1"


def test_a_store_whose_catalog_was_removed_under_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with begat.open_store(path) as store:
        store.log_artifact("digits", b"1")
        for name in ("catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"):
            (path / name).unlink(missing_ok=True)
        with pytest.raises(begat.errors.StoreUnavailable, match="begat rebuild"):
            store.log_artifact("digits", b"2")
        with pytest.raises(begat.errors.StoreUnavailable, match="begat rebuild"):
            store.get_artifact("digits")


def test_a_change_that_waited_while_the_catalog_was_replaced_goes_into_the_new_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    with begat.open_store(path) as store, begat.open_store(path) as other:
        store.log_artifact("digits", b"1")
        store.backup(tmp_path / "copy.sqlite")
        holder = sqlite3.connect(path / "catalog.sqlite", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(target=lambda: other.alias("digits:v1", "best"))
        waiting.start()
        time.sleep(0.3)
        os.replace(tmp_path / "copy.sqlite", path / "catalog.sqlite")
        for suffix in ("-wal", "-shm"):
            (path / f"catalog.sqlite{suffix}").unlink()
        holder.execute("ROLLBACK")
        waiting.join(30)
        holder.close()
        with begat.open_store(path) as new:
            assert new.get_artifact("digits:best").ref == "digits:v1"


def test_a_part_of_a_file_that_nobody_has_any_more_is_found_again(tmp_path: Path) -> None:
    """It lies in an object without an index: only that file's recipe says where."""
    dice = random.Random(3)
    old = dice.randbytes(5 * MIB)
    new = old[: 4 * MIB] + dice.randbytes(MIB)
    with begat.open_store(tmp_path / "s") as store:
        store.log_artifact("old", old)
        store.log_artifact("new", new)
        [name] = [entry.path for entry in store.get_artifact("new").entries]
        # So much dead beside the recipe that the pack is worth writing anew.
        padded = begat.Artifact("padded")
        padded.add(old[:MIB] + dice.randbytes(4 * MIB), "a.bin").add(dice.randbytes(900_000), "b")
        padded.add(dice.randbytes(900_000), "c")
        store.log_artifact(padded)
        part = store.get_artifact("padded").read_bytes("a.bin")[: 4 * MIB]
        store.log_artifact("other", part + dice.randbytes(MIB))
        for ref in ("old:v1", "padded:v1"):
            store.delete(ref)
        assert store.gc(dry_run=False).freed_bytes > MIB
        assert store.verify().damaged == ()
        other = store.get_artifact("other").digest
    assert rebuilt(tmp_path / "s").problems == ()
    with begat.open_store(tmp_path / "s") as store:
        assert store.get_artifact("new").read_bytes(name) == new
        assert store.get_artifact("other").digest == other
        assert store.verify().damaged == ()


# --- while others change the old catalog ---


class Paused:
    """A rebuild in another thread that waits after it has read the objects, until it is let go."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.has_read, self.go = threading.Event(), threading.Event()
        run = rebuild._Rebuild.run

        def paused(again: rebuild._Rebuild) -> RebuildReport:
            report = run(again)
            self.has_read.set()
            assert self.go.wait(60)
            return report

        monkeypatch.setattr(rebuild._Rebuild, "run", paused)
        self.thread = threading.Thread(target=rebuild_store, args=(path,))
        self.thread.start()
        assert self.has_read.wait(60)

    def finish(self) -> None:
        self.go.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_a_label_that_is_moved_while_the_catalog_is_rebuilt_is_moved_in_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    with begat.open_store(path) as store, begat.open_store(path) as other:
        store.log_artifact("x", b"1", aliases=["best"])
        store.log_artifact("x", b"2")
        paused = Paused(path, monkeypatch)
        changes = [
            threading.Thread(target=lambda: other.alias("x:v2", "best")),
            threading.Thread(target=lambda: store.get_artifact("x:v2").add_tags("seen")),
        ]
        for change in changes:
            change.start()
        time.sleep(0.3)
        assert all(change.is_alive() for change in changes)
        assert other.get_artifact("x:best").number == 1  # readers do not wait
        paused.finish()
        for change in changes:
            change.join(60)
        for opened in (store, other):
            version = opened.get_artifact("x:best")
            assert (version.number, version.tags) == (2, ("seen",))
    with begat.open_store(path) as store:
        assert store.get_artifact("x:best").number == 2
        assert store.verify().damaged == ()


TAGGING = """
import sys, time
import begat
store, told = begat.open_store(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
print("ready", flush=True)
for number in range(100_000):
    began = time.time_ns()
    try:
        store.get_artifact("x:v1").add_tags(f"t{number}")
    except begat.errors.Unavailable:
        continue
    time.sleep(0.002)
    told.write(f"{began} t{number}\\n")
"""


def acknowledged(told: Path, *, after: int, at_least: int) -> set[str]:
    """The tags whose putting began after a time (nanoseconds), once there are as many."""
    for _ in range(3_000):
        *lines, _ = (told.read_text() if told.exists() else "").split("\n")
        found = {tag for began, tag in map(str.split, lines) if int(began) > after}
        if len(found) >= at_least:
            return found
        time.sleep(0.01)
    raise AssertionError(f"only {len(found)} tags were put")


def test_no_label_is_lost_that_another_process_was_told_of_while_the_catalog_was_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was acknowledged after the rebuild began is there afterwards, however the two meet."""
    path, told = tmp_path / "s", tmp_path / "told"
    with begat.open_store(path) as store:
        store.log_artifact("x", b"1")
    kept: list[int] = []
    run = rebuild._Rebuild.run

    def slow(again: rebuild._Rebuild) -> RebuildReport:
        kept.append(time.time_ns())
        time.sleep(0.1)
        report = run(again)
        time.sleep(0.1)
        return report

    monkeypatch.setattr(rebuild._Rebuild, "run", slow)
    tagging = subprocess.Popen(
        [sys.executable, "-c", TAGGING, path, told], stdout=subprocess.PIPE, text=True
    )
    assert tagging.stdout is not None
    try:
        assert tagging.stdout.readline() == "ready\n"
        for _ in range(5):
            acknowledged(told, after=kept[-1] if kept else 0, at_least=3)
            rebuild_store(path)
        since = acknowledged(told, after=kept[-1], at_least=3)
    finally:
        tagging.kill()
        tagging.communicate()
    with begat.open_store(path) as store:
        assert since <= set(store.get_artifact("x:v1").tags)
        assert store.verify().damaged == ()
