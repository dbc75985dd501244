"""Datasets of Hugging Face as versions: what is kept, equal bytes for equal rows, and where files are put."""

import datetime
import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Picture
from pyarrow import parquet

import begat
from begat.errors import ArtifactNotFound, BadInput, MissingExtra
from begat_huggingface import load_dataset, save_dataset, tables


@pytest.fixture(autouse=True)
def cache(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of `datasets`, which it reads from the environment when it is imported."""
    place = isolated / "huggingface-datasets"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", place)
    return place


@pytest.fixture(params=["memory", "mapped"])
def load(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Any]:
    """`load_dataset` in both of its ways."""
    in_memory = request.param == "memory"
    return lambda ref: load_dataset(ref, keep_in_memory=in_memory, cache_dir=tmp_path / "arrow")


def numbers(count: int = 1_000) -> Dataset:
    return Dataset.from_dict(
        {
            "id": list(range(count)),
            "text": [f"row {number}" if number % 7 else None for number in range(count)],
            "label": [number % 3 for number in range(count)],
        },
        features=Features(
            {
                "id": Value("int64"),
                "text": Value("string"),
                "label": ClassLabel(names=["low", "middle", "high"]),
            }
        ),
    )


def loaded(ref: str | begat.Version) -> Dataset:
    dataset = load_dataset(ref)
    assert isinstance(dataset, Dataset)
    return dataset


# --- there and back ---


def test_a_dataset_comes_back_as_it_was(load: Callable[[Any], Dataset]) -> None:
    dataset = numbers()
    version = save_dataset(dataset, "numbers", metadata={"source": "here"}, aliases=["best"])
    assert (version.ref, version.type, version.is_new) == ("numbers:v1", "dataset", True)
    assert [entry.path for entry in version.entries] == ["data/train-00000-of-00001.parquet"]
    assert version.metadata == {
        "source": "here",
        "datasets": {"kind": "Dataset", "splits": [{"name": "train", "rows": 1000}]},
    }
    back = load("numbers:best")
    assert back.features == dataset.features
    assert back.features["label"].int2str(2) == "high"
    assert back.to_dict() == dataset.to_dict()


def test_splits_come_back_in_their_order(load: Callable[[Any], DatasetDict]) -> None:
    splits = DatasetDict({"train": numbers(5), "test": numbers(3), "dev.small": numbers(2)})
    version = save_dataset(splits, "numbers")
    assert sorted(entry.path for entry in version.entries) == [
        "data/dev.small-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]
    back = load(version)
    assert isinstance(back, DatasetDict)
    assert list(back) == ["train", "test", "dev.small"]
    assert {split: len(rows) for split, rows in back.items()} == {
        "train": 5,
        "test": 3,
        "dev.small": 2,
    }


def test_one_split_is_kept_by_its_name(load: Callable[[Any], Dataset]) -> None:
    dataset = DatasetDict({"test": numbers(3)})["test"]
    dataset = Dataset(dataset.data, split=datasets.Split.TEST)
    version = save_dataset(dataset, "numbers")
    assert version.files()[0].path == "data/test-00000-of-00001.parquet"
    back = load(version)
    assert (len(back), back.split) == (3, "test")


def picture(shade: int) -> Picture.Image:
    return Picture.fromarray(np.full((4, 4), shade, dtype=np.uint8))


KINDS: dict[str, tuple[Any, list[Any]]] = {
    "float16": (Value("float16"), [1.5, None]),
    "time": (Value("timestamp[us, tz=UTC]"), [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)]),
    "date": (Value("date32"), [datetime.date(2026, 1, 2)]),
    "bytes": (Value("binary"), [b"\0\xff", None]),
    "long text": (Value("large_string"), ["x" * 1000]),
    "lists": (List(Value("int8")), [[1, 2], [], None]),
    "fixed lists": (List(Value("float32"), length=2), [[1.0, 2.0]]),
    "nested": ({"a": Value("int64"), "b": List({"c": ClassLabel(names=["x", "y"])})}, [{"a": 1, "b": [{"c": 1}]}]),
    "array": (Array2D(shape=(2, 2), dtype="float32"), [[[1.0, 2.0], [3.0, 4.0]]]),
    "image": (Image(), [picture(3)]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_kept(kind: str, load: Callable[[Any], Dataset]) -> None:
    feature, values = KINDS[kind]
    dataset = Dataset.from_dict({"x": values}, features=Features({"x": feature}))
    back = load(save_dataset(dataset, "kinds"))
    assert back.features == dataset.features
    assert back.data.table.equals(dataset.data.table)


def test_pictures_in_files_are_put_into_the_version(
    tmp_path: Path, load: Callable[[Any], Dataset]
) -> None:
    picture(200).save(tmp_path / "one.png")
    paths = Dataset.from_dict({"image": [str(tmp_path / "one.png")]})
    version = save_dataset(paths.cast_column("image", Image()), "pictures")
    (tmp_path / "one.png").unlink()
    assert np.asarray(load(version)[0]["image"]).max() == 200


def test_sounds_are_kept(load: Callable[[Any], Dataset]) -> None:
    raw = Dataset.from_dict({"sound": [{"bytes": b"RIFF", "path": "a.wav"}]})
    back = load(save_dataset(raw.cast_column("sound", datasets.Audio(decode=False)), "sounds"))
    assert back.features["sound"] == datasets.Audio(decode=False)
    assert back[0]["sound"] == {"bytes": b"RIFF", "path": "a.wav"}


@pytest.mark.parametrize("count", [0, 1])
def test_few_rows_come_back(count: int, load: Callable[[Any], Dataset]) -> None:
    back = load(save_dataset(numbers(count), "numbers"))
    assert (len(back), back.features) == (count, numbers().features)


def test_many_rows_go_to_several_files(
    monkeypatch: pytest.MonkeyPatch, load: Callable[[Any], Dataset]
) -> None:
    monkeypatch.setattr(tables, "GROUP_BYTES", 4_000)
    monkeypatch.setattr(tables, "SHARD_BYTES", 10_000)
    dataset = numbers(5_000)
    version = save_dataset(dataset, "numbers")
    assert version.file_count > 3
    assert load(version).to_dict() == dataset.to_dict()


# --- equal rows, equal bytes ---


def save_and_map(dataset: Dataset, folder: Path) -> Dataset:
    dataset.save_to_disk(folder)
    return datasets.Dataset.load_from_disk(folder)


SAME: dict[str, Callable[[Dataset, Path], Dataset]] = {
    "in pieces": lambda one, _: datasets.concatenate_datasets(
        [one.select(range(start, min(start + 77, len(one)))) for start in range(0, len(one), 77)]
    ),
    "selected": lambda one, _: one.select(list(range(len(one)))),
    "put in order": lambda one, _: one.select(reversed(range(len(one)))).select(
        list(reversed(range(len(one))))
    ),
    "cut out": lambda one, _: datasets.concatenate_datasets([one, one]).select(
        range(len(one), 2 * len(one))
    ),
    "formatted": lambda one, _: one.with_format("numpy", columns=["id"]),
    "from disk": save_and_map,
    "from pandas": lambda one, _: Dataset.from_pandas(
        one.data.table.to_pandas(), features=one.features, preserve_index=False
    ),
    "mapped": lambda one, _: one.map(lambda row: row),
}


@pytest.mark.parametrize("way", SAME)
def test_equal_rows_are_no_new_version(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "GROUP_BYTES", 20_000)
    first = save_dataset(numbers(3_000), "numbers")
    again = save_dataset(SAME[way](numbers(3_000), tmp_path / "disk"), "numbers")
    assert (again, again.is_new) == (first, False)


def test_what_was_loaded_is_no_new_version(load: Callable[[Any], Dataset]) -> None:
    version = save_dataset(numbers(), "numbers")
    assert save_dataset(load(version), "numbers") == version


def test_one_changed_value_or_name_is_a_new_version() -> None:
    dataset = numbers()
    save_dataset(dataset, "numbers")
    rows = {name: dataset[name][:] for name in dataset.column_names}
    rows["id"][-1] += 1
    assert save_dataset(Dataset.from_dict(rows, features=dataset.features), "numbers").number == 2
    assert save_dataset(dataset.rename_column("id", "number"), "numbers").number == 3
    named = dataset.cast_column("label", ClassLabel(names=["low", "middle", "top"]))
    assert save_dataset(named, "numbers").number == 4


def test_another_process_writes_the_same_bytes() -> None:
    digests = {save_dataset(numbers(), "numbers").digest}
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
        "from integrations.test_huggingface_tables import numbers\n"
        "from begat_huggingface import save_dataset\n"
        "print(save_dataset(numbers(), 'elsewhere').digest)"
    )
    root = Path(__file__).parents[2]
    paths = ":".join(str(root / name) for name in ("core", "integrations", "tests"))
    done = subprocess.run(
        [sys.executable, "-c", code, paths],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.returncode == 0, done.stderr
    assert {done.stdout.strip()} == digests


# --- runs ---


def test_runs_make_and_use_datasets() -> None:
    with begat.start_run("collect") as first:
        version = save_dataset(numbers(), "numbers")
    with begat.start_run("train") as second:
        load_dataset("numbers:latest")
    assert first.outputs == second.inputs == (version,)
    assert [edge.requested for edge in second.edges] == ["numbers:latest"]
    load_dataset("numbers:latest")
    assert version.consumed_by == (second,)


@pytest.mark.parametrize("what", ["the object", "equal rows", "a split", "loaded"])
def test_a_training_on_it_is_detected(what: str, load: Callable[[Any], Any]) -> None:
    splits = DatasetDict({"train": numbers(300), "test": numbers(200)})
    version = save_dataset(splits, "numbers")
    read: dict[str, Callable[[], Any]] = {
        "the object": lambda: splits["train"],
        "equal rows": lambda: numbers(300),
        "a split": lambda: splits["test"].select(range(200)),
        "loaded": lambda: load(version)["train"],
    }
    data = read[what]()
    with begat.start_run("train") as run:
        recorder = begat.Recorder.attach(run)
        assert recorder.observe(data) == ("numbers:v1",)
    [edge] = run.edges
    assert (edge.version_uid, edge.is_detected) == (version.uid, True)


def test_another_version_than_the_declared_one_is_warned_of() -> None:
    old = save_dataset(numbers(300), "numbers")
    save_dataset(numbers(301), "numbers")
    with begat.start_run("train", uses=["numbers:latest"]) as run:
        with pytest.warns(begat.BegatWarning, match="numbers:v1"):
            assert begat.Recorder.attach(run).observe(numbers(300)) == ("numbers:v1",)
    assert [version.ref for version in run.inputs] == ["numbers:v2", "numbers:v1"]
    assert run.edges[-1].version_uid == old.uid


def test_other_rows_are_no_version() -> None:
    save_dataset(numbers(300), "numbers")
    rows = {**numbers(300).with_format("python")[:], "id": [*range(299), 0]}
    with begat.start_run("train") as run:
        other = Dataset.from_dict(rows, features=numbers().features)
        assert begat.Recorder.attach(run).observe(other) == ()
    assert run.inputs == ()


# --- where files are put ---


def test_loading_asks_no_network_and_leaves_nothing_in_other_caches(
    monkeypatch: pytest.MonkeyPatch, cache: Path, isolated: Path
) -> None:
    version = save_dataset(numbers(), "numbers")

    def refuse(*_: object) -> None:
        raise AssertionError("nobody is to be asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    rows = loaded("numbers")
    assert len(rows.map(lambda row: {"twice": 2 * row["id"]})) == 1_000
    assert not cache.exists()
    assert sorted(one.name for one in isolated.iterdir()) == ["cache", "home", "store", "work"]
    assert list((isolated / "home").iterdir()) == []
    assert version.verify() == ()


def test_what_is_large_is_mapped_from_the_cache_of_datasets_and_written_there_once(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(tables, "MEMORY_BYTES", 100)
    version = save_dataset(numbers(), "numbers")
    rows = loaded(version)
    [file] = [Path(one["filename"]) for one in rows.cache_files]
    assert file == cache / "begat" / version.digest.removeprefix("b3:") / "train.arrow"
    before = file.stat()
    assert loaded(version).to_dict() == rows.to_dict()
    assert file.stat() == before
    assert [one.name for one in file.parent.iterdir()] == ["train.arrow"]
    # What `map` writes goes beside it, and not into begat's read-only folder.
    rows.map(lambda row: {"twice": 2 * row["id"]})
    assert len(list(file.parent.glob("cache-*.arrow"))) == 1


def test_the_files_that_it_reads_are_the_verified_ones() -> None:
    version = save_dataset(numbers(), "numbers")
    file = version.file
    file.chmod(0o644)
    file.write_bytes(b"damaged")
    assert len(load_dataset(version)) == 1_000


# --- other versions ---


def test_parquet_of_others_can_be_read(tmp_path: Path, load: Callable[[Any], DatasetDict]) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
        numbers(4).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "README.md").write_text("mine")
    begat.log_artifact("theirs", tmp_path)
    back = load("theirs")
    assert {split: len(rows) for split, rows in back.items()} == {"test": 4, "train": 8}


def test_what_is_no_dataset_is_said_to_be_none(tmp_path: Path) -> None:
    begat.log_artifact("text", b"words")
    with pytest.raises(BadInput, match="text:v1 holds no parquet files"):
        load_dataset("text")
    (tmp_path / "en").mkdir()
    numbers(2).to_parquet(tmp_path / "en/train.parquet")
    begat.log_artifact("languages", tmp_path)
    with pytest.raises(BadInput, match="several folders"):
        load_dataset("languages")
    with pytest.raises(ArtifactNotFound):
        load_dataset("nothing")


def test_what_is_no_dataset_is_not_saved() -> None:
    with pytest.raises(TypeError, match="streams"):
        save_dataset(numbers().to_iterable_dataset(), "numbers")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not DataFrame"):
        save_dataset(numbers().to_pandas(), "numbers")  # type: ignore[arg-type]
    with pytest.raises(BadInput):
        save_dataset(DatasetDict(), "numbers")
    with pytest.raises(BadInput, match="not 'train-clean'"):
        save_dataset(DatasetDict({"train-clean": numbers(1)}), "numbers")
    assert begat.open_store().artifacts() == []


def test_datasets_reads_a_pushed_repository_as_it_is(tmp_path: Path) -> None:
    """`begat.json` beside the data must not be taken for data."""
    version = save_dataset(DatasetDict({"train": numbers(4), "test": numbers(2)}), "numbers")
    place = version.download(tmp_path / "repository")
    (place / "begat.json").write_text('{"begat": 1}')
    back = datasets.load_dataset(str(place), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in back.items()} == {"train": 4, "test": 2}
    assert back["train"].features == numbers().features


@pytest.mark.parametrize("missing", ["datasets", "huggingface_hub", "pyarrow"])
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("begat_huggingface")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtra, match=rf'{missing}.*pip install "begat\[huggingface\]"'):
        import begat_huggingface  # noqa: F401


def test_memory_is_bounded_by_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the dataset is, no table that is written is larger than a row group."""
    monkeypatch.setattr(tables, "GROUP_BYTES", 50_000)
    seen: list[int] = []
    canonical = tables._canonical

    def watched(table: pa.Table, schema: pa.Schema) -> pa.Table:
        done = canonical(table, schema)
        seen.append(done.nbytes)
        return done

    monkeypatch.setattr(tables, "_canonical", watched)
    save_dataset(numbers(50_000), "numbers")
    assert len(seen) > 10
    assert max(seen) <= 50_000


def test_parquet_is_what_it_says() -> None:
    data = save_dataset(numbers(10), "numbers").read_bytes("data/train-00000-of-00001.parquet")
    facts = parquet.read_metadata(io.BytesIO(data))
    assert facts.num_rows == 10
    assert facts.row_group(0).column(0).compression == "ZSTD"
