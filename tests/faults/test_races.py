"""Many processes at once: numbers without gaps, aliases that do not run over each other, gc that harms nobody."""

import itertools
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from begat import files
from begat.artifact import Artifact
from begat.errors import AliasMoved, CatalogBusy
from begat.opening import open_store
from begat.store import Store
from faults.checking import garbage_after_collection
from faults.races import (
    Tell,
    Work,
    churn,
    collect,
    finished,
    gc_during_a_log,
    numbering_problems,
    paused_at,
    race_problems,
    read_all,
    start,
)

KEPT = random.Random(1).randbytes(200_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "told"
    path.mkdir()
    return path


def test_16_processes_that_log_25_versions_each_lose_none_and_leave_no_gap(
    root: Path, folder: Path
) -> None:
    assert numbering_problems(root, folder, writers=16, versions=25) == []


def test_of_processes_that_move_an_alias_from_where_they_saw_it_one_wins_each_step(
    root: Path, folder: Path
) -> None:
    versions = 12

    def mover(store: Store, tell: Tell) -> None:
        while (now := store.get_artifact("one:best").number) < versions:
            try:
                store.alias(f"one:v{now + 1}", "best", expect=f"v{now}")
                tell([now, now + 1])
            except AliasMoved:
                pass  # another one was faster

    store = open_store(root)
    for number in range(versions):
        store.log_artifact("one", str(number).encode())
    store.alias("one:v1", "best")
    store.close()
    moves, problems = finished([start(f"m{n}", root, mover, folder) for n in range(6)])
    assert not problems
    assert sorted(moves) == [[n, n + 1] for n in range(1, versions)]
    history = open_store(root).alias_history("one", "best")
    steps = [(move.from_number, move.to_number) for move in history]
    assert steps == [(None, 1), *itertools.pairwise(range(1, versions + 1))]


@pytest.mark.slow
def test_gc_racing_fast_and_slow_writers_breaks_nothing_and_is_not_starved(
    root: Path, folder: Path
) -> None:
    open_store(root).close()
    seconds = 8.0
    workers = [
        start("fast-1", root, churn("fast-1", seconds), folder),
        start("fast-2", root, churn("fast-2", seconds), folder),
        start("fast-3", root, churn("fast-3", seconds), folder),
        start("slow-1", root, churn("slow-1", seconds, pause_s=0.1), folder),
        start("slow-2", root, churn("slow-2", seconds, pause_s=0.25), folder),
        start("reader", root, read_all(seconds), folder),
        start("gc", root, collect(seconds), folder),
    ]
    rows, problems = finished(workers)
    assert not problems
    assert sum(row[1] for row in rows if row[0] == "freed") > 0
    # How many each makes depends on the machine; who is kept out makes none, or one before gc came.
    made = Counter(row[1].split(":")[0] for row in rows if row[0] == "made")
    assert len(made) == 5
    assert min(made.values()) > 1
    assert sum(row[1] for row in rows if row[0] == "read") > 0
    assert race_problems(rows, root) == []
    store = open_store(root)
    store.gc(dry_run=False, wait=5)
    assert garbage_after_collection(store) == []


def test_gc_that_comes_at_any_operation_of_a_log_takes_nothing_from_it(
    root: Path, folder: Path
) -> None:
    assert gc_during_a_log(root, folder, b"bytes of a log that gc meets ") == []


def test_a_writer_that_was_killed_keeps_nobody_out(root: Path, folder: Path) -> None:
    store = open_store(root)
    store.log_artifact("other", b"before")
    # Operation 8 is well inside the writer lock, with an object half written.
    writer = start("writer", root, paused_at(8, folder, "one", b"never finished"), folder)
    while not (folder / "paused").exists():
        time.sleep(0.001)
    with pytest.raises(CatalogBusy, match=f"pid {writer.pid} "):
        store.gc(dry_run=False, wait=0.2)
    assert writer.kill() == -9
    began = time.monotonic()
    store.gc(dry_run=False, wait=5)
    assert store.log_artifact("one", b"after").ref == "one:v1"
    assert time.monotonic() - began < 4
    assert garbage_after_collection(store) == []


def test_readers_never_fail_while_packs_are_written_anew(root: Path, folder: Path) -> None:
    store = open_store(root)
    dice = random.Random(7)

    def pack(name: str) -> None:
        """A pack with one file that stays and three times as much that goes."""
        draft = Artifact("data").add(KEPT + name.encode(), "kept")
        for number in range(4):
            draft.add(dice.randbytes(300_000), f"gone-{number}")
        first = store.log_artifact(draft)
        store.log_artifact(f"kept-{name}", KEPT + name.encode())
        store.log_artifact("data", name.encode())
        store.delete(first.ref)

    for name in "abcdef":
        pack(name)
    readers = [start(f"r{n}", root, _reader(4.0), folder) for n in range(2)]
    repacked = 0
    for _ in range(6):
        before = {record.name for record in store.catalog.bytes.all_objects()}
        report = store.gc(dry_run=False, wait=10)
        after = {record.name for record in store.catalog.bytes.all_objects()}
        repacked += len(after - before)
        assert report.freed_bytes > 0
        pack(f"later-{repacked}")
    rows, problems = finished(readers)
    assert not problems
    assert repacked > 5
    assert all(row[1] > 0 for row in rows)


def _reader(seconds: float) -> Work:
    def work(store: Store, tell: Tell) -> None:
        count = 0
        end = time.monotonic() + seconds
        reader = store.reader()
        versions = {name: store.get_artifact(f"kept-{name}") for name in "abcdef"}
        while time.monotonic() < end:
            for name, version in versions.items():
                expected = KEPT + name.encode()
                assert version.read_bytes(f"kept-{name}") == expected
                # This one looked the place up long ago.
                [entry] = version.files()
                assert reader.read(entry.digest) == expected  # pyright: ignore[reportAttributeAccessIssue]
                count += 2
        tell(["read", count])

    return work


def test_a_version_that_was_aliased_since_gc_planned_keeps_its_part_of_a_pack(
    root: Path,
) -> None:
    store, other = open_store(root), open_store(root)
    dice = random.Random(1)
    blobs = [dice.randbytes(400_000) for _ in range(6)]
    first = Artifact("data")
    for number, blob in enumerate(blobs):
        first.add(blob, str(number))
    store.log_artifact(first)
    store.log_artifact("data", blobs[5])
    store.catalog.labels.retire(store.get_artifact("data:v1").uid, by="")

    def alias_it(operation: str, path: str) -> None:
        # gc has planned, and now asks for its lock.
        if operation == "open-lock" and path.endswith("gc.lock"):
            files.fault = None
            other.alias("data:v1", "keep")

    files.fault = alias_it
    try:
        store.gc(dry_run=False, wait=5)
    finally:
        files.fault = None
    assert [store.get_artifact("data:v1").read_bytes(str(n)) for n in range(6)] == blobs
    assert store.verify().is_sound


def test_verify_finds_no_damage_in_what_gc_removes_meanwhile(root: Path, folder: Path) -> None:
    open_store(root).close()
    seconds = 4.0

    def verify(store: Store, tell: Tell) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            report = store.verify()
            tell(["verified", [f"{each.place}: {each.problem}" for each in report.damaged]])

    workers = [
        start("w1", root, churn("w1", seconds), folder),
        start("w2", root, churn("w2", seconds), folder),
        start("gc", root, collect(seconds), folder),
        start("verify", root, verify, folder),
    ]
    rows, problems = finished(workers)
    assert not problems
    reports = [row[1] for row in rows if row[0] == "verified"]
    assert len(reports) > 3
    assert [found for found in reports if found] == []
