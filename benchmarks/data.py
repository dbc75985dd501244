"""Data made on the spot from seeds: the same bytes in every run, and nothing that compresses by accident."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy

PIECE_BYTES = 4 << 20
SMALL_FILE_BYTES = 20 * 1024
MEDIUM_FILE_BYTES = 2 << 20


class Dice:
    """Bytes that nothing can compress or find twice, from a seed."""

    def __init__(self, seed: int) -> None:
        self._generator = numpy.random.Generator(numpy.random.SFC64(seed))

    def noise(self, length: int) -> bytes:
        """The next bytes."""
        words = self._generator.integers(0, 1 << 64, length // 8 + 1, dtype="uint64")
        return words.tobytes()[:length]

    def pieces(self, length: int) -> Iterator[bytes]:
        """The next bytes, a few megabytes at a time."""
        for at in range(0, length, PIECE_BYTES):
            yield self.noise(min(PIECE_BYTES, length - at))


def write_noise(path: Path, seed: int, length: int) -> None:
    """A file of noise."""
    with path.open("wb") as file:
        file.writelines(Dice(seed).pieces(length))


def write_tensors(path: Path, tensors: Mapping[str, tuple[int, int]]) -> None:
    """A `.safetensors` file of uint8 tensors of noise, given as (seed, length) by name."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (_, length) in tensors.items():
        header[name] = {"dtype": "U8", "shape": [length], "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for seed, length in tensors.values():
            file.writelines(Dice(seed).pieces(length))


def write_model(path: Path, length: int) -> None:
    """A `.safetensors` file as a transformer has it: large matrices, and a bias and two norms beside each."""
    layer = 9 * length // 100
    tensors = {"embed": (1, length - 10 * layer)}
    for number in range(10):
        tensors[f"{number}.norm"] = (100 + number, 4096)
        tensors[f"{number}.bias"] = (200 + number, 4096)
        tensors[f"{number}.up"] = (300 + number, layer // 2)
        tensors[f"{number}.down"] = (400 + number, layer - layer // 2 - 8192)
    write_tensors(path, tensors)


def write_tree(root: Path, files: int, length: int = SMALL_FILE_BYTES) -> None:
    """A tree of files of noise, 500 in a folder."""
    dice = Dice(7)
    for number in range(files):
        folder = root / f"{number // 500:04}"
        if number % 500 == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:06}.bin").write_bytes(dice.noise(length))


def write_table(folder: Path, length: int, *, version: int) -> None:
    """A folder of parquet files of about `length` bytes; in version 2, 1 % of the rows differ and 1 % are new.

    The rows that differ lie in runs of 100, and an append goes to the end of the last file.
    """
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    files = max(1, length // _TABLE_FILE_BYTES)
    rows = length // files // _ROW_BYTES
    for number in range(files):
        columns = _columns(number, rows)
        if version == 2:
            _change(columns, number, rows)
        table = pyarrow.table(_arrow(columns))
        if version == 2 and number == files - 1:
            table = pyarrow.concat_tables(
                [table, pyarrow.table(_arrow(_columns(100, rows * files // 100)))]
            )
        pyarrow.parquet.write_table(table, folder / f"part-{number:03}.parquet")


_TABLE_FILE_BYTES = 70_000_000
_DIMENSIONS = 28
_ROW_BYTES = 228  # as written


def _columns(seed: int, rows: int) -> dict[str, numpy.ndarray]:
    dice = numpy.random.Generator(numpy.random.SFC64(seed))
    return {
        "id": numpy.arange(rows, dtype="int64") + seed * 100_000_000,
        "vector": dice.standard_normal((rows, _DIMENSIONS), dtype="float32"),
        "label": dice.integers(0, 1000, rows, dtype="int32"),
        "text": dice.integers(0, 1 << 62, (rows, 6), dtype="int64"),
    }


def _change(columns: dict[str, numpy.ndarray], seed: int, rows: int) -> None:
    dice = numpy.random.Generator(numpy.random.SFC64(1000 + seed))
    for begin in dice.choice(max(rows - 100, 1), max(rows // 10_000, 1), replace=False):
        run = slice(begin, min(begin + 100, rows))
        count = run.stop - begin
        columns["vector"][run] = dice.standard_normal((count, _DIMENSIONS), dtype="float32")
        columns["label"][run] = dice.integers(0, 1000, count, dtype="int32")
        columns["text"][run] = dice.integers(0, 1 << 62, (count, 6), dtype="int64")


def _arrow(columns: dict[str, numpy.ndarray]) -> dict[str, object]:
    import pyarrow

    texts = columns["text"].tobytes().hex()
    width = 6 * 16
    flat = pyarrow.array(columns["vector"].ravel())
    return {
        "id": pyarrow.array(columns["id"]),
        "vector": pyarrow.FixedSizeListArray.from_arrays(flat, _DIMENSIONS),
        "label": pyarrow.array(columns["label"]),
        "text": pyarrow.array([texts[at : at + width] for at in range(0, len(texts), width)]),
    }
