"""Every operation of log, alias, delete, gc and download is killed and failed; nothing published ever breaks."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.checking import Tree, temporary_files, tree_of, wrong_after
from faults.injecting import BROKE, ERRORS, FINISHED, KILL, STATEMENT, Outcome, Point, in_child
from faults.stories import STORIES, Place, Story, tell, trees_of, truth_of, write_sources


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
        """The operations of the story when nothing fails."""
        outcome, problems = self.told(-1, KILL)
        assert outcome.status == FINISHED, outcome.told
        assert not problems
        return outcome.points

    def told(
        self, at: int, fault: str, *, lasting: bool = False
    ) -> tuple[Outcome, list[str]]:
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
        # A removal that fails leaves what was to be removed; gc finds it, as is checked below.
        is_removal = outcome.hit is not None and outcome.hit.operation in ("remove", "rmdir")
        if fault != KILL and not is_removal and self.story.name != "gc":
            left = [*temporary_files(place.root), *temporary_files(place.destination)]
            problems += [f"{name} was left behind" for name in left]
        problems += self._half_files(place)
        truth = truth_of(self.story, [*self.prepared, *outcome.acknowledged], self.trees)
        name, source = self.story.again
        scratch = self.folder / "scratch"
        problems += wrong_after(place.root, truth, scratch, (name, place.source(source)))
        shutil.rmtree(scratch)
        return problems

    def _half_files(self, place: Place) -> list[str]:
        """Files with a final name below the destination that are none of what was being written there."""
        whole = {entry for tree in self.trees.values() for entry in tree.items()}
        return [
            f"the download left {folder.name}/{path} as no version has it"
            for folder in place.destination.iterdir()
            for path, what in tree_of(folder).items()
            if what[0] == "file" and not path.endswith(".tmp") and (path, what) not in whole
        ]


def swept(sweep: Sweep, points: tuple[Point, ...], fault: str, **how: bool) -> list[str]:
    """All problems of a sweep of one fault over these points of a story, each naming its point."""
    problems: list[str] = []
    for point in points:
        outcome, found = sweep.told(point.number, fault, **how)
        where = f"{fault} at {point.number} ({point.operation} {point.path}): "
        if outcome.hit is None:
            found.append("the fault did not hit")
        if outcome.is_killed != (fault == KILL):
            found.append(f"the child ended with {outcome.status}")
        problems += [where + problem for problem in found]
    return problems


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


_sweeps: dict[str, tuple[Sweep, tuple[Point, ...]]] = {}


def prepared(name: str, workshop: Path) -> tuple[Sweep, tuple[Point, ...]]:
    """A story with its points, prepared once in this process."""
    if name not in _sweeps:
        sweep = Sweep.of(STORIES[name], workshop / name.replace(" ", "-").replace(",", ""))
        _sweeps[name] = sweep, sweep.points()
    return _sweeps[name]


if __name__ == "__main__":
    from begat import locks
    locks._OPEN_AT_LEAST_S = 0
    import sys
    import tempfile
    import time

    for name in sys.argv[1:] or STORIES:
        start = time.monotonic()
        sweep, points = prepared(name, Path(tempfile.mkdtemp(dir="/dev/shm")))
        print(name, len(points), f"{time.monotonic() - start:.2f} s", Counter(p.operation for p in points))
        for fault in (KILL, *ERRORS):
            start = time.monotonic()
            chosen = points if fault == KILL else tuple(p for p in points if p.operation != STATEMENT)
            problems = swept(sweep, chosen, fault)
            print(fault, len(chosen), f"{time.monotonic() - start:.2f} s", *problems[:8], sep="\n  ")
