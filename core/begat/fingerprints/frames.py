"""Frames and series of pandas, column by column, in the form that tables of Arrow have.

How pandas holds a column is layout where the values are the same: words are words as objects, as `str` or as Arrow
strings, and an `Int64` without missing values is an `int64`.
"""

from __future__ import annotations

from typing import Any

from begat.fingerprints.arrays import (
    array_content,
    finished_array,
    numpy_array,
    values_content,
)
from begat.fingerprints.arrow import arrow_array, named_columns
from begat.fingerprints.hashing import (
    Budget,
    Fingerprint,
    Unknown,
    is_a,
    loaded,
    unknown,
    why_unknown,
)


def pandas_frame(frame: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of a DataFrame: all columns by name and order, and its index unless it only counts."""
    columns = [
        (_label(label), _column(frame.iloc[:, at].array, budget))
        for at, label in enumerate(frame.columns)
    ]
    exact = type(frame) is loaded("pandas").DataFrame
    return named_columns(columns, len(frame), index=_index(frame.index, budget), exact=exact)


def pandas_series(series: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of a Series: a table of one column."""
    columns = [(_label(series.name), _column(series.array, budget))]
    exact = type(series) is loaded("pandas").Series
    return named_columns(columns, len(series), index=_index(series.index, budget), exact=exact)


def pandas_index(index: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of an Index: its levels as columns."""
    return named_columns(_levels(index, budget), len(index))


def pandas_array(array: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of an array of pandas' own."""
    return _column(array, budget)


def _index(index: Any, budget: Budget) -> list[tuple[Any, Fingerprint]]:
    # A name tells that it was a column; pandas makes a RangeIndex of any numbers that fit.
    only_counts = is_a(index, "pandas", "RangeIndex") and index.name is None
    return [] if only_counts else _levels(index, budget)


def _levels(index: Any, budget: Budget) -> list[tuple[Any, Fingerprint]]:
    return [
        (_label(name), _column(index.get_level_values(at).array, budget))
        for at, name in enumerate(index.names)
    ]


def _label(label: Any) -> Any:
    """A name as JSON: words and numbers differ, and a tuple is a list."""
    if isinstance(label, tuple):
        return [_label(part) for part in label]  # pyright: ignore[reportUnknownVariableType]
    if label is None or isinstance(label, str | bool | int):
        return label
    if is_a(label, "numpy", "integer"):
        return int(label)
    raise Unknown(f"a column or index is named by a {type(label).__name__}")


def _column(array: Any, budget: Budget) -> Fingerprint:
    try:
        return _values(array, budget)
    except Unknown as why:
        return unknown("array", str(why), n_rows=len(array))


def _values(array: Any, budget: Budget) -> Fingerprint:
    dtype, pandas, np = array.dtype, loaded("pandas"), loaded("numpy")
    if is_a(array, "pandas.arrays", "NumpyExtensionArray"):
        return numpy_array(array.to_numpy(), budget)
    if isinstance(dtype, np.dtype):  # times without a zone
        return _moments(dtype.name, array, budget)
    if isinstance(dtype, pandas.DatetimeTZDtype):
        return _moments(f"datetime64[{dtype.unit}, {dtype.tz}]", array, budget)
    if isinstance(dtype, pandas.CategoricalDtype):
        return _categories(array, budget)
    if hasattr(array, "__arrow_array__") and isinstance(
        dtype, pandas.ArrowDtype | pandas.StringDtype
    ):
        if getattr(dtype, "storage", "pyarrow") == "pyarrow":
            return arrow_array(array.__arrow_array__(), budget)
    if isinstance(dtype, pandas.StringDtype):
        return values_content(array.to_numpy(dtype=object).tolist(), (len(array),), budget)
    if hasattr(dtype, "numpy_dtype"):  # with a mask
        gone = np.asarray(array.isna())
        values = array[~gone].to_numpy(dtype=dtype.numpy_dtype)
        name = dtype.numpy_dtype.name
        return array_content(name, (len(array),), budget, values, nulls=np.flatnonzero(gone))
    raise Unknown(f"columns of the type {dtype} are not read")


def _moments(name: str, array: Any, budget: Budget) -> Fingerprint:
    np = loaded("numpy")
    gone = np.asarray(array.isna())
    numbers = np.asarray(array.asi8)
    numbers = numbers[~gone] if gone.any() else numbers
    return array_content(name, (len(array),), budget, numbers, nulls=np.flatnonzero(gone))


def _categories(array: Any, budget: Budget) -> Fingerprint:
    codes = numpy_array(array.codes.astype("int64"), budget)
    words = _column(array.categories.array, budget)
    why = why_unknown([("categories", words)])
    if why is not None:
        raise Unknown(why)
    facts = {"type": "category", "shape": [len(array)], "data": codes.digest}
    return finished_array(facts, more={"categories": words.digest, "ordered": bool(array.ordered)})
