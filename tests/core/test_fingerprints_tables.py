"""Fingerprints of tables of Arrow, pandas and Hugging Face: how they are cut and held is nothing, values are all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pandas.util import hash_pandas_object

from begat import fingerprint
from content import are_different, are_same, digest

# --- tables ---


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    length = draw(st.integers(0, 12))
    kinds: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
        (pa.int64(), st.integers(-9, 9)),
        (pa.uint8(), st.integers(0, 9)),
        (pa.float32(), st.sampled_from([0.0, 1.5, -2.0])),
        (pa.bool_(), st.booleans()),
        (pa.string(), st.sampled_from(["", "a", "bc"])),
        (pa.binary(), st.sampled_from([b"", b"a"])),
        (pa.timestamp("us", "UTC"), st.integers(0, 9)),
        (pa.date32(), st.integers(0, 9)),
        (pa.decimal128(9, 2), st.decimals(0, 9, places=2)),
        (pa.list_(pa.int32()), st.lists(st.none() | st.integers(0, 9), max_size=3)),
        (pa.list_(pa.float32(), 2), st.lists(st.just(1.5), min_size=2, max_size=2)),
        (pa.struct([("x", pa.int8()), ("y", pa.string())]), st.fixed_dictionaries(
            {"x": st.none() | st.integers(0, 9), "y": st.none() | st.just("w")}
        )),
        (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["u", "v"])),
    ]  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))
    columns = {
        f"c{at}": pa.array(
            draw(st.lists(st.none() | values, min_size=length, max_size=length)), type
        )
        for at, (type, values) in enumerate(chosen)
    }
    return pa.table(columns)


@given(tables(), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_table_is_the_same_however_it_is_cut(table: pa.Table, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, table.num_rows))
    twice = pa.concat_tables([table, table])
    are_same(
        table,
        pa.concat_tables([table[:cut], table[cut:]]),
        twice[table.num_rows :],
        twice.combine_chunks()[table.num_rows :],
        table.replace_schema_metadata({"a": "b"}),
        pyarrow.dataset.dataset(table),
    )
    if table.num_rows:
        are_different(table, twice, table[:-1], table.rename_columns([
            f"d{at}" for at in range(table.num_columns)
        ]))  # fmt: skip


@given(tables(), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_a_table_with_one_changed_value_is_another(table: pa.Table, data: st.DataObject) -> None:
    assume(table.num_rows > 1)
    at = data.draw(st.integers(0, table.num_columns - 1))
    values = table.column(at).to_pylist()
    other = next((value for value in values if value != values[0]), None)
    changed = [other, *values[1:]]
    assume(changed != values)
    column = pa.array(changed, table.schema.field(at).type)
    are_different(table, table.set_column(at, table.schema.field(at), column))


def test_rows_that_are_null_may_hide_anything() -> None:
    # Three words, the second of which is null but has bytes.
    valid = pa.py_buffer(b"\x05")
    offsets = pa.py_buffer(np.array([0, 1, 4, 5], "i4").tobytes())
    hidden = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"axyzb"), valid)
    are_same(hidden, pa.array(["a", None, "b"]))
    numbers = pa.Array.from_buffers(
        pa.int64(), 3, [valid, pa.py_buffer(np.array([1, 77, 3]).tobytes())]
    )
    are_same(numbers, pa.array([1, None, 3]))
    lists = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4], "i4"), pa.array([1, 8, 9, 2]), mask=pa.array([False, True, False])
    )
    are_same(lists, pa.array([[1], None, [2]]))
    inner = pa.StructArray.from_arrays(
        [pa.array([1, 5, 3])], ["x"], mask=pa.array([False, True, False])
    )
    are_same(inner, pa.array([{"x": 1}, None, {"x": 3}]))


def test_codes_are_layout_and_an_order_of_words_is_not() -> None:
    plain = pa.array(["b", "a", "b"])
    coded = plain.dictionary_encode()
    other = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2], "i4"), ["a", "unused", "b"])
    wide = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1], "i8"), ["a", "b"])
    are_same(coded, other, wide, pa.chunked_array([coded[:1], other[1:]]))
    ordered = [
        pa.DictionaryArray.from_arrays(codes, words, ordered=True)
        for codes, words in (([0, 1, 0], ["b", "a"]), ([1, 0, 1], ["a", "b"]))
    ]
    are_different(plain, coded, *ordered)


def test_columns_swapped_renamed_or_retyped_make_another_table() -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [3, 2, 1]})
    are_different(
        frame,
        frame[["b", "a"]],
        frame.rename(columns={"a": "b", "b": "a"}),
        frame.rename(columns={"a": 0}),
        frame.rename(columns={"a": "0"}),
        frame.astype({"a": "uint8"}),
        frame.astype({"a": "float64"}),
        frame.astype({"a": "str"}),
        frame.astype({"a": "category"}),
        frame.set_index("a"),
        frame.set_index(pd.Index([7, 8, 10])),
    )
    are_same(frame, frame.set_index(pd.RangeIndex(5, 8)), pa.Table.from_pandas(frame))


def test_how_pandas_holds_a_column_is_layout() -> None:
    words = ["x", "y", None]
    are_same(*(
        pd.DataFrame({"w": pd.array(words, dtype=type)})
        for type in ("object", "str", "string", pd.StringDtype("python"), pd.ArrowDtype(pa.string()))
    ))  # fmt: skip
    are_same(*(
        pd.DataFrame({"n": pd.array([1, None, 3], dtype=type)})
        for type in ("Int64", pd.ArrowDtype(pa.int64()))
    ), pa.table({"n": [1, None, 3]}))  # fmt: skip
    times = pd.to_datetime(["2020-01-01", "2020-01-03"]).as_unit("us")
    for zone in (None, "UTC", "Europe/Berlin"):
        held = times.tz_localize(zone)
        type = pa.timestamp("us", zone)
        are_same(pd.DataFrame({"t": held}), pa.table({"t": pa.array(held.asi8).cast(type)}))
    wide = pd.DataFrame(np.arange(12.0).reshape(3, 4))
    are_same(wide, pd.DataFrame({at: np.arange(at, 12.0, 4) for at in range(4)}))


@given(st.integers(0, 30_000), st.sampled_from(["flag", "when", "number", "word"]))
@settings(max_examples=15, deadline=None)
def test_a_change_in_any_row_of_any_column_is_noticed(row: int, column: str) -> None:
    # What other tools miss: rows past the 10,000th, booleans, times.
    rows = 30_001
    frame = pd.DataFrame(
        {
            "flag": np.zeros(rows, bool),
            "when": pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(rows), "s"),
            "number": np.arange(rows),
            "word": "same",
        }
    )
    changed = frame.copy()
    changed.loc[row, column] = {
        "flag": True,
        "when": frame["when"][row] + pd.Timedelta("1us"),
        "number": -1,
        "word": "other",
    }[column]
    are_different(frame, changed)
    are_different(pa.Table.from_pandas(frame), pa.Table.from_pandas(changed))
    are_different(datasets.Dataset.from_pandas(frame), datasets.Dataset.from_pandas(changed))


def test_frames_that_hash_pandas_object_takes_for_equal_are_different() -> None:
    pairs = [
        (pd.DataFrame({"a": [1, 0]}), pd.DataFrame({"a": [True, False]})),
        (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"b": [1, 2]})),
        (pd.DataFrame({"a": np.array([1], "u1")}), pd.DataFrame({"a": np.array([1], "i8")})),
    ]
    hash_of: Any = hash_pandas_object
    for one, other in pairs:
        assert (hash_of(one) == hash_of(other)).all()
        are_different(one, other)


def test_a_frame_with_objects_in_it_is_unknown_and_says_which_column() -> None:
    found = fingerprint(pd.DataFrame({"a": [1], "b": [object()]}))
    assert (found.digest, found.n_rows, found.exact) == (None, 1, False)
    assert found.how.startswith("not known: b: ")
    assert found.parts["a"].digest == digest(np.array([1]))


# --- Hugging Face ---


def test_a_hugging_face_data_set_is_its_rows_in_their_order() -> None:
    rows = {"x": [[1, 2], [], [3]], "y": ["a", "b", None], "z": [1.0, 2.0, 3.0]}
    ds = datasets.Dataset.from_dict(rows)
    order = list(range(3))
    random.Random(1).shuffle(order)
    are_same(ds, ds.select([2, 1, 0]).select([2, 1, 0]), ds.data.table, ds.with_format("numpy"))
    chosen: Any = ds.select(order).to_dict()
    are_same(ds.select(order), datasets.Dataset.from_dict(chosen, ds.features))
    are_same(ds.select(range(2)), ds.select([0, 1]), ds.select([0, 0, 1]).select([0, 2]))
    are_different(ds, ds.select([1, 0, 2]), ds.rename_column("z", "w"), ds.remove_columns("z"))
    assert fingerprint(ds).n_rows == 3
    assert fingerprint(ds.with_transform(lambda batch: batch)).exact is False
    assert fingerprint(ds.with_format(columns=["x"])).exact is False
    assert fingerprint(ds.to_iterable_dataset()).digest is None
    both: Any = datasets.DatasetDict({"train": ds, "test": ds.select([0])})
    assert fingerprint(both).parts["train"].digest == digest(ds)


def test_images_of_a_hugging_face_data_set_are_not_exact(tmp_path: Path) -> None:
    features: Any = datasets.Features({"image": [datasets.Image()]})
    ds = datasets.Dataset.from_dict({"image": [[{"path": "a", "bytes": b"1"}]]}, features)
    assert fingerprint(ds).exact is False
