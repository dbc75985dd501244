"""What begat costs, each work beside its floor, measured in one run on one machine: `make bench`.

A floor is the least that the work can be: a copy, a walk, a bare interpreter. Floor and begat take turns, and only
their ratios are comparable between machines. Data, stores and copies lie on a memory file system where there is one,
so that software is measured and not a shared disk. README.md beside this file says what is measured how.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import dedup
import peers
import report
import works
import works_catalog
from scene import FULL, QUICK, TINY, Scene, new_store

MEMORY = Path("/dev/shm")
_Work = Callable[[Scene], Iterator[report.Row]]
WORKS: dict[str, _Work] = {
    "large": works.large,
    "disk": works.disk,
    "files": works.files,
    "medium": works.medium,
    "unchanged": works.unchanged,
    "compression": works.compression,
    "checkpoints": works.checkpoints,
    "table": works.table,
    "get": works.get,
    "smallest": works_catalog.smallest,
    "versions": works_catalog.versions,
    "lineage": works_catalog.lineage,
    "memory": works_catalog.memory,
    "dedup": dedup.dedup,
}


def asked_for() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller works: about a minute")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests
    parser.add_argument(
        "--only", action="append", choices=[*WORKS], metavar="WORK", help=", ".join(WORKS)
    )
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument(
        "--folder", type=Path, help="where data and stores lie (memory, if there is some)"
    )
    parser.add_argument(
        "--disk", type=Path, help="a folder on a disk (the one for temporary files)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="PYTHON",
        help="compare with tools in its environment, and on PATH",
    )
    parser.add_argument("--markdown", action="store_true", help="print tables for the README")
    return parser.parse_args()


def main() -> None:
    asked = asked_for()
    size = TINY if asked.tiny else QUICK if asked.quick else FULL
    memory = asked.folder or (MEMORY if MEMORY.is_dir() else None)
    with (
        tempfile.TemporaryDirectory(dir=memory, prefix="begat-bench-") as root,
        tempfile.TemporaryDirectory(dir=asked.disk, prefix="begat-bench-") as disk,
    ):
        os.environ["BEGAT_CACHE"] = str(Path(root) / "cache")
        _load(Path(root))
        scene = Scene(
            Path(root), Path(disk) if asked.disk else _if_disk(Path(disk)), size, asked.turns
        )
        machine = report.machine()
        print(report.machine_text(machine), file=sys.stderr)
        rows = list(_measured(scene, _chosen(asked), is_told=not asked.markdown))
    if asked.markdown:
        print(*report.markdown(rows), sep="\n")
    if asked.json:
        told = {
            "machine": machine,
            "size": asdict(size),
            "rows": [report.plain(row) for row in rows],
        }
        asked.json.write_text(json.dumps(told, indent=1))


def _chosen(asked: argparse.Namespace) -> list[_Work]:
    """All works, those asked for, or the comparison with other tools."""
    names = asked.only or ([] if asked.peers else WORKS)
    compared = [partial(peers.peers, python=asked.peers)] if asked.peers else []
    return [*(WORKS[name] for name in names), *compared]


def _measured(scene: Scene, chosen: list[_Work], *, is_told: bool) -> Iterator[report.Row]:
    """The rows of some works; each is printed as soon as it is known."""
    out = sys.stdout if is_told else sys.stderr
    print(report.line(report.HEADINGS), file=out)
    for work in chosen:
        for row in work(scene):
            print(report.line(row.cells()), file=out, flush=True)
            yield row


def _load(root: Path) -> None:
    """Import and compile all that a log, the same log again and a checkout need: the works are measured without it."""
    folder = root / "warm-data"
    folder.mkdir()
    (folder / "warm.txt").write_text("warm")
    time.sleep(2.5)  # what has just changed is read again, whatever was kept of it
    with new_store(root / "warm") as store:
        store.log_artifact("warm", folder).download(root / "warm-copy")
        store.log_artifact("warm", folder)


def _if_disk(folder: Path) -> Path | None:
    """The folder, unless it lies in memory."""
    return None if _file_system(folder) in ("tmpfs", "ramfs") else folder


def _file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on."""
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        place, its_kind = line.split()[1:3]
        inside = place == "/" or str(folder.resolve()).startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best):
            best, kind = place, its_kind
    return kind


if __name__ == "__main__":
    main()
