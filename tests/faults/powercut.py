"""What a power cut leaves of a store: the disk as it is at a system call, while nothing else was written to it.

    python tests/faults/powercut.py             every call of each story
    python tests/faults/powercut.py --most 30   at so many calls of each, evenly spread

A store lies in a file system of its own, in a file (a loop mount). The process that writes to it is killed at a system
call, and the file is copied while it is mounted: the copy has what had reached the disk by then, and nothing of what
the kernel still held in memory. The copy is mounted and must be a store that keeps every promise: nothing published is
damaged, and nothing acknowledged is lost. Then the same is done to a begat that never waits for the disk, and that must
be noticed, or the sweep proves nothing.

It cannot show a missing fsync of a folder: ext4 writes names in the order they were made. That is proved by the order
of calls elsewhere. Exit code 0: swept and sound; 1: problems; 77: not run, since this machine does not allow it.
"""

import argparse
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "core")]

from begat import files, locks  # noqa: E402
from faults.checking import Tree, wrong_after  # noqa: E402 - needs the path above
from faults.injecting import BROKE, FINISHED, Outcome, Point  # noqa: E402
from faults.stories import (  # noqa: E402
    STORIES,
    Act,
    Place,
    Story,
    tell,
    trees_of,
    truth_of,
    write_sources,
)
from faults.tracing import CannotTrace, common_points, spread, traced, until_hit  # noqa: E402

PASSED, FAILED, NOT_RUN = 0, 1, 77
NEW_STORE = "new store"
TOLD = (
    NEW_STORE,
    "second version",
    "large file",
    "large file, few new parts",
    "log in a run",
    "alias",
    "delete",
    "gc",
)
MOST_POINTS = 1_000_000  # all: about 1,100, each a quarter of a second of a core
LEAST_CUTS = 800
IMAGE_BYTES = 64 << 20
# Without these, ext4 would flush some files on its own account, and its journal every five seconds.
OPTIONS = "loop,noauto_da_alloc,commit=600"

Plant = Callable[[], None]


class NotPossible(Exception):
    """The sweep cannot be made on this machine; the message says why."""


@dataclass(slots=True)
class Sweep:
    """One story on a disk of its own, prepared once."""

    story: Story
    folder: Path
    trees: dict[str, Tree]
    prepared: tuple[list[str], ...]
    points: tuple[Point, ...]

    @classmethod
    def of(cls, name: str, folder: Path) -> "Sweep":
        story = STORIES["first version" if name == NEW_STORE else name]
        folder.mkdir()
        (folder / "disk").mkdir()
        write_sources(folder / "sources")
        sweep = cls(story, folder, trees_of(folder / "sources"), (), ())
        make_file_system(sweep.image("template"))
        if name != NEW_STORE:
            with mounted(sweep.image("template"), folder / "disk"):
                outcome = sweep.traced(story.prepare)
                assert outcome.status == FINISHED, outcome.told
                sweep.prepared = outcome.acknowledged
        # In this process first: it then has all modules that each child would load for itself.
        with mounted(sweep.copied("template", "work"), folder / "disk"):
            tell(sweep.place, story.act, lambda fact: None)
        sweep.points = common_points(sweep.whole)
        return sweep

    def whole(self) -> tuple[Point, ...]:
        """All points of one telling; the power is cut after its end, which must break nothing."""
        outcome, problems = self.cut()
        assert outcome.status == FINISHED, outcome.told
        if problems:
            raise AssertionError(f"a cut after the end of {self.story.name!r} broke it: {problems}")
        return outcome.points

    def cut(
        self, at: Point | None = None, *, plant: Plant | None = None
    ) -> tuple[Outcome, list[str]]:
        """Cut the power at a call (None: when all was acknowledged), and say what is wrong with what is left."""
        disk = self.folder / "disk"
        with mounted(self.copied("template", "work"), disk):
            outcome = self.traced(self.story.act, at=at, plant=plant)
            self.copied("work", "left")
        problems = [outcome.told] if outcome.status == BROKE else []
        truth = truth_of(
            self.story,
            [*self.prepared, *outcome.acknowledged],
            self.trees,
            is_finished=outcome.status == FINISHED,
        )
        name, source = self.story.again
        scratch = self.folder / "scratch"
        with mounted(self.image("left"), disk):
            problems += wrong_after(
                self.place.root, truth, scratch, again=(name, self.place.source(source))
            )
        shutil.rmtree(scratch)
        return outcome, problems

    def swept(self, most: int, *, plant: Plant | None = None) -> Iterator[str]:
        """All problems of a cut at each of about `most` calls, each naming its call."""
        for point in spread(self.points, most):
            outcome, problems = until_hit(lambda at=point: self.cut(at, plant=plant))
            if plant is None and outcome.hit is None:
                problems.append("the process was not stopped there")
            call = f"{point.operation}({point.path}"[:160]
            yield from (f"call {point.number}, {call}: {each}" for each in problems)

    @property
    def place(self) -> Place:
        return Place(self.folder / "disk" / "store", self.folder / "sources", self.folder / "none")

    def image(self, name: str) -> Path:
        return self.folder / f"{name}.img"

    def copied(self, source: str, target: str) -> Path:
        subprocess.run(
            ["cp", "--sparse=always", self.image(source), self.image(target)], check=True
        )
        return self.image(target)

    def traced(self, act: Act, *, at: Point | None = None, plant: Plant | None = None) -> Outcome:
        def told(acknowledge: Callable[[list[str]], None]) -> None:
            if plant is not None:
                plant()
            tell(self.place, act, acknowledge)

        return traced(told, self.folder / "notes", below=[self.place.root], at=at)


# --- disks ---


def make_file_system(image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", image], check=True)


@contextlib.contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    done = subprocess.run(
        ["mount", "-t", "ext4", "-o", OPTIONS, image, folder], capture_output=True, text=True
    )
    if done.returncode:
        raise NotPossible(f"loop mounts do not work here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def check_possible(folder: Path) -> None:
    """Raise `NotPossible`, in words that tell what is missing, unless everything that a sweep needs is there."""
    if not sys.platform.startswith("linux"):
        raise NotPossible("it needs Linux")
    if os.geteuid() != 0:
        raise NotPossible("only root may mount; run it with sudo")
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if shutil.which(name) is None]
    if missing:
        raise NotPossible(f"{', '.join(missing)} is missing (apt-get install e2fsprogs mount)")
    make_file_system(folder / "try.img")
    (folder / "try").mkdir()
    with mounted(folder / "try.img", folder / "try"):
        pass
    traced(lambda acknowledge: None, folder / "notes", below=[])


# --- mistakes that must be noticed ---


def without_fsync() -> None:
    """begat waits for the disk no more; SQLite does."""
    files.sync_file = lambda fd, path: None
    files.sync_directory = lambda path, fd=None: None


def without_fsync_of_the_catalog() -> None:
    """SQLite waits for the disk only now and then, and says that it always does; begat waits."""
    connect = sqlite3.connect

    class Careless(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql == "PRAGMA synchronous = FULL":
                sql = "PRAGMA synchronous = NORMAL"
            elif sql == "PRAGMA synchronous":
                sql = "SELECT 2"
            return super().execute(sql, *args)

    def careless(*args: Any, **how: Any) -> sqlite3.Connection:
        return connect(*args, **{**how, "factory": Careless})

    sqlite3.connect = careless


def unnoticed(sweep: Sweep, most: int) -> Iterator[str]:
    """The mistakes that a sweep of this story does not see."""
    for plant in (without_fsync, without_fsync_of_the_catalog):
        first = next(sweep.swept(most, plant=plant), None)
        if first is None:
            yield f"a begat {plant.__name__.replace('_', ' ')} passed the sweep"
        else:
            print(f"  noticed: {plant.__name__.replace('_', ' ')} ({first[-100:]})", flush=True)


def sweep_story(name: str, folder: Path, most: int) -> tuple[int, list[str]]:
    """Sweep one story and print how it went: how many cuts there were, and what was wrong."""
    began = time.monotonic()
    sweep = Sweep.of(name, folder / name.replace(" ", "-").replace(",", ""))
    problems = list(sweep.swept(most))
    count = len(spread(sweep.points, most))
    print(
        f"  {name}: cut at {count} of {len(sweep.points)} calls, {len(problems)} problems, "
        f"{time.monotonic() - began:.0f} s",
        flush=True,
    )
    if name == "second version":
        problems += unnoticed(sweep, most)
    return count, [f"{name}: {each}" for each in problems]


def sweep_all(folder: Path, most: int) -> int:
    """Sweep every story, as many at a time as there are cores, and return the exit code."""
    began = time.monotonic()
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        swept = [pool.submit(sweep_story, name, folder, most) for name in TOLD]
        results = [each.result() for each in swept]
    count = sum(cuts for cuts, _ in results)
    problems = [each for _, found in results for each in found]
    if count < min(LEAST_CUTS, most * len(TOLD) // 2):
        problems.append(f"only {count} calls were found to cut at; the sweep is not what it was")
    for problem in problems:
        print(f"PROBLEM {problem}")
    took = time.monotonic() - began
    print(f"power cut: {count} cuts, {len(problems)} problems, {took:.0f} s on {workers} cores")
    return FAILED if problems else PASSED


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Cut the power at system calls, and look what is left."
    )
    parser.add_argument(
        "--most", type=int, default=MOST_POINTS, help="at so many calls of a story, evenly spread"
    )
    most = parser.parse_args().most
    locks._OPEN_AT_LEAST_S = 0.0  # no other process waits here
    with tempfile.TemporaryDirectory(prefix="begat-powercut-") as name:
        folder = Path(name)
        # Nothing of the caller's is read or written.
        os.environ.update(HOME=str(folder / "home"), BEGAT_CACHE=str(folder / "cache"))
        try:
            check_possible(folder)
        except (NotPossible, CannotTrace) as error:
            print(f"power cut: NOT RUN: {error}")
            return NOT_RUN
        return sweep_all(folder, most)


if __name__ == "__main__":
    sys.exit(main())
