"""A table of predictions: whatever batches are made of, one parquet file for each part, whole or not there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import begat
from begat import PredictionWriter, files
from begat.errors import BadInput, BegatError, StoreFull


def table_of(folder: Path, part: int = 0) -> Any:
    return parquet.read_table(folder / f"part-{part:05d}.parquet")


def written(folder: Path, *args: Any, **columns: Any) -> Any:
    """The table that one batch makes."""
    with PredictionWriter(folder) as writer:
        writer.write(*args, **columns)
    return table_of(folder)


def types(table: Any) -> dict[str, str]:
    return {field.name: str(field.type) for field in table.schema}


# --- what is in a table ---


def test_a_table_has_a_row_for_each_sample(tmp_path: Path) -> None:
    table = written(
        tmp_path,
        np.array([1, 0]),
        id=np.array([7, 9], dtype=np.int32),
        label=np.array([1, 1], dtype=np.uint8),
        prob=np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32),
        dataloader=3,
    )
    assert types(table) == {
        "id": "int64",
        "label": "int64",
        "pred": "int64",
        "prob": "fixed_size_list<element: float>[2]",
        "dataloader_idx": "int32",
    }
    assert table.to_pylist() == [
        {"id": 7, "label": 1, "pred": 1, "prob": [0.25, 0.75], "dataloader_idx": 3},
        {"id": 9, "label": 1, "pred": 0, "prob": [0.5, 0.5], "dataloader_idx": 3},
    ]


def test_without_ids_rows_are_numbered_and_labels_are_null(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path) as writer:
        writer.write([0.5, 0.25])
        writer.write([0.75])
    table = table_of(tmp_path)
    assert types(table) == {"id": "int64", "label": "double", "pred": "double"}
    assert table["id"].to_pylist() == [0, 1, 2]
    assert table["label"].null_count == 3


def test_rows_without_ids_are_numbered_within_their_loader(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path) as writer:
        writer.write([1, 2], dataloader=0)
        writer.write([3], dataloader=1)
        writer.write([4], dataloader=0)
    assert table_of(tmp_path)["id"].to_pylist() == [0, 1, 0, 2]


def test_facts_are_in_the_file(tmp_path: Path) -> None:
    with PredictionWriter(
        tmp_path, run="r1", model="net:v3", datasets=["digits:v2"], classes=["no", "yes"]
    ) as writer:
        writer.write([1])
    facts = json.loads(table_of(tmp_path).schema.metadata[b"begat"])
    assert facts == {
        "run": "r1",
        "model": "net:v3",
        "datasets": ["digits:v2"],
        "classes": ["no", "yes"],
    }


def test_vectors_are_lists_of_fixed_size_and_their_missing_labels_are_null(tmp_path: Path) -> None:
    table = written(tmp_path, np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert types(table)["pred"] == "fixed_size_list<element: double>[2]"
    assert table["pred"].to_pylist() == [[1.0, 2.0], [3.0, 4.0]]
    assert table["label"].to_pylist() == [None, None]


def test_vectors_as_labels(tmp_path: Path) -> None:
    table = written(tmp_path, [[1.0, 2.0]], label=torch.tensor([[3.0, 4.0]]))
    assert table["label"].to_pylist() == [[3.0, 4.0]]


def test_a_column_of_one_value_a_row_is_values(tmp_path: Path) -> None:
    table = written(tmp_path, np.ones((3, 1)), label=np.zeros((3, 1)), prob=np.ones(3))
    assert types(table)["pred"] == types(table)["label"] == "double"
    assert types(table)["prob"] == "fixed_size_list<element: double>[1]"


# --- what batches may be made of ---

FLOATS = {
    "list": [0.5, 2.0],
    "numpy float16": np.array([0.5, 2.0], dtype=np.float16),
    "numpy float32": np.array([0.5, 2.0], dtype=np.float32),
    "numpy big-endian": np.array([0.5, 2.0], dtype=">f8"),
    "numpy strided": np.array([0.5, 9.0, 2.0, 9.0])[::2],
    "numpy scalars": [np.float32(0.5), np.float32(2.0)],
    "torch float32": torch.tensor([0.5, 2.0]),
    "torch bfloat16": torch.tensor([0.5, 2.0], dtype=torch.bfloat16),
    "torch float16": torch.tensor([0.5, 2.0], dtype=torch.float16),
    "torch with gradient": torch.tensor([0.5, 2.0], requires_grad=True),
    "torch strided": torch.tensor([[0.5, 9.0], [2.0, 9.0]])[:, 0],
    "torch scalars": [torch.tensor(0.5), torch.tensor(2.0)],
    "jax float32": jnp.array([0.5, 2.0]),
    "jax bfloat16": jnp.array([0.5, 2.0], dtype=jnp.bfloat16),
    "pandas": pd.Series([0.5, 2.0], index=[8, 9]),
    "pandas nullable": pd.Series([0.5, 2.0], dtype="Float64"),
    "pandas arrow": pd.Series([0.5, 2.0], dtype="double[pyarrow]"),
    "pyarrow": pa.array([0.5, 2.0]),
    "pyarrow chunked": pa.chunked_array([[0.5], [2.0]]),
}


@pytest.mark.parametrize("values", FLOATS.values(), ids=FLOATS)
def test_floats_of_any_kind(tmp_path: Path, values: Any) -> None:
    table = written(tmp_path, values, label=values)
    assert table["pred"].to_pylist() == table["label"].to_pylist() == [0.5, 2.0]
    assert types(table)["pred"] in ("float", "double")


WORDS = {
    "list": ["yes", "no"],
    "numpy": np.array(["yes", "no"]),
    "numpy objects": np.array(["yes", "no"], dtype=object),
    "pandas": pd.Series(["yes", "no"]),
    "pandas objects": pd.Series(["yes", "no"], dtype=object),
    "pandas categories": pd.Series(["yes", "no"], dtype="category"),
}


@pytest.mark.parametrize("values", WORDS.values(), ids=WORDS)
def test_text_of_any_kind(tmp_path: Path, values: Any) -> None:
    table = written(tmp_path, values, id=values, label=values)
    assert types(table) == {"id": "string", "label": "string", "pred": "string"}
    assert table["pred"].to_pylist() == table["id"].to_pylist() == ["yes", "no"]


TABLES = {
    "list": [[0.5, 0.5], [1.0, 0.0]],
    "list of arrays": [np.array([0.5, 0.5]), np.array([1.0, 0.0])],
    "list of tensors": [torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])],
    "numpy": np.array([[0.5, 0.5], [1.0, 0.0]]),
    "numpy transposed": np.array([[0.5, 1.0], [0.5, 0.0]]).T,
    "torch bfloat16": torch.tensor([[0.5, 0.5], [1.0, 0.0]], dtype=torch.bfloat16),
    "jax": jnp.array([[0.5, 0.5], [1.0, 0.0]]),
    "pandas": pd.DataFrame({"no": [0.5, 1.0], "yes": [0.5, 0.0]}),
}


@pytest.mark.parametrize("values", TABLES.values(), ids=TABLES)
def test_probabilities_of_any_kind(tmp_path: Path, values: Any) -> None:
    table = written(tmp_path, [0, 1], prob=values)
    assert table["prob"].to_pylist() == [[0.5, 0.5], [1.0, 0.0]]
    assert types(table)["prob"].startswith("fixed_size_list<element: ")


def test_labels_that_are_missing_are_null(tmp_path: Path) -> None:
    assert written(tmp_path, [1, 2], label=[1, None])["label"].to_pylist() == [1, None]
    frame = pd.Series([1, None], dtype="Int64")
    assert written(tmp_path, [1, 2], label=frame)["label"].to_pylist() == [1, None]


def test_a_batch_may_be_changed_once_it_was_written(tmp_path: Path) -> None:
    batch, tensor = np.array([1, 2]), torch.tensor([1, 2])
    with PredictionWriter(tmp_path) as writer:
        writer.write(batch, label=tensor)
        batch[:] = 0
        tensor.zero_()
    assert table_of(tmp_path)["pred"].to_pylist() == [1, 2]
    assert table_of(tmp_path)["label"].to_pylist() == [1, 2]


# --- what is refused, and leaves the table as it was ---

REFUSED = {
    "ids of another length": ({"id": [1]}, "id has 1"),
    "labels of another length": ({"label": [1, 2, 3]}, "label has 3"),
    "probabilities of another length": ({"prob": [[1.0]]}, "prob has 1"),
    "mixed ids": ({"id": [1, "a"]}, "id"),
    "mixed labels": ({"label": [1, "a"]}, "label"),
    "mixed objects": ({"label": np.array([1, "a"], dtype=object)}, "label"),
    "ids that are fractions": ({"id": [0.5, 1.5]}, "id is int64 or string"),
    "ids that are missing": ({"id": ["a", None]}, "id"),
    "ids beyond 64 bits": ({"id": np.array([1, 2**64 - 1], dtype=np.uint64)}, "id"),
    "text as probabilities": ({"prob": ["a", "b"]}, "prob"),
    "rows of several sizes": ({"prob": [[0.5, 0.5], [1.0]]}, "prob"),
    "a row that is missing": ({"prob": [[0.5, 0.5], None]}, "several sizes"),
    "lists in lists": ({"prob": [[[0.5]], [[0.5]]]}, "prob"),
    "an image in each row": ({"prob": np.ones((2, 3, 3))}, "3 dimensions"),
    "one number": ({"label": 3}, "label"),
    "bytes": ({"label": [b"a", b"b"]}, "label"),
    "records": ({"label": [{"a": 1}, {"a": 2}]}, "label"),
}


@pytest.mark.parametrize(("columns", "said"), REFUSED.values(), ids=REFUSED)
def test_a_batch_that_does_not_fit_is_refused(tmp_path: Path, columns: Any, said: str) -> None:
    with PredictionWriter(tmp_path) as writer:
        with pytest.raises(BadInput, match=said):
            writer.write([1, 2], **columns)
        writer.write([3, 4])
    assert table_of(tmp_path)["pred"].to_pylist() == [3, 4]
    assert table_of(tmp_path)["id"].to_pylist() == [0, 1]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"pred": [1, 2]}, {"pred": ["a", "b"]}, "pred"),
        ({"pred": [1, 2]}, {"pred": [0.5, 1.5]}, "pred"),
        ({"pred": [1.0, 2.0]}, {"pred": [[1.0, 2.0], [1.0, 2.0]]}, "pred"),
        ({"pred": [1], "id": [1]}, {"pred": [1], "id": ["a"]}, "id"),
        ({"pred": [1], "id": ["a"]}, {"pred": [1]}, "id"),
        ({"pred": [1], "prob": [[1.0, 0.0]]}, {"pred": [1]}, "prob"),
        ({"pred": [1]}, {"pred": [1], "prob": [[1.0, 0.0]]}, "prob"),
        ({"pred": [1], "prob": [[1.0, 0.0]]}, {"pred": [1], "prob": [[1.0]]}, "prob"),
        ({"pred": [1], "dataloader": 0}, {"pred": [1]}, "dataloader"),
    ],
)
def test_every_batch_is_like_the_first(tmp_path: Path, first: Any, second: Any, said: str) -> None:
    with PredictionWriter(tmp_path) as writer:
        writer.write(**first)
        with pytest.raises(BadInput, match=said):
            writer.write(**second)
        writer.write(**first)
    assert len(table_of(tmp_path)) == 2 * len(first["pred"])


def test_a_batch_of_finer_numbers_than_the_first_is_refused_and_of_coarser_ones_taken(
    tmp_path: Path,
) -> None:
    with PredictionWriter(tmp_path) as writer:
        writer.write(np.array([1.0], dtype=np.float64))
        writer.write(np.array([0.5], dtype=np.float32))
    assert table_of(tmp_path)["pred"].to_pylist() == [1.0, 0.5]
    with PredictionWriter(tmp_path) as writer, pytest.raises(BadInput, match="double"):
        writer.write(np.array([1.0], dtype=np.float32))
        writer.write(np.array([0.1], dtype=np.float64))


def test_labels_may_begin_later(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path, rows_per_group=2) as writer:
        writer.write([1, 2, 3])
        writer.write([4], label=[5])
    assert table_of(tmp_path)["label"].to_pylist() == [None, None, None, 5]


def test_labels_of_another_type_cannot_begin_once_rows_were_written(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path, rows_per_group=2) as writer:
        writer.write([1, 2, 3])
        with pytest.raises(BadInput, match="label"):
            writer.write([4], label=["a"])


# --- streaming ---


def test_rows_are_written_in_groups_and_not_in_batches(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path) as writer:
        for _ in range(720):
            writer.write(np.arange(100))
        assert writer.rows == 72_000
    file = parquet.ParquetFile(tmp_path / "part-00000.parquet")
    assert [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)] == [
        65_536,
        6_464,
    ]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.read()["pred"].to_pylist() == list(range(100)) * 720


def test_batches_of_one_row_cost_no_more_than_their_number(tmp_path: Path) -> None:
    def seconds(rows: int) -> float:
        began = time.perf_counter()
        with PredictionWriter(tmp_path) as writer:
            for _ in range(rows):
                writer.write([1])
        return time.perf_counter() - began

    seconds(10)
    assert seconds(8_000) < 6 * seconds(4_000)  # and not with its square


def held() -> int:
    return tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()


def test_wide_rows_are_written_before_they_fill_the_memory(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).random((256, 4_096), dtype=np.float32)  # 4 MiB
    tracemalloc.start()  # sees what numpy allocates
    before, most = held(), 0
    with PredictionWriter(tmp_path) as writer:
        for _ in range(64):
            writer.write(np.zeros(256, dtype=np.int64), prob=wide)
            most = max(most, held() - before)
    tracemalloc.stop()
    assert most < 160 << 20  # of the 256 MiB that were given
    assert len(table_of(tmp_path)) == 64 * 256


# --- whole, or not there ---


def test_nothing_has_the_final_name_before_the_end(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path, rows_per_group=2) as writer:
        writer.write([1, 2, 3])
        assert not (tmp_path / "part-00000.parquet").exists()
    assert os.listdir(tmp_path) == ["part-00000.parquet"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), PredictionWriter(tmp_path, rows_per_group=2) as writer:
        writer.write([1, 2, 3])
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_part_that_a_killed_process_left_is_written_anew(tmp_path: Path) -> None:
    story = f"""
import os, sys; sys.path[:0] = {[path for path in sys.path if path]!r}
import begat
writer = begat.PredictionWriter({str(tmp_path)!r}, part=1, rows_per_group=2)
writer.write([1, 2, 3])
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", story], check=False).returncode == 9
    (left,) = os.listdir(tmp_path)
    assert not left.endswith(".parquet")
    with PredictionWriter(tmp_path, part=1) as writer:
        writer.write([4])
    assert os.listdir(tmp_path) == ["part-00001.parquet"]


def test_parts_stand_beside_each_other_and_one_replaces_its_like(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for value, part in ((1, 0), (2, 1), (3, 0)):
        with PredictionWriter(folder, part=part) as writer:
            writer.write([value])
    assert parquet.read_table(folder)["pred"].to_pylist() == [3, 2]


def test_without_rows_there_is_no_file(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path)
    assert writer.close() is None
    assert os.listdir(tmp_path) == []


def test_an_empty_batch_is_no_rows(tmp_path: Path) -> None:
    with PredictionWriter(tmp_path) as writer:
        writer.write(np.array([], dtype=np.int64))
        writer.write([], prob=[])
        writer.write([3], prob=[[1.0]])
    assert len(table_of(tmp_path)) == 1


def test_closing_says_where_the_file_is_and_ends_it(tmp_path: Path) -> None:
    writer = PredictionWriter(tmp_path, part=2)
    writer.write([1])
    assert writer.close() == tmp_path / "part-00002.parquet"
    assert writer.close() == tmp_path / "part-00002.parquet"
    with pytest.raises(TypeError, match="closed"):
        writer.write([1])


def test_a_full_disk_is_told_as_such_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(operation: str, path: str) -> None:
        if operation == "write":
            raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(files, "fault", full)
    with pytest.raises(StoreFull, match="predictions"), PredictionWriter(tmp_path) as writer:
        writer.write([1])
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_an_error_of_begat(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BegatError), PredictionWriter(tmp_path / "file") as writer:
        writer.write([1])


# --- without the extra ---


def test_without_pyarrow_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(begat.errors.MissingExtra, match=r'pip install "begat\[tables\]"'):
        PredictionWriter(tmp_path)
