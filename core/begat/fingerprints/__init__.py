"""What data is, known by its content: a digest of all of it, for objects of the usual libraries, files and folders.

No framework is imported for this: an object's library is in the process already. Nothing is iterated, no item of a
data set is asked for, no random state moves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import PurePath
from typing import Any

from begat.fingerprints.arrays import (
    jax_array,
    numpy_array,
    numpy_scalar,
    sparse_matrix,
    torch_tensor,
)
from begat.fingerprints.arrow import (
    arrow_array,
    arrow_dataset,
    arrow_table,
    hugging_face_dataset,
)
from begat.fingerprints.containers import (
    PLAIN,
    Reader,
    Way,
    is_of_torch,
    items,
    loader_or_stream,
    map_style,
    mapping,
    of_torch,
    plain_value,
    strange,
)
from begat.fingerprints.frames import pandas_array, pandas_frame, pandas_index, pandas_series
from begat.fingerprints.hashing import Budget, Fingerprint, is_kind

__all__ = ["MAX_BYTES", "MAX_SECONDS", "Fingerprint", "fingerprint"]

MAX_BYTES = 2 << 30
MAX_SECONDS = 5.0

# Module, classes, kind of content, and how it is read; the first that fits.
_READERS: list[tuple[str, tuple[str, ...], str, Callable[[Any, Budget], Fingerprint]]] = [
    ("numpy", ("ndarray",), "array", numpy_array),
    ("numpy", ("generic",), "value", numpy_scalar),
    ("torch", ("Tensor",), "array", torch_tensor),
    ("jax", ("Array",), "array", jax_array),
    ("pandas", ("DataFrame",), "table", pandas_frame),
    ("pandas", ("Series",), "table", pandas_series),
    ("pandas", ("Index",), "table", pandas_index),
    ("pandas.api.extensions", ("ExtensionArray",), "array", pandas_array),
    ("datasets", ("Dataset",), "table", hugging_face_dataset),
    ("pyarrow", ("Table", "RecordBatch"), "table", arrow_table),
    ("pyarrow", ("Array", "ChunkedArray"), "array", arrow_array),
    ("pyarrow.dataset", ("Dataset",), "table", arrow_dataset),
    ("scipy.sparse", ("spmatrix", "sparray"), "sparse", sparse_matrix),
]


def fingerprint(
    obj: object, *, max_bytes: int = MAX_BYTES, max_seconds: float = MAX_SECONDS
) -> Fingerprint:
    """The fingerprint of an object's content: equal digests mean equal values, types, shapes and names.

    Known are arrays (NumPy, torch, JAX), sparse matrices, tables (pandas, Arrow, Hugging Face), torch's data sets of
    tensors and parts of them, lists and dicts of those, files, folders (by path) and versions of begat. The digest is
    None, and `how` says why, where content cannot be known without consuming it, or not within `max_bytes` and
    `max_seconds`. Never raises for what an object is; never reads from a loader or data set.
    """
    return read(obj, Budget(max_bytes, max_seconds))


def read(value: object, budget: Budget, *, reads_paths: bool = True) -> Fingerprint:
    """The fingerprint of an object within a budget; without `reads_paths` no file is opened for it."""
    reader = Reader(budget, _way_of, reads_paths=reads_paths)
    if isinstance(value, str):
        return reader.guarded("file", lambda: reader.read_path(value))
    return reader.read(value)


def _way_of(kind: type[Any]) -> Way:
    if kind in PLAIN:
        return "value", plain_value
    for module, names, what, read in _READERS:
        if is_kind(kind, module, *names):
            return what, partial(_read_with, read)
    if is_kind(kind, "begat.version", "Version"):
        return "version", _version
    if issubclass(kind, PurePath):
        return "file", lambda one, reader: reader.read_path(one)
    if issubclass(kind, dict):
        return "dict", mapping
    if issubclass(kind, list | tuple):
        return "list", items
    if is_of_torch(kind):
        return "torch", of_torch
    if hasattr(kind, "__iter__") and not hasattr(kind, "__getitem__"):
        return "stream", loader_or_stream
    if is_kind(kind, "torch.utils.data", "IterableDataset"):
        return "stream", loader_or_stream
    if hasattr(kind, "__getitem__") or is_kind(kind, "torch.utils.data", "Dataset"):
        return "dataset", map_style
    return "unknown", strange


def _read_with(
    read: Callable[[Any, Budget], Fingerprint], value: Any, reader: Reader
) -> Fingerprint:
    return read(value, reader.budget)


def _version(version: Any, _reader: Reader) -> Fingerprint:
    how = "the content digest of the version"
    return Fingerprint("version", version.digest, version.ref, None, how, exact=True)
