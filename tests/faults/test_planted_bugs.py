"""Would these tests notice? Each bug that they are there for is planted, and at least one of their checks must fail."""

import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from begat import checkout, files, locks
from begat.blobs import reader as blobs
from begat.catalog.commits import Commits
from begat.catalog.versions import Versions
from begat.files import NewFile
from begat.locks import FileLock, SweepLock
from begat.model import Commit, NewVersion
from begat.objects import ObjectStore, name_for
from faults.damaging import flip, make_stores, problems_of_damage
from faults.injecting import KILL, Outcome
from faults.races import gc_during_a_log, numbering_problems
from faults.sweeping import changing, in_memory, of_files, order_problems, prepared, swept


@pytest.fixture
def workshop() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_OPEN_AT_LEAST_S", 0.0)


def publish_before_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalog is told first; the object gets its name only afterwards."""
    waiting: list[tuple[NewFile, Path]] = []
    commit = Commits.commit

    def publish_file(self: ObjectStore, new: NewFile, digest: Any) -> str:
        name = name_for(digest)
        waiting.append((new, self.folder / name))
        return name

    def commit_first(self: Commits, new: NewVersion) -> Commit:
        done = commit(self, new)
        for file, path in waiting:
            files.make_directory(path.parent)
            file.publish(path)
        waiting.clear()
        return done

    monkeypatch.setattr(ObjectStore, "publish_file", publish_file)
    monkeypatch.setattr(Commits, "commit", commit_first)


def test_the_crash_sweep_notices_a_version_that_is_committed_before_its_bytes_are_durable(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_before_durable(monkeypatch)
    sweep, points = prepared("first version", workshop)
    assert order_problems(points, str(sweep.folder / "told")) == []  # each file by itself is fine
    assert any(
        "lost" in each or "cannot be read" in each for each in swept(sweep, changing(points), KILL)
    )


def test_the_crash_sweep_notices_a_download_without_temporary_files(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_in_place(self: Any, folder: Any, name: str, make: Any) -> None:
        if folder.lookup(name) is not None:
            folder.remove(name)
        make(name)

    monkeypatch.setattr(checkout._Writer, "_replace", write_in_place)
    sweep, points = prepared("download", workshop)
    problems = swept(sweep, of_files(points), KILL)
    assert any("as no version has it" in each for each in problems)


def test_the_crash_sweep_notices_objects_that_are_written_without_temporary_files(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their bytes grow under the name itself, so that a crash leaves half of an object there."""

    publish = NewFile.publish

    def write_in_place(self: NewFile, target: Path, *, mode: int = 0o444, **how: bool) -> None:
        if (
            "objects" not in target.parts
        ):  # the stat cache, which is kept once the sources are old enough
            publish(self, target, mode=mode, **how)
            return
        data = self.path.read_bytes()
        self.discard()
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            files.write_all(fd, part, target)
        files.sync_file(fd, target)
        os.close(fd)
        files.sync_directory(target.parent)

    monkeypatch.setattr(NewFile, "publish", write_in_place)
    sweep, points = prepared("first version", workshop)
    writes = [p for p in points if p.operation == "write" and "/objects/" in p.path]
    assert len(writes) > 1
    for fault in (KILL, "ENOSPC"):
        problems = swept(sweep, tuple(writes), fault)
        assert any("is not whole" in each for each in problems)


def test_the_order_of_calls_shows_a_missing_fsync(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "sync_file", lambda fd, path: None)
    sweep, points = prepared("first version", workshop)
    problems = order_problems(points, str(sweep.folder / "told"))
    assert any("before its bytes were durable" in each for each in problems)


def test_the_order_of_calls_shows_a_missing_fsync_of_a_folder(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "sync_directory", lambda path, fd=None: None)
    sweep, points = prepared("large file", workshop)
    problems = order_problems(points, str(sweep.folder / "told"))
    assert any("before its name was durable" in each for each in problems)


def test_the_race_for_numbers_notices_a_number_that_is_read_outside_of_the_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Commits.commit

    def max_plus_one(self: Commits, new: NewVersion) -> Commit:
        number = Versions(self._engine).standing(new.name).next_number
        time.sleep(0.01)
        return commit(self, structs.replace(new, number=number))

    monkeypatch.setattr(Commits, "commit", max_plus_one)
    (tmp_path / "told").mkdir()
    assert numbering_problems(tmp_path / "store", tmp_path / "told", writers=4, versions=5) != []


def test_the_damage_tests_notice_reads_that_are_not_verified(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = make_stores(workshop)
    assert problems_of_damage(stores, "small, pack", flip(5000, 3), tmp_path / "read") == []
    monkeypatch.setattr(blobs, "verified", lambda raw, place: bytes(raw))
    problems = problems_of_damage(stores, "small, pack", flip(5000, 3), tmp_path / "read")
    assert any("gave other bytes" in each for each in problems)
    assert any("verify does not name" in each or "other bytes" in each for each in problems)


def test_gc_at_any_operation_of_a_log_notices_gc_that_does_not_keep_writers_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_nobody_out(self: SweepLock, gate: FileLock, writer: FileLock) -> None:
        writer.acquire("shared")

    monkeypatch.setattr(SweepLock, "_keep_writers_out", keep_nobody_out)
    (tmp_path / "told").mkdir()
    problems = gc_during_a_log(tmp_path / "store", tmp_path / "told", b"bytes ")
    assert problems != []


def test_the_crash_sweep_notices_an_error_that_is_swallowed(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that goes on after a failed rename acknowledges what is not there."""
    publish = NewFile.publish

    def swallow(self: NewFile, target: Path, *, mode: int = 0o444, **how: bool) -> None:
        try:
            publish(self, target, mode=mode, **how)
        except OSError:
            pass

    monkeypatch.setattr(NewFile, "publish", swallow)
    sweep, points = prepared("first version", workshop)
    assert swept(sweep, of_files(points), "EIO") != []


def test_a_fault_that_does_not_hit_is_a_failure_of_the_sweep(workshop: Path) -> None:
    sweep, points = prepared("alias", workshop)
    beyond = dataclasses.replace(points[-1], number=points[-1].number + 1000)
    assert any("did not hit" in each for each in swept(sweep, (beyond,), KILL))
    assert isinstance(sweep.told(-1, KILL)[0], Outcome)
