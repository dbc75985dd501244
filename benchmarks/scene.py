"""What works have in common: a folder with data and stores, sizes, and the operations that several of them need."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Cost, Operation, apart, in_turns
from series import Scale

import begat


@dataclass(frozen=True)
class Size:
    """How much work there is."""

    large_bytes: int
    disk_bytes: int
    small_files: int
    medium_files: int
    checkpoint_bytes: int
    table_bytes: int
    versions: int
    runs: int
    tiny_files: int
    series: Scale


# The sizes that the bars are stated for; one of about a minute in all; one that only shows that everything runs.
FULL = Size(
    1 << 30,
    256 << 20,
    10_000,
    256,
    200_000_000,
    583_000_000,
    2_000,
    100_000,
    200_000,
    Scale(256, 20_000_000, 1_000),
)
QUICK = Size(
    256 << 20,
    64 << 20,
    2_000,
    64,
    50_000_000,
    73_000_000,
    200,
    10_000,
    20_000,
    Scale(256, 20_000_000, 500),
)
TINY = Size(
    20 << 20, 4 << 20, 60, 4, 4_000_000, 4_000_000, 5, 100, 600, Scale(128, 10_000_000, 200)
)

_Log = Callable[[begat.Store], object]


@dataclass(frozen=True)
class Scene:
    """One run of the benchmark, below a folder of its own."""

    root: Path
    disk: Path | None
    size: Size
    turns: int

    @property
    def copy(self) -> Path:
        """Where floors and checkouts write."""
        return self.root / "copy"

    def made(self, name: str, make: Callable[[Path], object]) -> Path:
        """A file or folder of data, made by the first work that asks for it."""
        path = self.root / "data" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            apart(lambda: make(path))
        return path

    def in_turns(self, operations: Mapping[str, Operation]) -> dict[str, list[Cost]]:
        """The costs of some operations, done in turns."""
        return in_turns(operations, self.turns)

    def logging(self, log: _Log, *, folder: Path | None = None) -> Operation:
        """Log something into a new store."""
        path = (folder or self.root) / "store"
        return Operation(log, lambda: new_store(path), told_of_store)

    def logging_into(self, name: str, log: _Log) -> Operation:
        """Log something into a store that is there."""
        return Operation(log, lambda: begat.open_store(self.root / name), told_of_store)

    def copying(self, source: Path) -> Operation:
        """`cp -r` to a place that is empty."""
        return Operation(lambda _: run("cp", "-r", source, self.copy), lambda: remove(self.copy))


def run(
    *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> None:
    """A program that must succeed; what it said is shown if it did not."""
    done = subprocess.run(command, check=False, env=env, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed ({done.returncode}): {done.stderr[-2000:]}")


def remove(path: Path) -> None:
    """A file or folder that may be there."""
    if path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def new_store(path: Path) -> begat.Store:
    """An empty store where there may have been another."""
    remove(path)
    return begat.open_store(path)


def told_of_store(store: begat.Store) -> dict[str, Any]:
    """The bytes that a store's objects have."""
    return {"stored_bytes": object_bytes(store.path)}


def object_bytes(store: Path) -> int:
    """The bytes of all objects of a store, which is all it keeps but its catalog."""
    return tree_bytes(store / "objects")


def tree_bytes(root: Path) -> int:
    """The bytes of all files of a tree: one walk with scandir and stat."""
    total = 0
    folders = [str(root)]
    while folders:
        with os.scandir(folders.pop()) as listing:
            for item in listing:
                if item.is_dir(follow_symlinks=False):
                    folders.append(item.path)
                else:
                    total += item.stat(follow_symlinks=False).st_size
    return total
