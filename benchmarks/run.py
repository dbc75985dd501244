"""What begat costs, each work beside its floor, measured in one run on one machine: `make bench`.

A floor is the least that the work can be: a copy, a walk, a bare interpreter. Only ratios are comparable between
machines. Source and store lie on a memory file system where there is one, so that software is measured and not a
shared disk. Sizes are small enough for a minute in all; `--full` takes the sizes that the bars are stated for.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import begat
from begat import files

MEMORY = Path("/dev/shm")
SMALL_FILE_BYTES = 20 * 1024


@dataclass(frozen=True)
class Size:
    """How much work there is."""

    large_bytes: int
    small_files: int
    versions: int
    repeats: int


QUICK = Size(large_bytes=256 << 20, small_files=2_000, versions=200, repeats=3)
FULL = Size(large_bytes=1 << 30, small_files=10_000, versions=2_000, repeats=3)


@dataclass(frozen=True)
class Row:
    """One work: how long it took, its floor, and the ratio that was promised."""

    work: str
    floor: str
    floor_s: float
    ours_s: float
    bar: float | None


def best(work: Callable[[], object], before: Callable[[], object], repeats: int) -> float:
    """The shortest of several times in seconds; `before` sets the scene and is not counted."""
    times: list[float] = []
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


class Bench:
    """One run of all works below a folder of its own."""

    def __init__(self, root: Path, size: Size) -> None:
        self.root = root
        self.size = size
        self.large = root / "large.bin"
        self.tree = root / "tree"
        self.copy = root / "copy"
        self.store = begat.open_store(root / "store")

    def make_input(self) -> None:
        """Bytes that nothing can compress or find twice."""
        with self.large.open("wb") as file:
            for _ in range(self.size.large_bytes >> 22):
                file.write(os.urandom(1 << 22))
        for number in range(self.size.small_files):
            folder = self.tree / f"{number // 500:03}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:05}.bin").write_bytes(os.urandom(SMALL_FILE_BYTES))

    def rows(self) -> Iterator[Row]:
        yield self.log_large()
        yield self.log_tree()
        yield self.log_unchanged()
        yield self.get("large", self.large, 1.6)
        yield self.get("tree", self.tree, 1.8)
        yield self.cached()
        yield self.small_versions()
        yield self.smallest_log()

    def log_large(self) -> Row:
        floor = best(self._copy(self.large), self._clean, self.size.repeats)
        ours = best(
            lambda: self.store.log_artifact("large", self.large), self._new_store, self.size.repeats
        )
        return Row(
            f"log one new file of {self.large.stat().st_size >> 20} MiB", "cp", floor, ours, 2.5
        )

    def log_tree(self) -> Row:
        floor = best(self._read_all_write_one, self._clean, self.size.repeats)
        ours = best(
            lambda: self.store.log_artifact("tree", self.tree), self._new_store, self.size.repeats
        )
        return Row(
            f"log {self.size.small_files} new files of 20 KiB",
            "read all, write one",
            floor,
            ours,
            1.5,
        )

    def log_unchanged(self) -> Row:
        floor = best(lambda: _walk(self.tree), lambda: None, self.size.repeats)
        ours = best(
            lambda: self.store.log_artifact("tree", self.tree), lambda: None, self.size.repeats
        )
        return Row("log the same tree again, unchanged", "scandir + stat", floor, ours, 1.6)

    def get(self, name: str, source: Path, bar: float) -> Row:
        self.store.log_artifact(name, source)
        version = self.store.get_artifact(name)
        floor = best(self._copy(source), self._clean, self.size.repeats)
        ours = best(lambda: version.download(self.copy), self._clean, self.size.repeats)
        return Row(f"get {name}, every byte verified", "cp -r", floor, ours, bar)

    def cached(self) -> Row:
        version = self.store.get_artifact("tree")
        folder = version.path
        floor = best(lambda: _walk(folder), lambda: None, self.size.repeats)
        ours = best(lambda: self.store.get_artifact("tree").path, lambda: None, self.size.repeats)
        return Row("Version.path, second call", "scandir + stat", floor, ours, None)

    def small_versions(self) -> Row:
        folder = self.root / "ten"
        folder.mkdir(exist_ok=True)

        def write(number: int) -> None:
            for file in range(10):
                (folder / f"{file}.txt").write_text(f"{number} {file}")

        def log(number: int) -> None:
            write(number)
            self.store.log_artifact("small", folder)

        floor = best(lambda: [write(n) for n in range(self.size.versions)], lambda: None, 1)
        with counted_fsyncs() as count:
            ours = best(lambda: [log(n) for n in range(self.size.versions)], self._new_store, 1)
        each = sum(count.values()) / self.size.versions
        work = f"{self.size.versions} versions of 10 small files ({each:.1f} fsyncs of files and folders each)"
        return Row(work, "write the files", floor, ours, None)

    def smallest_log(self) -> Row:
        code = "import begat\nwith begat.start_run('x') as run: run.log_artifact('a', b'1')"
        environment = {**os.environ, "BEGAT_STORE": str(self.root / "other")}

        def run(program: str) -> Callable[[], object]:
            command = [sys.executable, "-c", program]
            return lambda: subprocess.run(command, env=environment, cwd=self.root, check=True)

        run(code)()
        floor = best(run("pass"), lambda: None, self.size.repeats)
        ours = best(run(code), lambda: None, self.size.repeats)
        return Row(
            f"smallest log, whole process (+{ours - floor:.2f} s; bar +0.45 s)",
            "python -c pass",
            floor,
            ours,
            None,
        )

    def _clean(self) -> None:
        if self.copy.is_file():
            self.copy.unlink()
        shutil.rmtree(self.copy, ignore_errors=True)

    def _copy(self, source: Path) -> Callable[[], object]:
        return lambda: subprocess.run(["cp", "-r", source, self.copy], check=True)

    def _new_store(self) -> None:
        self.store.close()
        shutil.rmtree(self.root / "store")
        self.store = begat.open_store(self.root / "store")

    def _read_all_write_one(self) -> None:
        with self.copy.open("wb") as target:
            for path in sorted(self.tree.rglob("*.bin")):
                target.write(path.read_bytes())


@contextmanager
def counted_fsyncs() -> Iterator[dict[str, int]]:
    """How often files and folders are fsynced inside the block (the catalog's own are not seen here)."""
    count = {"fsync": 0, "fsync-directory": 0}

    def note(operation: str, _path: str) -> None:
        if operation in count:
            count[operation] += 1

    files.fault = note
    try:
        yield count
    finally:
        files.fault = None


def _walk(root: Path) -> int:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="the sizes that the bars are stated for"
    )
    size = FULL if parser.parse_args().full else QUICK
    place = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place, prefix="begat-bench-") as folder:
        os.environ["BEGAT_CACHE"] = str(Path(folder) / "cache")
        bench = Bench(Path(folder), size)
        bench.make_input()
        print(f"{'work':78} {'floor':>20} {'floor s':>8} {'begat s':>8} {'ratio':>7} {'bar':>6}")
        for row in bench.rows():
            ratio = row.ours_s / row.floor_s
            bar = "" if row.bar is None else f"{row.bar:.1f}x"
            missed = " MISSED" if row.bar is not None and ratio > row.bar else ""
            line = f"{row.work:78} {row.floor:>20} {row.floor_s:8.3f} {row.ours_s:8.3f} {ratio:6.2f}x {bar:>6}{missed}"
            print(line, flush=True)
        bench.store.close()


if __name__ == "__main__":
    main()
