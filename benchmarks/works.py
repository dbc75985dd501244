"""The works that move bytes: large files, many files, versions of what is large, and back."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import data
from measure import Operation, apart
from report import Figure, Row, compared
from scene import Scene, new_store, object_bytes, remove, run, told_of_store, tree_bytes

import begat


def size_name(length: int) -> str:
    return f"{length / (1 << 30):.0f} GiB" if length >= 1 << 30 else f"{length >> 20} MiB"


def large_file(scene: Scene, kind: str, length: int) -> Path:
    """A large file that is cut by its structure, or by its content."""
    if kind == "structure":
        return scene.made(f"{length}.safetensors", lambda path: data.write_model(path, length))
    return scene.made(f"{length}.bin", lambda path: data.write_noise(path, 1, length))


# --- one large file ---


def large(scene: Scene) -> Iterator[Row]:
    """Log one new large file: cut by structure, every 4 MiB, and by content."""
    length = scene.size.large_bytes
    for kind, how, bar in (
        ("structure", "cut at tensors", 1.6),
        ("fixed", "a cut every 4 MiB", 1.6),
        ("content", "cut by content", 2.5),
    ):
        source = large_file(scene, kind, length)
        ours = scene.logging(lambda store, source=source: store.log_artifact("large", source))
        if kind == "fixed":
            ours = _without_cdc(ours)
        costs = scene.in_turns({"floor": scene.copying(source), "begat": ours})
        text = f"log one new file of {size_name(length)}, {how}"
        yield compared("large", text, "cp", costs["floor"], costs["begat"], bar=bar)


def _without_cdc(operation: Operation) -> Operation:
    """The same where the compiled form of pyfastcdc is not installed, so nothing is cut by content."""

    def prepare() -> Any:
        sys.modules["pyfastcdc"] = None  # type: ignore[assignment]
        return operation.prepare()

    return replace(operation, prepare=prepare)


def disk(scene: Scene) -> Iterator[Row]:
    """The same on a disk, beside `dd conv=fsync`."""
    if scene.disk is None:
        print(
            "disk: not measured, since no folder on a disk is known (--disk DIR)", file=sys.stderr
        )
        return
    length = scene.size.disk_bytes
    target = scene.disk / "copy"
    for kind, how, bar in (
        ("structure", "cut at tensors", 1.15),
        ("content", "cut by content", 1.6),
    ):
        source = large_file(scene, kind, length)
        floor = Operation(
            lambda _, source=source: run(
                "dd", f"if={source}", f"of={target}", "bs=1M", "conv=fsync"
            ),
            lambda: remove(target),
        )
        ours = scene.logging(
            lambda store, source=source: store.log_artifact("large", source), folder=scene.disk
        )
        costs = scene.in_turns({"floor": floor, "begat": ours})
        text = f"log one new file of {size_name(length)} to a disk, {how}"
        yield compared("disk", text, "dd conv=fsync", costs["floor"], costs["begat"], bar=bar)


# --- many files ---


def files(scene: Scene) -> Iterator[Row]:
    """Log many new small files, beside the least that can be done with them and beside `cp -r`."""
    source = small_tree(scene)
    costs = scene.in_turns(
        {
            "floor": _read_all_write_one(scene, source),
            "cp": scene.copying(source),
            "begat": scene.logging(lambda store: store.log_artifact("tree", source)),
        }
    )
    text = f"log {scene.size.small_files:,} new files of 20 KiB"
    yield compared("files", text, "read all, write one", costs["floor"], costs["begat"], bar=1.5)
    yield compared("files", text, "cp -r", costs["cp"], costs["begat"], bar=1.0)


def small_tree(scene: Scene) -> Path:
    return scene.made("tree", lambda path: data.write_tree(path, scene.size.small_files))


def _read_all_write_one(scene: Scene, source: Path) -> Operation:
    def work(_: object) -> None:
        with scene.copy.open("wb") as target:
            for folder, folders, names in os.walk(source):
                folders.sort()
                for name in sorted(names):
                    with open(f"{folder}/{name}", "rb", buffering=0) as file:
                        target.write(file.read())

    return Operation(work, lambda: remove(scene.copy))


def medium(scene: Scene) -> Iterator[Row]:
    """Log new files of a few megabytes, as the shards of a data set are."""
    count = scene.size.medium_files
    source = scene.made("medium", lambda path: data.write_tree(path, count, data.MEDIUM_FILE_BYTES))
    costs = scene.in_turns(
        {
            "floor": scene.copying(source),
            "begat": scene.logging(lambda store: store.log_artifact("medium", source)),
        }
    )
    text = f"log {count} new files of {size_name(data.MEDIUM_FILE_BYTES)}"
    yield compared("medium", text, "cp -r", costs["floor"], costs["begat"])


def unchanged(scene: Scene) -> Iterator[Row]:
    """Log the same tree again."""
    source = small_tree(scene)
    # What changed in the last two seconds before it was logged is looked at again.
    time.sleep(max(0.0, 2.5 - (time.time() - source.stat().st_mtime)))
    apart(lambda: new_store(scene.root / "again").log_artifact("tree", source))
    before = object_bytes(scene.root / "again")
    costs = scene.in_turns(
        {
            "floor": Operation(lambda _: tree_bytes(source)),
            "begat": scene.logging_into("again", lambda store: store.log_artifact("tree", source)),
        }
    )
    text = f"log {scene.size.small_files:,} files again, unchanged"
    yield compared("unchanged", text, "scandir + stat", costs["floor"], costs["begat"], bar=1.6)
    added = object_bytes(scene.root / "again") - before
    yield Row("unchanged", "- bytes added", Figure(added, "B", 0))


def compression(scene: Scene) -> Iterator[Row]:
    """Log what nothing compresses, with the probe of `auto` and without any compression."""
    length = scene.size.large_bytes
    for text, source in (
        (f"a file of {size_name(length)}", large_file(scene, "structure", length)),
        (f"{scene.size.small_files:,} files of 20 KiB", small_tree(scene)),
    ):
        ours = scene.logging(lambda store, source=source: store.log_artifact("noise", source))
        costs = scene.in_turns({how: _compressing(how, ours) for how in ("off", "auto")})
        text = f"log {text} of noise, BEGAT_COMPRESSION=auto"
        yield compared("compression", text, "off", costs["off"], costs["auto"], bar=1.05)


def _compressing(how: str, operation: Operation) -> Operation:
    def prepare() -> Any:
        os.environ["BEGAT_COMPRESSION"] = how
        return operation.prepare()

    return replace(operation, prepare=prepare)


# --- versions of what is large ---


def checkpoints(scene: Scene) -> Iterator[Row]:
    """Five checkpoints, each with a tenth of its tensors new."""
    length = scene.size.checkpoint_bytes
    sources = [
        scene.made(
            f"step-{step}.safetensors", lambda path, step=step: _checkpoint(path, step, length)
        )
        for step in range(5)
    ]
    new_bytes = length + 4 * (length // 20) * 2

    steps: list[float] = []  # filled in the child, which tells of it

    def log(store: begat.Store) -> None:
        for source in sources:
            start = time.perf_counter()
            store.log_artifact("net", source, aliases=["last"])
            steps.append(time.perf_counter() - start)

    def copy(_: object) -> None:
        for source in sources:
            run("cp", source, scene.copy / source.name)

    ours = scene.logging(log)
    ours = replace(ours, after=lambda store: {**told_of_store(store), "steps": steps})
    floor = Operation(copy, lambda: (remove(scene.copy), scene.copy.mkdir()))
    costs = scene.in_turns({"floor": floor, "begat": ours})
    text = f"log 5 checkpoints of {length // 1_000_000} MB, each with 10 % new tensors"
    yield compared("checkpoints", text, "cp", costs["floor"], costs["begat"])
    stored = costs["begat"][-1].told["stored_bytes"]
    yield Row(
        "checkpoints", "- bytes stored / bytes of new tensors", Figure(stored / new_bytes, "x", 1.1)
    )
    later = [step for cost in costs["begat"] for step in cost.told["steps"][1:]]
    first = [cost.told["steps"][0] for cost in costs["begat"]]
    yield Row("checkpoints", "- the first", Figure(statistics.median(first), "s", 0.3))
    yield Row("checkpoints", "- each further one", Figure(statistics.median(later), "s", 0.3))


def _checkpoint(path: Path, step: int, length: int) -> None:
    each = length // 20
    # Two of twenty tensors are new in each step.
    seeds = {
        f"layer.{number:02}": (1000 + number + (10_000 * step if number >= 18 else 0), each)
        for number in range(20)
    }
    data.write_tensors(path, seeds)


def table(scene: Scene) -> Iterator[Row]:
    """The second version of a folder of parquet files."""
    length = scene.size.table_bytes
    first, second = (
        scene.made(
            f"table-{version}",
            lambda path, version=version: data.write_table(path, length, version=version),
        )
        for version in (1, 2)
    )

    before: list[int] = []  # filled in the child

    def prepare() -> begat.Store:
        store = new_store(scene.root / "store")
        store.log_artifact("table", first)
        before.append(object_bytes(store.path))
        return store

    def after(store: begat.Store) -> Mapping[str, Any]:
        return {"stored_bytes": object_bytes(store.path) - before[-1]}

    ours = Operation(lambda store: store.log_artifact("table", second), prepare, after)
    costs = scene.in_turns({"floor": scene.copying(second), "begat": ours})
    text = f"log a {tree_bytes(first) / 1e6:.0f} MB folder of parquet again, 1 % changed, 1 % new"
    yield compared("table", text, "cp -r", costs["floor"], costs["begat"])
    stored = costs["begat"][-1].told["stored_bytes"]
    bar = 100 * length / 583_000_000
    yield Row("table", "- stored for the second version", Figure(stored / 1e6, "MB", bar))


# --- and back ---


def get(scene: Scene) -> Iterator[Row]:
    """Check out, every byte verified."""
    length = scene.size.large_bytes
    for text, source, bar in (
        (f"check out a file of {size_name(length)}", large_file(scene, "structure", length), 1.6),
        (f"check out {scene.size.small_files:,} files of 20 KiB", small_tree(scene), 1.8),
    ):
        apart(lambda source=source: new_store(scene.root / "kept").log_artifact("a", source))

        def prepare() -> begat.Version:
            remove(scene.copy)
            return begat.open_store(scene.root / "kept").get_artifact("a")

        ours = Operation(lambda version: version.download(scene.copy), prepare)
        costs = scene.in_turns({"floor": scene.copying(source), "begat": ours})
        yield compared("get", text, "cp -r", costs["floor"], costs["begat"], bar=bar)
    ours = Operation(
        lambda store: store.get_artifact("a").path, lambda: begat.open_store(scene.root / "kept")
    )
    apart(lambda: ours.work(ours.prepare()))
    floor = Operation(lambda _: tree_bytes(small_tree(scene)))
    costs = scene.in_turns({"floor": floor, "begat": ours})
    text = "the cached folder of those files again (Version.path)"
    yield compared("get", text, "scandir + stat", costs["floor"], costs["begat"])
