"""What a series of versions takes: the bytes logged, by the bytes that the store then has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import series
from measure import Operation, cost_of
from report import Figure, Row
from scene import Scene, new_store, object_bytes, remove, tree_bytes

import begat

_Series = Callable[[Path, series.Scale], Iterator[Path]]

# Where nothing is promised there is no bar: what is new in a version must be stored.
SERIES: tuple[tuple[str, _Series, float | None], ...] = (
    ("frozen backbone, 4 steps, .safetensors", series.frozen_backbone, 3.6),
    ("frozen backbone, 4 steps, .pt", series.frozen_backbone_pt, 3.6),
    ("two of twelve layers trained, 4 steps", series.two_layers, 2.5),
    ("LoRA: base and adapter, 4 steps", series.lora, None),
    ("vocabulary growth by 2 %", series.vocabulary_growth, 1.9),
    ("full fine-tune, 4 steps (nothing can be shared)", series.full_fine_tune, None),
    ("parquet, 1 % appended", series.parquet_append, 1.8),
    ("parquet, 1 % of one column updated, scattered", series.parquet_update, None),
    ("parquet, 1 % deleted in the middle", series.parquet_delete, None),
    ("parquet, a column added", series.parquet_column, None),
    ("JSONL, 3 times 20 edits", series.jsonl_edits, 8),
    (".npy, 1 % appended", series.npy_append, 1.9),
    ("pictures of 20-60 KB, 1 % gone and 1 % new", series.pictures, 1.95),
    ("the same pictures in a tar", series.pictures_tar, None),
    ("the same pictures in a zip", series.pictures_zip, None),
)


def dedup(scene: Scene) -> Iterator[Row]:
    """Each series in a store of its own."""
    for text, make, bar in SERIES:
        told = cost_of(_logged(scene, make)).told
        ratio = told["logical"] / told["stored"]
        yield Row(
            work="dedup",
            text=f"{text} ({told['logical'] / 1e6:.0f} MB)",
            figure=Figure(round(ratio, 3), "x", bar, is_least=True),
            stored_bytes=told["stored"],
            size_bytes=told["logical"],
        )


def _logged(scene: Scene, make: _Series) -> Operation:
    folder = scene.root / "series"
    logical: list[int] = []  # filled in the child

    def work(store: begat.Store) -> None:
        folder.mkdir()
        for path in make(folder, scene.size.series):
            logical.append(path.stat().st_size if path.is_file() else tree_bytes(path))
            store.log_artifact("series", path)

    def after(store: begat.Store) -> Mapping[str, Any]:
        shutil.rmtree(folder)
        return {"logical": sum(logical), "stored": object_bytes(store.path)}

    def prepare() -> begat.Store:
        remove(folder)
        return new_store(scene.root / "store")

    return Operation(work, prepare, after)
