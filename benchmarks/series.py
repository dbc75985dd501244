"""Series of versions as projects have them, made from seeds: what changes between two is what each is named for."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from data import Dice

_WORDS = 5_000


@dataclass(frozen=True)
class Scale:
    """How large the series are: the width of the models, the bytes of a table or a text, the number of pictures."""

    width: int
    bytes: int
    pictures: int


# --- models: an embedding, twelve layers and a head, in float32 ---

_Model = dict[str, numpy.ndarray]


def _matrix(rows: int, columns: int, seed: int) -> numpy.ndarray:
    dice = numpy.random.Generator(numpy.random.SFC64(seed))
    return dice.standard_normal((rows, columns), dtype="float32") * numpy.float32(0.02)


def _model(
    width: int, *, trained: tuple[str, ...] = (), step: int = 0, words: int = _WORDS
) -> _Model:
    """A transformer; the tensors whose name begins with one of `trained` are those of this step."""
    shapes = {"embed.weight": (words, width), "head.weight": (4 * width, width)}
    for layer in range(12):
        for part in ("q", "k", "v", "o"):
            shapes[f"layers.{layer:02}.{part}.weight"] = (width, width)
        shapes[f"layers.{layer:02}.up.weight"] = (4 * width, width)
        shapes[f"layers.{layer:02}.down.weight"] = (width, 4 * width)
        shapes[f"layers.{layer:02}.norm.weight"] = (1, width)
        shapes[f"layers.{layer:02}.norm.bias"] = (1, width)
    made: _Model = {}
    for number, (name, (rows, columns)) in enumerate(shapes.items()):
        made[name] = _matrix(rows, columns, 1000 + number)
        if name.startswith(trained):
            made[name] += _matrix(rows, columns, 100_000 * step + number) * numpy.float32(0.01)
    return made


def _save(model: _Model, path: Path) -> None:
    if path.suffix == ".safetensors":
        import safetensors.numpy

        safetensors.numpy.save_file(model, path)
        return
    import torch

    torch.save({name: torch.from_numpy(value) for name, value in model.items()}, path)


def _trained(
    folder: Path, scale: Scale, trained: tuple[str, ...], suffix: str = ".safetensors"
) -> Iterator[Path]:
    for step in range(4):
        path = folder / str(step) / f"model{suffix}"
        path.parent.mkdir()
        _save(_model(scale.width, trained=trained, step=step), path)
        yield path


def frozen_backbone(folder: Path, scale: Scale) -> Iterator[Path]:
    """Four steps of a training of the head alone."""
    return _trained(folder, scale, ("head",))


def frozen_backbone_pt(folder: Path, scale: Scale) -> Iterator[Path]:
    """The same, saved by torch."""
    return _trained(folder, scale, ("head",), ".pt")


def two_layers(folder: Path, scale: Scale) -> Iterator[Path]:
    """Four steps of a training of the last two layers and the head."""
    return _trained(folder, scale, ("head", "layers.10", "layers.11"))


def full_fine_tune(folder: Path, scale: Scale) -> Iterator[Path]:
    """Four steps of a training of everything: every number differs."""
    return _trained(folder, scale, ("",))


def lora(folder: Path, scale: Scale) -> Iterator[Path]:
    """Four steps of an adapter, each saved with the model that it adapts."""
    for step in range(4):
        place = folder / str(step)
        place.mkdir()
        _save(_model(scale.width), place / "base.safetensors")
        adapter = {
            f"layers.{layer:02}.{half}": _matrix(8, scale.width, 1_000 * step + 2 * layer + at)
            for layer in range(12)
            for at, half in enumerate("ab")
        }
        _save(adapter, place / "adapter.safetensors")
        yield place


def vocabulary_growth(folder: Path, scale: Scale) -> Iterator[Path]:
    """A model, and the same with one word in fifty added at the end of its embedding."""
    for step, words in enumerate((_WORDS, _WORDS + _WORDS // 50)):
        path = folder / str(step) / "model.safetensors"
        path.parent.mkdir()
        model = _model(scale.width)
        more = _matrix(words - _WORDS, scale.width, 5)
        model["embed.weight"] = numpy.concatenate([model["embed.weight"], more])
        _save(model, path)
        yield path


# --- tables ---


def _table(rows: int, seed: int = 0) -> Any:
    import pyarrow

    dice = numpy.random.Generator(numpy.random.SFC64(seed))
    words = numpy.array([f"word{number}" for number in range(1000)])
    return pyarrow.table(
        {
            "id": numpy.arange(rows) + 10_000_000 * seed,
            "value": dice.standard_normal(rows),
            "other": dice.standard_normal(rows, dtype="float32"),
            "label": dice.integers(0, 10, rows, dtype="int32"),
            "word": words[dice.integers(0, 1000, rows)],
        }
    )


def _two_tables(folder: Path, scale: Scale, change: Any) -> Iterator[Path]:
    import pyarrow.parquet

    table = _table(scale.bytes // 26)
    for step, version in enumerate((table, change(table))):
        path = folder / str(step) / "table.parquet"
        path.parent.mkdir()
        pyarrow.parquet.write_table(version, path)
        yield path


def parquet_append(folder: Path, scale: Scale) -> Iterator[Path]:
    """A parquet file, and the same with 1 % more rows at its end."""
    import pyarrow

    return _two_tables(
        folder, scale, lambda table: pyarrow.concat_tables([table, _table(len(table) // 100, 1)])
    )


def parquet_update(folder: Path, scale: Scale) -> Iterator[Path]:
    """A parquet file, and the same with one column of 1 % of the rows changed, scattered."""
    import pyarrow

    def change(table: Any) -> Any:
        values = table["value"].to_numpy().copy()
        dice = numpy.random.Generator(numpy.random.SFC64(9))
        values[dice.integers(0, len(values), len(values) // 100)] += 1
        return table.set_column(1, "value", pyarrow.array(values))

    return _two_tables(folder, scale, change)


def parquet_delete(folder: Path, scale: Scale) -> Iterator[Path]:
    """A parquet file, and the same without 1 % of the rows, in its middle."""
    import pyarrow

    def change(table: Any) -> Any:
        half, gap = len(table) // 2, len(table) // 100
        return pyarrow.concat_tables([table[:half], table[half + gap :]]).combine_chunks()

    return _two_tables(folder, scale, change)


def parquet_column(folder: Path, scale: Scale) -> Iterator[Path]:
    """A parquet file, and the same with one more column."""
    return _two_tables(
        folder,
        scale,
        lambda table: table.append_column(
            "more", [_table(len(table), 3)["other"].combine_chunks()]
        ),
    )


# --- what is not a table ---


def jsonl_edits(folder: Path, scale: Scale) -> Iterator[Path]:
    """A file of JSON lines, and three times twenty of them edited."""
    dice = numpy.random.Generator(numpy.random.SFC64(2))
    words = [f"{number:x}".translate(_LETTERS) for number in dice.integers(1 << 12, 1 << 28, 3_000)]
    chosen = dice.zipf(1.2, scale.bytes // 6) % len(words)
    lines = [
        json.dumps(
            {"id": number, "text": " ".join(words[word] for word in chosen[number * 30 :][:30])}
        )
        for number in range(scale.bytes // 250)
    ]
    for step in range(4):
        for line in dice.integers(0, len(lines), 20 if step else 0):
            lines[line] = json.dumps(
                {"id": int(line), "text": f"edited in step {step}", "by": "ada"}
            )
        path = folder / str(step) / "train.jsonl"
        path.parent.mkdir()
        path.write_text("\n".join(lines))
        yield path


_LETTERS = str.maketrans("0123456789abcdef", "etaoinshrdlcumwf")


def npy_append(folder: Path, scale: Scale) -> Iterator[Path]:
    """A numpy array, and the same with 1 % more rows."""
    rows = scale.bytes // 256
    array = _matrix(rows + rows // 100, 64, 11)
    for step, version in enumerate((array[:rows], array)):
        path = folder / str(step) / "features.npy"
        path.parent.mkdir()
        numpy.save(path, version)
        yield path


def _pictures(scale: Scale, step: int) -> Iterator[tuple[str, bytes]]:
    """Files of 20 to 60 KB; in the second step one in a hundred is gone, and as many are new."""
    count, few = scale.pictures, max(1, scale.pictures // 100)
    gone = set(range(count // 3, count // 3 + few * 10, 10)) if step else set[int]()
    new = range(count, count + few) if step else range(0)
    for number in [*range(count), *new]:
        if number not in gone:
            dice = Dice(20_000 + number)
            yield f"{number * 7919 % 10_000:05}.jpg", dice.noise(20_000 + number * 613 % 40_000)


def pictures(folder: Path, scale: Scale) -> Iterator[Path]:
    """A folder of pictures, and the same with 1 % gone and 1 % new."""
    for step in range(2):
        place = folder / str(step)
        place.mkdir()
        for name, content in _pictures(scale, step):
            (place / name).write_bytes(content)
        yield place


def pictures_tar(folder: Path, scale: Scale) -> Iterator[Path]:
    """The same pictures as a tar file."""
    for step in range(2):
        path = folder / str(step) / "pictures.tar"
        path.parent.mkdir()
        with tarfile.open(path, "w") as tar:
            for name, content in sorted(_pictures(scale, step)):
                facts = tarfile.TarInfo(name)
                facts.size = len(content)
                tar.addfile(facts, io.BytesIO(content))
        yield path


def pictures_zip(folder: Path, scale: Scale) -> Iterator[Path]:
    """The same pictures as a zip file."""
    import zipfile

    for step in range(2):
        path = folder / str(step) / "pictures.zip"
        path.parent.mkdir()
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in sorted(_pictures(scale, step)):
                archive.writestr(zipfile.ZipInfo(name), content)
        yield path
