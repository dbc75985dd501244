"""The process is killed, or fails, at the system calls of log, alias, delete and gc, SQLite's own among them.

Nothing breaks. The process is killed at every call. Errors are put at every call that is no write of a page of
SQLite's, and at every k-th of those, so that one sweep has about `MOST_POINTS`; for alias and delete, and with
BEGAT_ALL_POINTS=1 in the environment for all stories, at every call. Each point is counted first, and each fault is
looked for in the trace.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from begat import files, locks
from begat import sweep as gc
from begat.catalog.commits import Commits
from begat.model import Commit, NewVersion
from faults.checking import Tree, temporary_files, wrong_after
from faults.injecting import BROKE, FINISHED, KILL, Outcome, Point
from faults.stories import STORIES, Act, Place, Story, tell, trees_of, truth_of, write_sources
from faults.tracing import (
    NEEDING_NO_SPACE,
    REMOVING,
    CannotTrace,
    common_points,
    lasting_path,
    sampled,
    traced,
    until_hit,
)

pytestmark = [
    *(pytest.mark.system, pytest.mark.slow),
    # gc ends well where it has no room for packs that it would write anew, and warns.
    pytest.mark.filterwarnings("ignore:the disk is too full:begat.errors.BegatWarning"),
]

MOST_POINTS = 36
NEW_STORE = "new store"  # the first log, which makes the store
# No change of a file is begat's own here: every call of SQLite's is a point.
ALL_IN_SQLITE = ("alias", "delete")
TOLD = (
    *(NEW_STORE, "second version", "large file, few new parts", "log in a run", "gc"),
    *ALL_IN_SQLITE,
)
IS_COMPLETE = os.environ.get("BEGAT_ALL_POINTS") == "1"

# What is changed in begat before a story is told, in the child that tells it.
Plant = Callable[[], None]


@dataclass(slots=True)
class Sweep:
    """One story, prepared once; each telling begins with a copy of its store."""

    story: Story
    folder: Path
    trees: dict[str, Tree]
    prepared: tuple[list[str], ...]
    points: tuple[Point, ...]

    @classmethod
    def of(cls, name: str, folder: Path) -> "Sweep":
        story = STORIES["first version" if name == NEW_STORE else name]
        write_sources(folder / "sources")
        sweep = cls(story, folder, trees_of(folder / "sources"), (), ())
        if name != NEW_STORE:
            template = sweep.place("template")
            outcome = sweep.traced(template, story.prepare)
            assert outcome.status == FINISHED, outcome.told
            sweep.prepared = outcome.acknowledged
        # In this process first: it then has all modules that each child would load for itself, between its calls.
        place = sweep.copied()
        tell(place, story.act, lambda fact: None)
        sweep.points = common_points(sweep.whole)
        return sweep

    def whole(self) -> tuple[Point, ...]:
        """All points of one telling without a fault."""
        outcome, problems = self.told()
        assert outcome.status == FINISHED, outcome.told
        assert problems == []
        return outcome.points

    def told(
        self, at: Point | None = None, fault: str = KILL, *, plant: Plant | None = None
    ) -> tuple[Outcome, list[str]]:
        """One telling with one fault, and all that is wrong afterwards."""
        place = self.copied()
        outcome = self.traced(place, self.story.act, at=at, fault=fault, plant=plant)
        problems: list[str] = []
        if outcome.status == BROKE:
            problems.append(f"not an error of begat: {outcome.told}")
        if fault != KILL:
            problems += [f"{name} was left behind" for name in self._left(place, outcome)]
        truth = truth_of(
            self.story,
            [*self.prepared, *outcome.acknowledged],
            self.trees,
            is_finished=outcome.status == FINISHED,
        )
        name, source = self.story.again
        scratch = self.folder / "scratch"
        # What is left to collect does not depend on the number of the error.
        problems += wrong_after(
            place.root,
            truth,
            scratch,
            again=(name, place.source(source)),
            collect=fault in (KILL, "EIO"),
        )
        shutil.rmtree(scratch)
        return outcome, problems

    def swept(
        self, fault: str, *, only: str | None = None, plant: Plant | None = None
    ) -> Iterator[str]:
        """All problems of a sweep of one fault (at calls of one name only), each naming its point."""
        for point in self.points_for(fault):
            if only not in (None, point.operation):
                continue
            outcome, problems = until_hit(lambda at=point: self.told(at, fault, plant=plant))
            if outcome.hit is None:
                problems.append("the fault did not hit")
            if outcome.is_killed != (fault == KILL):
                problems.append(f"the process ended with {outcome.status}")
            call = f"{point.operation}({point.path}"[:160]
            yield from (f"{fault} at call {point.number}, {call}: {each}" for each in problems)

    def points_for(self, fault: str) -> list[Point]:
        points = [
            p for p in self.points if fault != "ENOSPC" or p.operation not in NEEDING_NO_SPACE
        ]
        is_complete = fault == KILL or IS_COMPLETE or self.story.name in ALL_IN_SQLITE
        return points if is_complete else sampled(points, MOST_POINTS)

    def _left(self, place: Place, outcome: Outcome) -> list[str]:
        """Temporary files that should not be there after an error."""
        left = temporary_files(place.root)
        if outcome.status != FINISHED:  # what gc was about to remove was there before
            left = sorted(set(left) - set(temporary_files(self.place("template").root)))
        if outcome.hit is not None and outcome.hit.operation in REMOVING:
            # Nobody can remove a file whose removal fails; gc finds it, as is checked afterwards.
            left = [name for name in left if os.path.basename(name) not in outcome.hit.path]
        return left

    def copied(self) -> Place:
        """A copy of the prepared store, if one was prepared."""
        place = self.place("told")
        shutil.rmtree(place.root, ignore_errors=True)
        if self.place("template").root.exists():
            shutil.copytree(self.place("template").root, place.root)
        return place

    def place(self, name: str) -> Place:
        return Place(self.folder / name, self.folder / "sources", self.folder / "nothing")

    def traced(
        self,
        place: Place,
        act: Act,
        *,
        at: Point | None = None,
        fault: str = KILL,
        plant: Plant | None = None,
    ) -> Outcome:
        def told(acknowledge: Callable[[list[str]], None]) -> None:
            if plant is not None:
                plant()
            tell(place, act, acknowledge)

        try:
            return traced(told, self.folder / "notes", below=[place.root], at=at, fault=fault)
        except CannotTrace as error:
            pytest.fail(f"this sweep is needed and could not be run: {error}", pytrace=False)


_sweeps: dict[str, Sweep] = {}


@pytest.fixture(scope="module")
def workshop() -> Iterator[Path]:
    """A folder for hundreds of small stores: in memory, where the machine has such a place."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    _sweeps.clear()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process waits here, so gc need not leave the gate open between its steps."""
    monkeypatch.setattr(locks, "_OPEN_AT_LEAST_S", 0.0)


def prepared(name: str, workshop: Path) -> Sweep:
    """The sweep of a story, prepared once in this process."""
    if name not in _sweeps:
        _sweeps[name] = Sweep.of(name, workshop / name.replace(" ", "-").replace(",", ""))
    return _sweeps[name]


@pytest.mark.parametrize("name", TOLD)
def test_the_sweep_has_every_kind_of_call_that_changes_a_store(name: str, workshop: Path) -> None:
    points = prepared(name, workshop).points
    files_of_sqlite = [point for point in points if "catalog.sqlite" in point.path]
    assert len(files_of_sqlite) > 30
    assert {point.operation for point in points} >= {"pwrite64", "fdatasync", "openat", "unlink"}
    assert len(prepared(name, workshop).points_for(KILL)) > 40
    assert len(prepared(name, workshop).points_for("EIO")) > 28
    if name not in ALL_IN_SQLITE:
        assert len(points) > 60
        objects = ("/objects/", "/tmp/")
        assert len([p for p in points if any(folder in p.path for folder in objects)]) > 5
        assert "fsync" in {point.operation for point in points}


def test_what_a_call_writes_is_not_taken_for_the_path_that_it_is_about() -> None:
    written = '18</s/catalog.sqlite-wal>, "\\0venv/bin/python\\",\\"script\\":\\"/"..., 4096, 57736) = 4096'
    assert lasting_path("pwrite64", written) == "/s/catalog.sqlite-wal"
    assert lasting_path("rename", '"/s/a", "/s/b") = 0') == "/s/b"


def test_a_call_that_only_some_tellings_come_to_is_no_point() -> None:
    def write(number: int, path: str, written: str) -> Point:
        return Point(number, "pwrite64", f'9<{path}>, "{written}", 4096, 0) = 4096')

    usual = [write(1, "/s/wal", "a page"), write(1, "/s/db", "a page"), write(2, "/s/wal", "x")]
    longer = [
        *usual[:2],
        write(2, "/s/wal", "y"),
        write(3, "/s/wal", "split"),
        write(2, "/s/db", "z"),
    ]
    tellings = itertools.chain([longer, longer, usual], itertools.repeat(longer))
    assert [(p.number, p.path[:8]) for p in common_points(lambda: next(tellings))] == [
        (1, "9</s/wal"),
        (1, "9</s/db>"),
        (2, "9</s/wal"),
    ]


@pytest.mark.parametrize("name", TOLD)
def test_nothing_published_breaks_when_the_process_is_killed_at_a_system_call(
    name: str, workshop: Path
) -> None:
    assert list(prepared(name, workshop).swept(KILL)) == []


@pytest.mark.parametrize("fault", ["EIO", "ENOSPC", "EROFS"])
@pytest.mark.parametrize("name", TOLD)
def test_nothing_published_breaks_and_nothing_is_left_when_a_system_call_fails(
    name: str, fault: str, workshop: Path
) -> None:
    assert list(prepared(name, workshop).swept(fault)) == []


@pytest.mark.parametrize("fault", ["EMFILE", "EACCES"])
@pytest.mark.parametrize("name", [NEW_STORE, "alias"])
def test_nothing_published_breaks_when_sqlite_may_not_open_its_files(
    name: str, fault: str, workshop: Path
) -> None:
    sweep = prepared(name, workshop)
    assert any("catalog.sqlite-wal" in point.path for point in sweep.points_for(fault))
    assert list(sweep.swept(fault, only="openat")) == []


# --- the sweep sees what it is for: each of these mistakes, made in the child, is found ---


def publish_before_durable() -> None:
    """Objects get their names only after the commit that relies on them."""
    rename, commit = files.rename, Commits.commit
    late: list[tuple[Path, Path]] = []

    def later(source: Path, target: Path) -> None:
        if "objects" in target.parts:
            late.append((source, target))
        else:
            rename(source, target)

    def commit_first(self: Commits, new: NewVersion) -> Commit:
        done = commit(self, new)
        while late:
            rename(*late.pop())
        return done

    files.rename = later
    Commits.commit = commit_first


def swallow_errors() -> None:
    """A write that fails is taken for done."""
    write_all = files.write_all

    def careless(fd: int, data: bytes | memoryview) -> None:
        with contextlib.suppress(OSError):
            write_all(fd, data)

    files.write_all = careless


def remove_bytes_before_rows() -> None:
    """gc removes a pack before the catalog names the one that replaces it."""
    sweep = gc._Sweep
    move = sweep._move

    def remove_first(self: Any, copied: Any, needed: Any) -> None:
        for pack in copied.packs:
            self._objects.remove(pack.name)
        move(self, copied, needed)

    sweep._move = remove_first


@pytest.mark.parametrize(
    ("plant", "name", "fault", "only"),
    [
        (publish_before_durable, "second version", KILL, "rename"),
        (publish_before_durable, "large file, few new parts", KILL, "rename"),
        (swallow_errors, "large file, few new parts", "EIO", "write"),
        (remove_bytes_before_rows, "gc", KILL, "unlink"),
    ],
)
def test_a_planted_bug_is_found(
    plant: Plant, name: str, fault: str, only: str, workshop: Path
) -> None:
    sweep = prepared(name, workshop)
    found = sweep.swept(fault, only=only, plant=plant)
    assert any("verify: " in each or "cannot be read" in each for each in found)
