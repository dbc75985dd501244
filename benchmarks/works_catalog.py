"""The works where bytes are few: whole processes, many small versions, a large lineage; and memory by size."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import data
import history
from measure import Operation, apart, cost_of
from report import Figure, Row, compared
from scene import Scene, remove, run, tree_bytes
from works import large_file, size_name

import begat

MOST_MEMORY_MB = 500


# --- memory ---


def memory(scene: Scene) -> Iterator[Row]:
    """Anonymous memory by size of the work: what a work eight times as large adds."""
    length = scene.size.large_bytes
    # Above 16 GiB, parts by content are sixteen times as large.
    for kind, expected in (("structure", 100 << 30), ("content", 16 << 30)):
        few, many = (
            _log_once(scene, large_file(scene, kind, size)) for size in (length // 8, length)
        )
        text = f"anonymous memory to log a file of {size_name(length)}, cut by {kind}"
        yield _memory_row(text, many)
        slope = (many - few) / (length - length // 8)
        text = f"- a file of {size_name(expected)}, if it goes on like this"
        yield _expected_row(text, many, slope * (expected - length))
    count = scene.size.tiny_files
    few, many = (
        _log_once(scene, scene.made(f"tiny-{n}", lambda path, n=n: data.write_tree(path, n, 16)))
        for n in (count // 8, count)
    )
    yield _memory_row(f"anonymous memory to log {count:,} files of 16 bytes", many)
    slope = (many - few) / (count - count // 8)
    more = slope * (1_000_000 - count)
    yield _expected_row("- 1,000,000 files, if it goes on like this", many, more)


def _log_once(scene: Scene, source: Path) -> int:
    operation = scene.logging(lambda store: store.log_artifact("a", source))
    return cost_of(operation).anonymous_bytes


def _memory_row(text: str, found: int) -> Row:
    return Row("memory", text, Figure(found / 1e6, "MB", MOST_MEMORY_MB), anonymous_bytes=found)


def _expected_row(text: str, found: int, more: float) -> Row:
    return Row("memory", text, Figure((found + max(more, 0)) / 1e6, "MB", MOST_MEMORY_MB))


# --- a whole process ---


def smallest(scene: Scene) -> Iterator[Row]:
    """The smallest possible log, with everything that a process has to load for it."""
    code = "import begat\nwith begat.start_run('x') as run: run.log_artifact('a', b'1')"
    environment = {**os.environ, "BEGAT_STORE": str(scene.root / "smallest")}
    # Modules are compiled, as an installer leaves them; begat's would be compiled anew by each process that runs from a
    # checkout and is told to write no bytecode.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(scene.root / "compiled")

    def process(program: str) -> Operation:
        return Operation(lambda _: run(sys.executable, "-c", program, env=environment))

    apart(lambda: process(code).work(None))  # it compiles, and makes the store
    costs = scene.in_turns({"floor": process("pass"), "begat": process(code)})
    row = compared(
        "smallest", "smallest log, whole process", "python -c pass", costs["floor"], costs["begat"]
    )
    yield replace(row, anonymous_bytes=None)  # that of the process which started it
    more = statistics.median(
        ours.seconds - floor.seconds
        for floor, ours in zip(costs["floor"], costs["begat"], strict=True)
    )
    yield Row("smallest", "- more than python -c pass", Figure(more, "s", 0.45))


# --- many small versions ---


def versions(scene: Scene) -> Iterator[Row]:
    """Many versions of ten small files, in one process; then list and resolve them."""
    count = scene.size.versions
    source = scene.root / "ten"
    source.mkdir(exist_ok=True)

    def write(number: int) -> None:
        for file in range(10):
            (source / f"{file}.txt").write_text(f"{number} {file}")

    def log(store: begat.Store) -> None:
        for number in range(count):
            write(number)
            store.log_artifact("small", source, aliases=["best"])

    def copy(_: object) -> None:
        for number in range(count):
            write(number)
            shutil.copytree(source, scene.copy / str(number))

    ours = replace(scene.logging(log), after=_after_versions)
    floor = Operation(copy, lambda: (remove(scene.copy), scene.copy.mkdir()))
    costs = scene.in_turns({"floor": floor, "begat": ours})
    text = f"{count:,} versions of 10 small files"
    yield compared("versions", text, "copytree of each", costs["floor"], costs["begat"])
    told = [cost.told for cost in costs["begat"]]
    rate = count / statistics.median(cost.seconds for cost in costs["begat"])
    yield Row("versions", "- versions a second", Figure(rate, "/s", 300, is_least=True))
    fsyncs = _fsyncs(scene)
    if fsyncs is not None:
        yield Row("versions", "- fsyncs each, the catalog's too", Figure(fsyncs, "", 4))
    for key, what in (
        ("list_ms", "- list them all"),
        ("alias_ms", "- resolve an alias"),
        ("number_ms", "- resolve a number"),
    ):
        value = statistics.median(one[key] for one in told)
        yield Row("versions", what, Figure(value, "ms", 5))
    bytes_each = statistics.median(one["store_bytes"] for one in told) / count
    yield Row("versions", "- bytes on disk each, the catalog's too", Figure(bytes_each / 1e3, "kB"))


def _after_versions(store: begat.Store) -> Mapping[str, Any]:
    middle = max(1, len(store.versions("small")) // 2)
    times = {
        "list_ms": _milliseconds(lambda: store.versions("small")),
        "alias_ms": _milliseconds(lambda: store.get_artifact("small:best")),
        "number_ms": _milliseconds(lambda: store.get_artifact(f"small:v{middle}")),
    }
    store.close()
    return {**times, "store_bytes": tree_bytes(store.path)}


def _milliseconds(work: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def _fsyncs(scene: Scene) -> float | None:
    """How often a log of ten small files waits for the disk, counted by strace; None where it is not installed."""
    if shutil.which("strace") is None:
        print("versions: fsyncs are not counted, since strace is not installed", file=sys.stderr)
        return None
    counts = [_count_fsyncs(scene, logs) for logs in (10, 60)]
    return (counts[1] - counts[0]) / 50


def _count_fsyncs(scene: Scene, logs: int) -> int:
    code = (
        "import sys, begat\n"
        "from pathlib import Path\n"
        "folder = Path(sys.argv[1])\n"
        "folder.mkdir()\n"
        "with begat.open_store(sys.argv[2]) as store:\n"
        f"    for number in range({logs}):\n"
        "        for file in range(10): (folder / f'{file}.txt').write_text(f'{number} {file}')\n"
        "        store.log_artifact('small', folder, aliases=['best'])\n"
    )
    store, source, trace = scene.root / "traced", scene.root / "traced-data", scene.root / "trace"
    for path in (store, source, trace):
        remove(path)
    calls = "trace=fsync,fdatasync,sync_file_range,syncfs,sync,msync"
    strace = ("strace", "-f", "-qq", "-e", calls, "-o", trace)
    run(*strace, sys.executable, "-c", code, source, store)
    return len(re.findall(r"^\d+ +\w*sync\w*\(", trace.read_text(), re.MULTILINE))


# --- a large lineage ---


def lineage(scene: Scene) -> Iterator[Row]:
    """All ancestors of a version, among many runs with three edges each."""
    count = scene.size.runs
    path = scene.root / "lineage"
    apart(lambda: history.make(path, count))
    told = [
        cost_of(Operation(_no_work, lambda: begat.open_store(path), _after_lineage)).told
        for _ in range(scene.turns)
    ]
    ids, edges = told[0]["ids"], told[0]["edges"]
    text = f"lineage among {count:,} runs and {3 * count:,} edges"
    ids_ms = statistics.median(one["ids_ms"] for one in told)
    yield Row("lineage", f"{text}: ids of {ids:,} ancestors", Figure(ids_ms, "ms", 300))
    seconds = statistics.median(one["graph_s"] for one in told)
    bar = max(edges / 100_000, 0.01)
    yield Row("lineage", f"- the same with all {edges:,} edges", Figure(seconds, "s", bar))
    seconds = statistics.median(one["walk_s"] for one in told)
    yield Row("lineage", "- the first walk through what was fetched", Figure(seconds, "s"))


def _no_work(_: object) -> None:
    pass


def _after_lineage(store: begat.Store) -> Mapping[str, Any]:
    """What a process finds that has the store open, at the first time of asking and at the second."""
    newest = store.get_artifact(history.NEWEST)
    start = time.perf_counter()
    found = store.catalog.runs.reached([newest.uid], "upstream")
    ids_s = time.perf_counter() - start
    start = time.perf_counter()
    lineage = store.lineage(newest, direction="upstream")
    graph_s = time.perf_counter() - start
    start = time.perf_counter()
    lineage.graph.ancestors(newest.uid)
    walk_s = time.perf_counter() - start
    times = {"ids_ms": ids_s * 1e3, "graph_s": graph_s, "walk_s": walk_s}
    return {"ids": len(found), "edges": len(lineage.edges), **times}
