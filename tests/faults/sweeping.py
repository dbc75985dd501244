"""One story told again and again, each time with one fault in it, and all that is wrong afterwards."""

import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from faults.checking import Tree, files_below, temporary_files, tree_of, wrong_after
from faults.injecting import BROKE, FINISHED, KILL, STATEMENT, Outcome, Point, in_child
from faults.stories import STORIES, Place, Story, tell, trees_of, truth_of, write_sources
from faults.tracing import until_hit


@contextmanager
def in_memory() -> Iterator[Path]:
    """A folder for thousands of small stores: in memory, where the machine has such a place."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class Sweep:
    """One story, prepared once; each telling begins with a copy of its store."""

    story: Story
    folder: Path
    prepared: list[list[str]]
    trees: dict[str, Tree]

    @classmethod
    def of(cls, story: Story, folder: Path) -> "Sweep":
        write_sources(folder / "sources")
        prepared: list[list[str]] = []
        sweep = cls(story, folder, prepared, trees_of(folder / "sources"))
        # In a process of its own, like everything that touches these stores.
        outcome = in_child(
            lambda acknowledge: tell(sweep._place("template"), story.prepare, acknowledge),
            folder / "notes",
        )
        assert outcome.status == FINISHED, outcome.told
        prepared.extend(outcome.acknowledged)
        return sweep

    def points(self) -> tuple[Point, ...]:
        """The operations of the story when nothing fails, as most tellings have them.

        Names of objects are random: one telling in a hundred finds a folder for one there already.
        """
        tellings = [self._whole() for _ in range(5)]
        orders = [tuple(point.operation for point in points) for points in tellings]
        return tellings[orders.index(statistics.mode(orders))]

    def _whole(self) -> tuple[Point, ...]:
        outcome, problems = self.told(-1, KILL)
        assert outcome.status == FINISHED, outcome.told
        assert problems == [], problems
        return outcome.points

    def told(self, at: int, fault: str, *, lasting: bool = False) -> tuple[Outcome, list[str]]:
        """One telling with one fault, and all that is wrong afterwards."""
        place = self._place("told")
        shutil.rmtree(place.root, ignore_errors=True)
        shutil.rmtree(place.destination, ignore_errors=True)
        shutil.copytree(self._place("template").root, place.root)
        place.destination.mkdir()
        outcome = in_child(
            lambda acknowledge: tell(place, self.story.act, acknowledge),
            self.folder / "notes",
            at=at,
            fault=fault,
            lasting=lasting,
        )
        return outcome, self._wrong(place, outcome, fault)

    def _place(self, name: str) -> Place:
        return Place(
            self.folder / name, self.folder / "sources", self.folder / f"{name}-destination"
        )

    def _wrong(self, place: Place, outcome: Outcome, fault: str) -> list[str]:
        problems: list[str] = []
        if outcome.status == BROKE:
            problems.append(f"not an error of begat: {outcome.told}")
        if fault != KILL:
            problems += [f"{name} was left behind" for name in self._left(place, outcome)]
        problems += self._half_files(place)
        problems += half_objects(place.root)
        truth = truth_of(
            self.story,
            [*self.prepared, *outcome.acknowledged],
            self.trees,
            is_finished=outcome.status == FINISHED,
        )
        name, source = self.story.again
        scratch = self.folder / "scratch"
        problems += wrong_after(
            place.root,
            truth,
            scratch,
            again=(name, place.source(source)),
            # What is left does not depend on the number of the error.
            collect=fault in (KILL, "EIO"),
        )
        shutil.rmtree(scratch)
        return problems

    def _left(self, place: Place, outcome: Outcome) -> list[str]:
        """Temporary files that should not be there after an error."""
        left = temporary_files(place.root)
        if outcome.status != FINISHED:  # what gc was about to remove was there before
            left = sorted(set(left) - set(temporary_files(self._place("template").root)))
        left += temporary_files(place.destination)
        if outcome.hit is not None and outcome.hit.operation in ("remove", "rmdir"):
            # Nobody can remove a file whose removal fails; gc finds it, as is checked afterwards.
            left = [name for name in left if os.path.basename(name) not in outcome.hit.path]
        return left

    def _half_files(self, place: Place) -> list[str]:
        """Files with a final name below the destination that are none of what was being written there."""
        whole = {entry for tree in self.trees.values() for entry in tree.items()}
        return [
            f"the download left {folder.name}/{path} as no version has it"
            for folder in place.destination.iterdir()
            for path, what in tree_of(folder).items()
            if what[0] == "file" and not path.endswith(".tmp") and (path, what) not in whole
        ]


def half_objects(root: Path) -> list[str]:
    """Files with the name of an object whose bytes are not those that the name says."""
    return [
        f"{file.parent.name}/{file.name} has its final name and is not whole"
        for file in files_below(root / "objects")
        if blake3(file.read_bytes()).hexdigest() != file.name.partition("-")[0]
    ]


def swept(sweep: Sweep, points: tuple[Point, ...], fault: str, **how: bool) -> list[str]:
    """All problems of a sweep of one fault over these points of a story, each naming its point."""
    problems: list[str] = []
    for point in points:
        outcome, found = until_hit(lambda at=point.number: sweep.told(at, fault, **how))
        where = f"{fault} at {point.number} ({point.operation} {point.path}): "
        if outcome.hit is None:
            found.append("the fault did not hit")
        if outcome.is_killed != (fault == KILL):
            found.append(f"the child ended with {outcome.status}")
        problems += [where + problem for problem in found]
    return problems


# Tellings are cut short before each of these; what only reads changes nothing between them.
_READING = ("SELECT", "PRAGMA", "BEGIN", "WITH")


def changing(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """The points at which something is about to change; the end of a transaction that only read is none."""
    chosen: list[Point] = []
    has_changes = False
    for point in points:
        if point.operation == STATEMENT:
            if point.path.startswith(_READING):
                has_changes = has_changes and not point.path.startswith("BEGIN")
                continue
            if point.path == "COMMIT" and not has_changes:
                continue
            has_changes = point.path != "COMMIT"
        chosen.append(point)
    return tuple(chosen)


def of_files(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """The points that are changes of files: errors of the system are put in there."""
    return tuple(point for point in points if point.operation != STATEMENT)


def of_statements(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """The points at which the catalog is about to change: errors of SQLite are put in there."""
    return tuple(point for point in changing(points) if point.operation == STATEMENT)


def prepared(name: str, workshop: Path) -> tuple[Sweep, tuple[Point, ...]]:
    """A story by its name, made ready in a folder of its own, with its points."""
    sweep = Sweep.of(STORIES[name], workshop / name.replace(" ", "-").replace(",", ""))
    return sweep, sweep.points()


def order_problems(points: tuple[Point, ...], root: str) -> list[str]:
    """Where a file of the store got its name before its bytes were durable, or was committed before its name was.

    No sweep can see a missing fsync: what a killed process wrote is still in the system's memory.
    """
    problems: list[str] = []
    synced: set[str] = set()  # temporary files whose last write was followed by an fsync
    named: dict[str, str] = {}  # folder -> a name in it that is not durable yet
    for point in points:
        if point.operation == "fsync":
            synced.add(point.path)
        elif point.operation in ("write", "copy"):
            synced.discard(point.path)
        elif point.operation == "fsync-directory":
            named.pop(point.path, None)
        elif point.operation == "rename" and point.path.startswith(f"{root}/"):
            if not synced:
                problems.append(f"{point.path} was named before its bytes were durable")
            synced.clear()
            named[os.path.dirname(point.path)] = point.path
        elif point.operation == "mkdir" and point.path.startswith(f"{root}/objects/"):
            named[os.path.dirname(point.path)] = point.path
        elif point.operation == STATEMENT and point.path == "COMMIT":
            problems += [
                f"{name} was committed before its name was durable" for name in named.values()
            ]
    return problems
