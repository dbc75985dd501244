"""What a version's content looks like once it has been loaded: fingerprints to know it again by.

A file is read in the plain way of each library that this process has loaded: nobody trains on what it cannot have
read. Whoever reads it otherwise (some columns, a mapped type) has other content, which is then not known.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from begat.fingerprints import read
from begat.fingerprints.hashing import Budget, Fingerprint, Unknown, loaded
from begat.model import Seen

MOST_ROWS = 2_000
# What is read into memory as a whole; arrays in a cached folder are mapped and may be larger.
MAX_LOADED_BYTES = 256 << 20
# Part of the words that are looked up: other content is tried when this is raised.
READERS_VERSION = 1

Source: TypeAlias = Path | bytes
_COLUMN = "column"


def seen_of(found: Fingerprint, version_uid: str, path: str = "") -> list[Seen]:
    """Fingerprints by which this content, and its parts, are known again as a version's."""
    rows = [Seen(digest, version_uid, path, kind) for digest, kind in _parts(found)]
    return rows[:MOST_ROWS]


def is_column(seen: Seen) -> bool:
    """Whether only a column was seen: labels, or a count, may be the same in tables that have nothing in common."""
    return seen.kind == _COLUMN


def _parts(found: Fingerprint) -> Iterator[tuple[str, str]]:
    if found.digest is not None and found.n_rows != 0 and found.kind != "value":
        yield found.digest, found.kind
    if found.kind == "table":
        for part in found.parts.values():
            if part.digest is not None and part.n_rows != 0:
                yield part.digest, _COLUMN
    elif found.kind != "subset":  # what a subset leaves out is not the version's content
        for part in found.parts.values():
            yield from _parts(part)


# --- files ---


def usable_readers(path: str) -> list[str]:
    """The ways to read a file of this name that this process may have used."""
    suffix = f".{path.rpartition('.')[2].lower()}"
    return [
        name
        for name, (module, suffixes, _) in _READERS.items()
        if suffix in suffixes and loaded(module)
    ]


def read_file(source: Source, path: str, reader: str, budget: Budget) -> list[Fingerprint]:
    """What the content of a file is once it is read in this way: an array, several of them, or a table."""
    size_bytes = source.stat().st_size if isinstance(source, Path) else len(source)
    if size_bytes > MAX_LOADED_BYTES and not path.lower().endswith(".npy"):
        raise Unknown("it is too large to be read for this")
    return [read(value, budget) for value in _READERS[reader][2](source, path.lower(), budget)]


def _opened(source: Source) -> Any:
    return str(source) if isinstance(source, Path) else io.BytesIO(source)


def _with_numpy(source: Source, path: str, budget: Budget) -> Iterator[Any]:
    np = loaded("numpy")
    if path.endswith(".npy"):
        # Mapped where it lies in a folder of our own: nothing of it need be in memory at once.
        mode = "r" if isinstance(source, Path) else None
        yield np.load(_opened(source), mmap_mode=mode, allow_pickle=False)
        return
    with np.load(_opened(source), allow_pickle=False) as archive:
        for member in archive.zip.infolist():
            budget.check_size(member.file_size)
            if member.file_size <= MAX_LOADED_BYTES:
                try:
                    yield archive[member.filename]
                except ValueError:  # objects: what they are is known to pickle only
                    continue


def _with_arrow(source: Source, path: str, budget: Budget) -> Iterator[Any]:
    if path.endswith(".parquet"):
        with import_module("pyarrow.parquet").ParquetFile(_opened(source)) as file:
            groups = range(file.metadata.num_row_groups)
            size_bytes = sum(file.metadata.row_group(at).total_byte_size for at in groups)
            budget.check_size(size_bytes)
            if size_bytes > MAX_LOADED_BYTES:
                raise Unknown("it is too large to be read for this")
            yield file.read()
        return
    arrow = loaded("pyarrow")
    try:
        with arrow.ipc.open_file(_opened(source)) as file:
            yield file.read_all()
    except arrow.ArrowInvalid:  # the form that `datasets` writes
        with arrow.ipc.open_stream(arrow.input_stream(_opened(source))) as stream:
            yield stream.read_all()


def _with_pandas(source: Source, path: str, budget: Budget) -> Iterator[Any]:
    if path.endswith(".csv"):
        yield loaded("pandas").read_csv(_opened(source))
        return
    for table in _with_arrow(source, path, budget):
        yield table.to_pandas()


_READERS: dict[str, tuple[str, tuple[str, ...], Callable[[Source, str, Budget], Iterator[Any]]]] = {
    "numpy": ("numpy", (".npy", ".npz"), _with_numpy),
    "arrow": ("pyarrow", (".parquet", ".arrow", ".feather"), _with_arrow),
    "pandas": ("pandas", (".csv", ".parquet", ".feather"), _with_pandas),
}
