"""Where a scenario plays: a store and a folder of its own, and what can be asked of them afterwards."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

from begat.default import default_store
from begat.errors import ArtifactNotFound, BegatWarning
from begat.model import Edge
from begat.run import Run
from begat.version import Version

# Of what every scenario trains; its checkpoints are versions of it.
NAME = "net"
WAIT_S = 60.0


class Boom(Exception):
    """What a training dies of where it is to die."""


class Scene:
    """The default store of one scenario, and the folder that its checkpoints go to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = default_store()

    def versions(self) -> list[Version]:
        """The checkpoints that were recorded, oldest first."""
        try:
            return list(self.store.versions(NAME))
        except ArtifactNotFound:
            return []

    def wait_for(self, count: int) -> list[Version]:
        """The checkpoints once there are so many, or after a minute."""
        deadline = time.monotonic() + WAIT_S
        while len(self.versions()) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.versions()

    def runs(self) -> list[Run]:
        """The runs, newest first."""
        return self.store.runs()

    def run(self) -> Run:
        """The newest run."""
        return self.runs()[0]

    def edges(self) -> list[Edge]:
        """The edges to what the newest run used."""
        return [edge for edge in self.run().edges if edge.kind == "used"]

    def edges_by_ref(self) -> dict[str, Edge]:
        """Those edges by the version that was used."""
        records = self.store.catalog.versions
        return {records.get(edge.version_uid).ref: edge for edge in self.edges()}

    def log_rows(self, first: int) -> Version:
        """The next version of the dataset `rows`: numbers in `rows.txt`, from `first` on."""
        from begat.artifact import Artifact

        text = " ".join(str(first + number) for number in range(64))
        return self.store.log_artifact(Artifact("rows", "dataset").add(text.encode(), "rows.txt"))

    def check_versions(self) -> None:
        """Each version that is live is what lies at its path; all others were overwritten or removed, and retired."""
        newest: dict[str, Version] = {}
        for version in self.versions():
            newest[str(version.metadata["path"])] = version
        for version in self.versions():
            path = Path(str(version.metadata["path"]))
            is_there = newest[str(path)] == version and path.exists()
            assert version.state == ("live" if is_there else "retired"), version.ref
            assert version.verify() == ()
            if is_there:
                assert content(version) == content_at(path)


def content(version: Version) -> dict[str, bytes]:
    """The bytes of a version's files, by path."""
    return {entry.path: version.read_bytes(entry.path) for entry in version.files()}


def content_at(path: Path) -> dict[str, bytes]:
    """The bytes of a file or of a folder's files, by the path that they have in a version."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    found = (each for each in path.rglob("*") if each.is_file())
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in found}


@contextlib.contextmanager
def begat_warnings() -> Generator[list[str]]:
    """What begat has to say, once the block has ended; what frameworks say of themselves is left out."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(one.message) for one in caught if issubclass(one.category, BegatWarning)]


class Calls:
    """How often a training's own thread calls begat or an integration, between two moments that it is told of."""

    def __init__(self, package: str) -> None:
        import begat

        module = sys.modules[package]
        places = [Path(str(each.__file__)).parent for each in (begat, module)]
        self._here = str(Path(__file__).parent)
        self._places = tuple(f"{place}{os.sep}" for place in places)
        self._before: Any = None
        self.seen: list[str] = []

    def start(self) -> None:
        """Look from now on."""
        self._before = sys.getprofile()
        sys.setprofile(self._see)

    def stop(self) -> None:
        """Look no longer."""
        sys.setprofile(self._before)

    def _see(self, frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        file = code.co_filename
        if event == "call" and file.startswith(self._places) and not file.startswith(self._here):
            self.seen.append(f"{file}:{code.co_qualname}")
