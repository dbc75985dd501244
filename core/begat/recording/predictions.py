"""Predictions as parquet: a row for each sample, written while they are made, in as many parts as there are processes.

    with begat.PredictionWriter(folder, part=rank, model="net:v3", classes=["no", "yes"]) as writer:
        for batch in batches:
            writer.write(pred, id=ids, label=labels, prob=probabilities)
    recorder.output(folder, name="net-predictions", type="predictions")      one process, when all parts are there

The only module of the core that imports pyarrow, and not before a writer is made. Batches may be of any framework,
none of which is imported here: what they can do is asked of them.
"""

# pyarrow ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from begat import files
from begat.errors import BadInput, MissingExtra
from begat.metadata import check_metadata
from begat.model import Json

# Large enough to compress well, small enough to read a piece of a large table.
ROWS_PER_GROUP = 65_536
# Rows of many classes are written before that many of them fill the memory.
MOST_BUFFERED_BYTES = 64 << 20
FACTS_KEY = "begat"
_PULLED_APART = (list, tuple)


class PredictionWriter:
    """Writes one part of a table of predictions, `part-00000.parquet` in `folder`, in constant memory.

    Columns: `id` (int64 or string), `label` (null where none is known), `pred`, and, if the first batch has them,
    `prob` and `dataloader_idx`. Rows of several values are lists of fixed size (as a label: lists). `run`, `model`,
    `datasets` and `classes` (in the order of `prob`) are JSON in the file's own metadata, under the key `begat`.

    The file has its name once it is complete, after `close`; after an exception inside the `with` there is none.
    Every rank may write its part: no store and no run is needed.

    Raises `MissingExtra` without pyarrow.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        part: int = 0,
        run: str | None = None,
        model: str | None = None,
        datasets: Iterable[str] = (),
        classes: Sequence[Json] | None = None,
        rows_per_group: int = ROWS_PER_GROUP,
    ) -> None:
        self._pa = _pyarrow()
        self.path = Path(folder, f"part-{part:05d}.parquet")
        known = {"run": run, "model": model, "datasets": list(datasets), "classes": classes}
        facts = {key: value for key, value in known.items() if value not in (None, [])}
        self._facts = json.dumps(check_metadata(facts, what="what is known of predictions"))
        self._rows_per_group = rows_per_group
        self.rows = 0
        self._numbered: dict[int | None, int] = {}
        self._columns: tuple[str, ...] = ()
        self._types: dict[str, Any] = {}
        self._buffer: list[Any] = []
        self._buffered_rows = self._buffered_bytes = 0
        self._file: files.NewFile | None = None
        self._sink = _Sink()
        self._parquet: Any = None
        self._is_open, self._is_published = True, False
        with files.told_as(f"making the folder of the predictions {self.path}"):
            files.make_directory(self.path.parent)
            for left in self.path.parent.glob(f"*{self._suffix}"):  # by a process that was killed
                files.remove(left)

    def write(
        self,
        pred: Any,
        *,
        id: Any = None,
        label: Any = None,
        prob: Any = None,
        dataloader: int | None = None,
    ) -> None:
        """Add a batch: each argument has a value, or several, for each of its rows.

        Arrays of NumPy, JAX, pandas and pyarrow, tensors on any device and lists; (n, 1) is one value a row. Without
        `id` rows are numbered, from 0 in each dataloader. The first batch decides which columns there are and of
        which type; labels may begin later. Nothing of the batch is referred to once this returns.

        Raises `BadInput`, with the rows written before kept, if the batch does not fit.
        """
        if not self._is_open:
            raise TypeError(f"{self.path} is closed; make another PredictionWriter for more rows")
        given = {"id": id, "label": label, "pred": pred, "prob": prob}
        columns = {name: self._column(name, each) for name, each in given.items()}
        count = _same_length({name: each for name, each in columns.items() if each is not None})
        if count == 0:
            return
        number = self._numbered.get(dataloader, 0)
        present = tuple(name for name in ("id", "prob") if columns[name] is not None)
        present += ("dataloader",) if dataloader is not None else ()
        if self.rows and present != self._columns:
            odd = sorted(set(present) ^ set(self._columns))[0]
            state = "missing in" if odd in self._columns else "given for the first time with"
            raise BadInput(f"{odd} is {state} this batch; every batch has what the first one has")
        if id is None:
            columns["id"] = self._pa.array(range(number, number + count), self._pa.int64())
        if label is None:
            columns["label"] = self._pa.nulls(count)
        if dataloader is not None:
            columns["dataloader_idx"] = self._pa.array([dataloader] * count, self._pa.int32())
        self._take({name: each for name, each in columns.items() if each is not None})
        self._columns = present
        self._numbered[dataloader] = number + count
        self.rows += count

    def close(self) -> Path | None:
        """Write what is left and give the file its name, durably; its path, or None where there were no rows."""
        if self._is_open and self.rows:
            self._flush(is_last=True)
            self._is_open = False
        self.abort()
        return self.path if self._is_published else None

    def abort(self) -> None:
        """End without a file; nothing after `close`."""
        self._is_open = False
        self._keep([])
        self._sink.file = None
        if self._parquet is not None:
            with contextlib.suppress(Exception):  # it would write its end, to nowhere
                self._parquet.close()
            self._parquet = None
        if self._file is not None:
            self._file.discard()
            self._file = None

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    # --- batches ---

    def _column(self, name: str, values: Any) -> Any:
        """An array of a batch's values, in one of the few types that a table has; None for None."""
        if values is None:
            return None
        pa = self._pa
        try:
            flat, width = _flat(pa, values)
            flat = _plain(pa, flat)
        except (pa.ArrowException, BadInput, TypeError, ValueError, OverflowError) as error:
            raise BadInput(
                f"{name} cannot be a column of the predictions: {error}. Nothing of this batch was written"
            ) from error
        if name == "id" and (
            width or flat.null_count or flat.type not in (pa.int64(), pa.string())
        ):
            raise BadInput(
                f"id is int64 or string, one for each row, and not {_said(flat, width)}. "
                "Nothing of this batch was written"
            )
        if name == "prob" and len(flat):
            width = width or 1
            if flat.type not in (pa.float32(), pa.float64()):
                raise BadInput(f"prob is a number for each class, and not {_said(flat, width)}")
        if width is None or (width == 1 and name != "prob"):
            return flat
        element = pa.field("element", flat.type)
        if name == "label":  # a list of fixed size that is null cannot be read back from parquet
            offsets = pa.array(range(0, len(flat) + 1, width), pa.int32())
            return pa.ListArray.from_arrays(offsets, flat, type=pa.list_(element))
        return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(element, width))

    def _take(self, columns: dict[str, Any]) -> None:
        """Into the buffer, if all are of the types of the first batch."""
        pa = self._pa
        types: dict[str, Any] = {}
        for name, values in columns.items():
            known = self._types.get(name)
            if name == "pred" and values.type == pa.null():
                raise BadInput("pred has no values. Nothing of this batch was written")
            if known is None or values.type == known:
                known = values.type
            elif values.type != pa.null():
                if not _is_finer(pa, known, values.type):
                    raise BadInput(
                        f"{name} is {values.type} in this batch and {known} in those before, and a column has one "
                        "type. Nothing of this batch was written"
                    )
                columns[name] = values.cast(known)
            if known != pa.null():
                types[name] = known
        self._types |= types
        names = [name for name in _ORDER if name in columns]
        self._keep([pa.table([columns[name] for name in names], names=names)], and_before=True)
        if (
            self._buffered_rows >= self._rows_per_group
            or self._buffered_bytes >= MOST_BUFFERED_BYTES
        ):
            self._flush()

    def _keep(self, tables: list[Any], *, and_before: bool = False) -> None:
        """Let these wait to be written (beside what waits already); counted, as batches may be of one row."""
        if not and_before:
            self._buffer, self._buffered_rows, self._buffered_bytes = [], 0, 0
        self._buffer += tables
        self._buffered_rows += sum(len(table) for table in tables)
        self._buffered_bytes += sum(table.nbytes for table in tables)

    def _flush(self, *, is_last: bool = False) -> None:
        try:
            with files.told_as(f"writing the predictions {self.path}"):
                if self._buffer:
                    self._write_groups(is_last)
                if is_last:
                    self._publish()
        except BaseException:
            self.abort()
            raise

    def _write_groups(self, is_last: bool) -> None:
        """Write whole groups of rows and keep the rest; all of it at the end, and where the rest is large."""
        pa = self._pa
        if "label" not in self._types:
            pred = self._types["pred"]
            is_vector = pa.types.is_fixed_size_list(pred)
            self._types["label"] = pa.list_(pred.value_field) if is_vector else pred
        table = pa.concat_tables(self._buffer, promote_options="default")
        schema = pa.schema([(name, self._types[name]) for name in table.column_names])
        table = table.cast(schema.with_metadata({FACTS_KEY: self._facts}))
        if self._parquet is None:
            self._file = files.NewFile(self.path.parent, self._suffix)
            self._sink.file = self._file
            self._parquet = pa.parquet.ParquetWriter(self._sink, table.schema, compression="zstd")
        rest = len(table) % self._rows_per_group
        if is_last or table.slice(len(table) - rest).nbytes >= MOST_BUFFERED_BYTES:
            rest = 0
        whole = len(table) - rest
        if whole:
            self._parquet.write_table(table.slice(0, whole), row_group_size=self._rows_per_group)
        self._keep([table.slice(whole)] if rest else [])

    def _publish(self) -> None:
        parquet, self._parquet = self._parquet, None
        parquet.close()
        file, self._file = self._file, None
        cast("files.NewFile", file).publish(self.path, mode=0o644)
        self._is_published = True

    @property
    def _suffix(self) -> str:
        return f".{self.path.stem}.unfinished"


_ORDER = ("id", "label", "pred", "prob", "dataloader_idx")


class _Sink(io.RawIOBase):
    """What pyarrow writes to: a new file of ours, or nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.file: files.NewFile | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.file is not None:
            self.file.write(data)
        return len(data)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet  # pyright: ignore[reportUnusedImport] - an attribute of the other
    except ImportError as error:
        raise MissingExtra(
            'tables of predictions need pyarrow, which is not installed: pip install "begat[tables]"'
        ) from error
    return pyarrow


def _same_length(columns: Mapping[str, Any]) -> int:
    count = len(columns["pred"])
    for name, values in columns.items():
        if len(values) != count:
            raise BadInput(
                f"{name} has {len(values)} rows where pred has {count}. Nothing of this batch was written"
            )
    return count


def _flat(pa: Any, values: Any) -> tuple[Any, int | None]:
    """(all values in a row, how many there are in each row of the table; None where a row is one value)"""
    if isinstance(values, str | bytes | Mapping):
        raise BadInput(f"a {type(values).__name__} is no list of values")
    if isinstance(values, _PULLED_APART):
        values = [_listed(each) for each in cast("Sequence[Any]", values)]
    else:
        values = _on_the_host(values)
    if (
        hasattr(values, "__array__")
        and not hasattr(values, "combine_chunks")
        and not _is_series(values)
    ):
        return _flat_array(pa, values.__array__())
    array = pa.array(values.copy() if _is_series(values) else values)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return _flat_lists(pa, array)


def _flat_array(pa: Any, array: Any) -> tuple[Any, int | None]:
    """The same of an array of NumPy; the copy that `flatten` makes is ours."""
    if array.ndim not in (1, 2):
        raise BadInput(
            f"it has {array.ndim} dimensions, and a table has rows of one value or several"
        )
    width = array.shape[1] if array.ndim == 2 else None
    flat = array.flatten()
    if flat.dtype.kind in "OT":
        return pa.array(flat.tolist()), width
    if (
        flat.dtype.kind == "V" and "float" in flat.dtype.name
    ):  # bfloat16 and its kin, which Arrow does not know
        flat = flat.astype("float32")
    return pa.array(flat.astype(flat.dtype.newbyteorder("="))), width


def _flat_lists(pa: Any, array: Any) -> tuple[Any, int | None]:
    types = pa.types
    if not (
        types.is_list(array.type)
        or types.is_large_list(array.type)
        or types.is_fixed_size_list(array.type)
    ):
        return array, None
    if types.is_fixed_size_list(array.type):
        width = None if array.null_count else array.type.list_size
    else:
        widths = array.value_lengths().unique().to_pylist()
        width = widths[0] if len(widths) == 1 else None
    if width is None and len(array):
        raise BadInput("its rows are of several sizes")
    return array.flatten(), width


def _plain(pa: Any, flat: Any) -> Any:
    """The values in the one type of their kind: int64, float or double, bool, string, or a time."""
    types = pa.types
    if types.is_dictionary(flat.type):
        flat = flat.dictionary_decode()
    if types.is_integer(flat.type):
        return flat.cast(pa.int64())
    if types.is_float16(flat.type):
        return flat.cast(pa.float32())
    if types.is_string(flat.type) or types.is_large_string(flat.type):
        return flat.cast(pa.string())
    if types.is_floating(flat.type) or types.is_boolean(flat.type) or types.is_temporal(flat.type):
        return flat
    if types.is_null(flat.type):
        return flat
    raise BadInput(f"it has values of the type {flat.type}")


def _listed(value: Any) -> Any:
    """An element of a list; arrays and tensors, of one value perhaps, as lists or numbers of Python."""
    if isinstance(value, str | bytes) or not hasattr(value, "__array__"):
        return value
    return _on_the_host(value).tolist()


def _on_the_host(values: Any) -> Any:
    """A tensor of torch as an array of NumPy, wherever it lies; what has rows and columns of names as one too."""
    if hasattr(values, "detach") and hasattr(values, "is_floating_point"):
        if values.is_floating_point() and values.element_size() < 4:  # NumPy has no bfloat16
            values = values.float()
        return values.numpy(force=True)
    if getattr(values, "ndim", None) == 2 and hasattr(values, "to_numpy"):
        return values.to_numpy()
    return values


def _is_series(values: Any) -> bool:
    return type(values).__module__.partition(".")[0] == "pandas"


def _is_finer(pa: Any, known: Any, new: Any) -> bool:
    """Whether a column of the known type holds all values of the new one as they are."""
    return known == pa.float64() and new == pa.float32()


def _said(flat: Any, width: int | None) -> str:
    missing = " with missing values" if flat.null_count else ""
    return f"{flat.type}{missing}" + (f" ({width} a row)" if width else "")
