"""Datasets of Hugging Face as versions: parquet whose bytes depend on rows and features alone, and back."""

# datasets and pyarrow ship no types; what comes from them is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa
from datasets import config
from datasets.table import embed_table_storage
from pyarrow import parquet

import begat
from begat.errors import BadInput

# A row group is what is in memory at once, when it is written and when it is read.
GROUP_BYTES = 64 << 20
MOST_ROWS_OF_A_GROUP = 65_536
SHARD_BYTES = 500 << 20
# Decoded, a table up to here is read into memory; a larger one is mapped from a file.
MEMORY_BYTES = 256 << 20

_SHARD = re.compile(r"(?:data/)?(?P<split>[\w.]+?)(?:-\d{5}-of-\d{5})?\.parquet")


def save_dataset(
    dataset: datasets.Dataset | datasets.DatasetDict,
    name: str,
    *,
    metadata: Mapping[str, Any] | None = None,
    aliases: Iterable[str] = (),
    tags: Iterable[str] = (),
    description: str | None = None,
) -> begat.Version:
    """Log a dataset, or one for each split, as a version of type `dataset`, made by the active run.

    It is stored as parquet, `data/<split>-00000-of-00001.parquet`, with its features; pictures and sounds that lie in
    files are put into it. Equal rows and features give equal bytes, whatever the dataset was made by, and so no new
    version. A training that reads these objects later is detected as one on this version.

    Raises what `begat.log_artifact` raises, and `TypeError` for a dataset that streams.
    """
    splits = _splits_of(dataset)
    is_dict = isinstance(dataset, datasets.DatasetDict)
    facts = {
        "kind": "DatasetDict" if is_dict else "Dataset",
        # A list: the order of the splits is kept.
        "splits": [{"name": split, "rows": len(table)} for split, table in splits.items()],
    }
    with tempfile.TemporaryDirectory(prefix="begat-dataset-") as folder:
        for split, table in splits.items():
            _write(table, split, Path(folder, "data"))
        version = begat.log_artifact(
            name,
            folder,
            type="dataset",
            metadata={**(metadata or {}), "datasets": facts},
            aliases=aliases,
            tags=tags,
            description=description,
        )
    return _recognized(version, splits)


def load_dataset(
    ref: str | begat.Version,
    *,
    keep_in_memory: bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> datasets.Dataset | datasets.DatasetDict:
    """The dataset in a version, or a `DatasetDict` of its splits; the active run is recorded as its consumer.

    Its files are read from begat's own verified folder, without network. What takes more than 256 MiB decoded (or
    everything, with `keep_in_memory=False`) is written as an Arrow file to `begat/` in the cache of `datasets`, or to
    `cache_dir`, once, and mapped into memory from there. A training that reads it is detected as one on this version.

    Other versions with one table for each split (`data/train-00000-of-00002.parquet`, `test.parquet`) can be read too.
    Raises `BadInput` for what else is in a version, and what a reference raises.
    """
    version = begat.use_artifact(ref)
    facts = version.metadata.get("datasets")
    shards = _shards_of(version)
    folder = version.path
    place = Path(cache_dir or Path(config.HF_DATASETS_CACHE, "begat"))
    place = place / version.digest.removeprefix("b3:")
    splits = {
        split: _read([folder / path for path in paths], split, place, keep_in_memory)
        for split, paths in shards.items()
    }
    _recognized(version, splits)
    if isinstance(facts, dict) and cast("dict[str, Any]", facts).get("kind") == "Dataset":
        return next(iter(splits.values()))
    return datasets.DatasetDict({**splits})


def _splits_of(dataset: object) -> dict[str, datasets.Dataset]:
    if isinstance(dataset, datasets.Dataset):
        return {str(dataset.split) if _is_name(dataset.split) else "train": dataset}
    if isinstance(dataset, datasets.DatasetDict):
        if not dataset:
            raise BadInput("the DatasetDict has no split; nothing was stored")
        odd = next((split for split in dataset if not _is_name(split)), None)
        if odd is not None:
            raise BadInput(
                f"a split is named by letters, digits and '_', as in 'train', not {odd!r}; nothing was stored"
            )
        return {str(split): table for split, table in dataset.items()}
    if isinstance(dataset, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise TypeError(
            "a dataset that streams has no rows yet; make it a Dataset first (datasets.Dataset.from_generator)"
        )
    raise TypeError(f"a datasets.Dataset or DatasetDict can be saved, not {type(dataset).__name__}")


def _is_name(split: Any) -> bool:
    return split is not None and re.fullmatch(r"\w+(\.\w+)*", str(split)) is not None


def _recognized(version: begat.Version, splits: Mapping[str, datasets.Dataset]) -> begat.Version:
    """The version, once it is known that these objects hold what it holds."""
    shards = _shards_of(version)
    for split, table in splits.items():
        paths = shards.get(split, [])
        version.recognize(table, path=paths[0] if len(paths) == 1 else "")
    return version


# --- writing ---


def _write(dataset: datasets.Dataset, split: str, folder: Path) -> None:
    """Write the shards of one split. Where they begin depends on the rows alone: never on how they lie in memory."""
    folder.mkdir(exist_ok=True)
    schema = dataset.features.arrow_schema
    written: list[Path] = []
    writer: Any = None
    for group in _groups(dataset, schema):
        if writer is None:
            written.append(folder / f"{len(written)}")
            writer = parquet.ParquetWriter(
                written[-1], schema, compression="zstd", use_content_defined_chunking=True
            )
        writer.write_table(group, row_group_size=max(1, len(group)))
        if written[-1].stat().st_size >= SHARD_BYTES:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    for number, path in enumerate(written):
        path.rename(folder / f"{split}-{number:05d}-of-{len(written):05d}.parquet")


def _groups(dataset: datasets.Dataset, schema: Any) -> Iterator[Any]:
    rows = dataset.with_format("arrow")
    sample = _canonical(rows[: min(len(rows), 1_000)], schema)
    per_row = max(1, sample.nbytes // max(1, len(sample)))
    # A power of two: whether a column without nulls has a bitmap for them is chance, and must not move a border.
    count = 1 << (max(1, min(MOST_ROWS_OF_A_GROUP, GROUP_BYTES // per_row)).bit_length() - 1)
    if len(rows) <= len(sample) <= count:
        yield sample
        return
    for start in range(0, len(rows), count):
        yield _canonical(rows[start : start + count], schema)


def _canonical(table: Any, schema: Any) -> Any:
    """The rows with the schema of the features, and with the bytes of what they only name by path."""
    return embed_table_storage(table.cast(schema)).combine_chunks()


# --- reading ---


def _shards_of(version: begat.Version) -> dict[str, list[str]]:
    shards: dict[str, list[str]] = {}
    for entry in version.files("**/*.parquet"):
        found = _SHARD.fullmatch(entry.path)
        if found is None:
            raise BadInput(
                f"{version.ref} has tables in several folders ({entry.path}); read them from its .path with "
                "datasets.load_dataset"
            )
        shards.setdefault(found["split"], []).append(entry.path)
    if not shards:
        raise BadInput(
            f"{version.ref} holds no parquet files; its .path can be read with datasets.load_dataset"
        )
    known = [one["name"] for one in version.metadata.get("datasets", {}).get("splits", [])]
    return {split: shards[split] for split in dict.fromkeys([*known, *shards]) if split in shards}


def _read(
    files: list[Path], split: str, place: Path, keep_in_memory: bool | None
) -> datasets.Dataset:
    named = datasets.NamedSplit(split)
    if keep_in_memory is None:
        keep_in_memory = sum(map(_decoded_bytes, files)) <= MEMORY_BYTES
    if keep_in_memory:
        table = pa.concat_tables([parquet.read_table(file) for file in files])
        return datasets.Dataset(table, split=named)
    return datasets.Dataset.from_file(str(_arrow_file(files, split, place)), split=named)


def _decoded_bytes(file: Path) -> int:
    facts = parquet.read_metadata(file)
    return sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))


def _arrow_file(files: list[Path], split: str, place: Path) -> Path:
    """The rows as an Arrow file that can be mapped; written once, by whoever comes first."""
    done = place / f"{split}.arrow"
    if done.exists():
        return done
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".writing-") as aside:
        partial = Path(aside, done.name)
        schema = parquet.read_schema(files[0])
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
            for file in files:
                for batch in parquet.ParquetFile(file).iter_batches():
                    stream.write_batch(batch)
        partial.replace(done)
    return done
