"""Tables of Arrow and of Hugging Face `datasets`: each column an array, fed piece by piece.

A column without missing values is the same content as the NumPy array of its type and values. Of values that are
missing the positions are hashed, and not what lies in their place; so it does not matter how a table is cut into
chunks, where a slice begins, or how wide offsets are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from begat.fingerprints.arrays import finished_array
from begat.fingerprints.hashing import (
    Budget,
    Fingerprint,
    Stream,
    Unknown,
    known,
    loaded,
    unknown,
    why_unknown,
)

BATCH_ROWS = 65_536
# Features whose column holds a path, or bytes that are decoded into something else.
_DECODED = frozenset(("Audio", "Image", "Nifti", "Pdf", "Video"))


class Column:
    """The content of one column, fed as Arrow arrays of one type."""

    def __init__(self, type: Any, budget: Budget) -> None:
        self._budget = budget
        self._type = type
        self._data, self._nulls = Stream(budget), Stream(budget)
        self._lengths: Stream | None = None
        self._inner: list[Column] = []
        self._order: str | None = None
        self._has_nulls = False
        self._length = 0
        self.name = self._prepare(type)

    def feed(self, array: Any) -> None:
        """Take in the next values."""
        compute = loaded("pyarrow.compute")
        self._budget.check_time()
        if str(array.type).endswith("_view"):  # not much is implemented for those
            array = array.cast(f"large_{self.name}")
        if array.null_count:
            where = compute.indices_nonzero(array.is_null()).cast("int64")
            self._nulls.feed(_values(compute.add(where, self._length), 8))
            self._has_nulls = True
        self._length += len(array)
        array = array.drop_null() if array.null_count else array
        if len(array):
            self._feed_values(array, compute)

    @property
    def facts(self) -> dict[str, Any]:
        """What the fingerprint of the column is made from."""
        facts: dict[str, Any] = {"type": self.name, "shape": [self._length]}
        if self._inner:
            facts["inner"] = [inner.finished().digest for inner in self._inner]
        else:
            facts["data"] = self._data.digest
        if self._lengths is not None:
            facts["lengths"] = self._lengths.digest
        if self._has_nulls:
            facts["nulls"] = self._nulls.digest
        if self._order is not None:
            facts["order"] = self._order
        return facts

    def finished(self) -> Fingerprint:
        """The fingerprint of all that was fed."""
        return finished_array(self.facts)

    # --- by type ---

    def _prepare(self, type: Any) -> str:
        types = loaded("pyarrow").types
        if types.is_dictionary(type):
            # Which number a word has in its chunk is layout; an order of the words is not.
            return f"{self._holding(type.value_type)}, {'ordered' if type.ordered else 'coded'}"
        if types.is_struct(type):
            inner = [type.field(at) for at in range(type.num_fields)]
            named = [f"{field.name}: {self._holding(field.type)}" for field in inner]
            return f"struct<{', '.join(named)}>"
        if types.is_fixed_size_list(type):
            return f"list<{self._holding(type.value_type)}>[{type.list_size}]"
        if types.is_list(type) or types.is_large_list(type):
            self._lengths = Stream(self._budget)
            return f"list<{self._holding(type.value_type)}>"
        if hasattr(type, "storage_type"):
            return f"{type.extension_name}<{self._holding(type.storage_type)}>"
        name = _plain_name(type, types)
        if name in ("string", "binary"):
            self._lengths = Stream(self._budget)
        return name

    def _holding(self, type: Any) -> str:
        inner = Column(type, self._budget)
        self._inner.append(inner)
        return inner.name

    def _feed_values(self, array: Any, compute: Any) -> None:
        types, type = loaded("pyarrow").types, self._type
        if types.is_dictionary(type):
            if type.ordered:
                self._check_order(array)
            self._inner[0].feed(array.dictionary_decode())
        elif types.is_struct(type):
            for inner, part in zip(self._inner, array.flatten(), strict=True):
                inner.feed(part)
        elif types.is_list(type) or types.is_large_list(type) or types.is_fixed_size_list(type):
            if self._lengths is not None:
                self._lengths.feed(_values(compute.list_value_length(array).cast("int64"), 8))
            self._inner[0].feed(compute.list_flatten(array))
        elif hasattr(type, "storage_type"):
            self._inner[0].feed(array.storage)
        elif self._lengths is not None:
            self._feed_words(array, compute)
        elif types.is_boolean(type):
            self._data.feed(_values(array.cast("uint8"), 1))
        elif not types.is_null(type):
            self._data.feed(_values(array, type.bit_width // 8))

    def _feed_words(self, array: Any, compute: Any) -> None:
        self._lengths_of(array, compute)
        _, offsets, data = array.buffers()
        wide = str(array.type).startswith("large")
        at: Any = memoryview(offsets).cast("q" if wide else "i")
        first, last = at[array.offset], at[array.offset + len(array)]
        if last > first:
            self._data.feed(memoryview(data)[first:last])

    def _lengths_of(self, array: Any, compute: Any) -> None:
        if self._lengths is not None:
            self._lengths.feed(_values(compute.binary_length(array).cast("int64"), 8))

    def _check_order(self, array: Any) -> None:
        words = Column(array.dictionary.type, self._budget)
        words.feed(array.dictionary)
        order = words.finished().digest
        if self._order not in (None, order):
            raise Unknown("its chunks order the same words in several ways")
        self._order = order


def _plain_name(type: Any, types: Any) -> str:
    """The name of a type whose values lie one after the other; the names of NumPy where it has the type."""
    if types.is_timestamp(type):
        return f"datetime64[{type.unit}{f', {type.tz}' if type.tz else ''}]"
    if types.is_duration(type):
        return f"timedelta64[{type.unit}]"
    name = str(type)
    short = {"double": "float64", "float": "float32", "halffloat": "float16"}.get(name, name)
    if short.removeprefix("large_").removesuffix("_view") in ("string", "binary"):
        return short.removeprefix("large_").removesuffix("_view")
    is_plain = (
        *(types.is_primitive(type), types.is_decimal(type), types.is_null(type)),
        types.is_fixed_size_binary(type),
    )
    if not any(is_plain):
        raise Unknown(f"columns of the type {name} are not read")
    return short


def _values(array: Any, width: int) -> memoryview:
    """The values of an array without missing ones, as they lie in its buffer."""
    if sys.byteorder == "big":
        raise Unknown("Arrow data is read on little-endian machines only")
    data = array.buffers()[1]
    if data is None:
        return memoryview(b"")
    return memoryview(data)[array.offset * width : (array.offset + len(array)) * width]


# --- what is made of columns ---


def arrow_array(array: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of an Array or ChunkedArray."""
    column = Column(array.type, budget)
    for chunk in getattr(array, "chunks", [array]):
        column.feed(chunk)
    return column.finished()


def arrow_table(table: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of a Table or RecordBatch."""
    budget.check_size(table.nbytes)
    return table_content(table.schema, [table], budget)


def arrow_dataset(dataset: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of a data set of Arrow: its files are read, in their order."""
    return table_content(dataset.schema, dataset.to_batches(batch_size=BATCH_ROWS), budget)


def hugging_face_dataset(dataset: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of a Dataset of `datasets`, its selection and order applied."""
    table, indices = dataset.data.table, dataset._indices
    hidden = dataset._format_columns is not None and set(dataset._format_columns) != set(
        table.column_names
    )
    is_exact = not hidden and dataset._format_type != "custom" and not _is_decoded(dataset.features)
    if indices is None:
        budget.check_size(table.nbytes)
        return table_content(table.schema, [table], budget, exact=is_exact)
    return table_content(
        table.schema, _selected(table, indices.table.column(0)), budget, exact=is_exact
    )


def _is_decoded(feature: Any) -> bool:
    if isinstance(feature, dict):
        return any(map(_is_decoded, feature.values()))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(feature, list):
        return any(map(_is_decoded, feature))  # pyright: ignore[reportUnknownArgumentType]
    inner = getattr(feature, "feature", None)
    return type(feature).__name__ in _DECODED or (inner is not None and _is_decoded(inner))


def _selected(table: Any, indices: Any) -> Iterator[Any]:
    for start in range(0, len(indices), BATCH_ROWS):
        yield table.take(indices.slice(start, BATCH_ROWS))


def table_content(
    schema: Any, pieces: Iterable[Any], budget: Budget, *, exact: bool = True
) -> Fingerprint:
    """The fingerprint of tables or batches of one schema, one after the other."""
    columns: list[Column | str] = []
    for field in schema:
        try:
            columns.append(Column(field.type, budget))
        except Unknown as why:
            columns.append(str(why))
    n_rows = 0
    for piece in pieces:
        n_rows += piece.num_rows
        for column, held in zip(columns, piece.columns, strict=True):
            if isinstance(column, Column):
                for chunk in getattr(held, "chunks", [held]):
                    column.feed(chunk)
    named = [
        (
            field.name,
            unknown("array", column) if isinstance(column, str) else column.finished(),
        )
        for field, column in zip(schema, columns, strict=True)
    ]
    return named_columns(named, n_rows, exact=exact)


def named_columns(
    columns: list[tuple[Any, Fingerprint]],
    n_rows: int,
    *,
    index: list[tuple[Any, Fingerprint]] | None = None,
    exact: bool = True,
) -> Fingerprint:
    """The fingerprint of columns, each with its name, in their order; `index` names the rows."""
    said = [(str(name), column) for name, column in columns]
    told = [(f"index {name}", level) for name, level in index or ()]
    schema = ", ".join(f"{name}: {_type_of(column)}" for name, column in said)
    parts = dict(said)
    why = why_unknown([*said, *told])
    if why is not None:
        return unknown("table", why, schema=schema, n_rows=n_rows, parts=parts)
    facts: dict[str, Any] = {
        "rows": n_rows,
        "columns": [[name, column.digest] for name, column in columns],
    }
    if index:
        facts["index"] = [[name, level.digest] for name, level in index]
    how = (
        "all of it was hashed" if exact else "what is read of it is more, or less, than its columns"
    )
    return known("table", facts, schema=schema, n_rows=n_rows, exact=exact, how=how, parts=parts)


def _type_of(column: Fingerprint) -> str:
    return (column.schema or "unknown").partition(" (")[0]
