"""A recorder knows data by its content: what was loaded from a version's files, and what was registered as one's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, random_split

import begat
from begat import Recorder, handed_out
from begat.errors import BegatWarning
from begat.model import Edge
from command_line import done

_attached: list[Recorder] = []


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Nothing is known by where it lies, and no run of the test stays open."""
    handed_out._given.clear()
    handed_out._objects.clear()
    yield
    while _attached:
        _attached.pop().finish()


@pytest.fixture
def store() -> begat.Store:
    return begat.open_store()


def arrays(content: int) -> tuple[Any, Any]:
    x = np.random.default_rng(content).random((20, 3)).astype("f4")
    return x, np.arange(20) % 2  # the labels are the same in every version


def log_arrays(store: begat.Store, content: int, name: str = "digits") -> begat.Version:
    folder = Path(f"arrays-{content}")
    folder.mkdir(exist_ok=True)
    x, y = arrays(content)
    np.save(folder / "x.npy", x)
    np.savez(folder / "more.npz", y=y, xt=x.T)
    return store.log_artifact(name, folder, type="dataset")


def frame(content: int) -> pd.DataFrame:
    x, y = arrays(content)
    data: dict[str, Any] = {f"f{at}": x[:, at] for at in range(3)}
    return pd.DataFrame({**data, "word": [f"w{n}" for n in range(20)], "label": y})


def log_frame(store: begat.Store, content: int, suffix: str, name: str = "table") -> begat.Version:
    folder = Path(f"{suffix}-{content}")
    folder.mkdir(exist_ok=True)
    path = folder / f"train.{suffix}"
    if suffix == "csv":
        frame(content).to_csv(path, index=False)
    elif suffix == "feather":
        frame(content).to_feather(path)
    else:
        frame(content).to_parquet(path)
    return store.log_artifact(name, folder, type="dataset")


def attach(*uses: str | begat.Version, **options: Any) -> Recorder:
    """A recorder for a run of its own."""
    while _attached:
        _attached.pop().finish()
    recorder = Recorder.attach(**{"name": "net", "job": "train", **options})
    _attached.append(recorder)
    recorder.consume(uses)
    return recorder


def edges(recorder: Recorder) -> dict[str, Edge]:
    assert recorder.run is not None
    found = {edge.version_uid: edge for edge in recorder.run.edges}
    return {recorder.store.catalog.versions.get(uid).ref: edge for uid, edge in found.items()}


def observed(recorder: Recorder, data: Any, **options: Any) -> tuple[tuple[str, ...], list[str]]:
    """What was detected, and what was warned of meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refs = recorder.observe(data, **options)
    return refs, [str(one.message) for one in caught if issubclass(one.category, BegatWarning)]


def data_of(recorder: Recorder) -> dict[str, Any]:
    assert recorder.run is not None
    return dict(recorder.run.params["begat.data"])


# --- what was loaded from the files of a declared version ---


@pytest.mark.parametrize("is_cached", [True, False])
def test_arrays_loaded_from_the_declared_version_are_detected(
    store: begat.Store, is_cached: bool
) -> None:
    version = log_arrays(store, 1)
    if is_cached:
        assert np.load(version.path / "x.npy").shape == (20, 3)
        handed_out._given.clear()
    x, y = arrays(1)
    recorder = attach("digits:latest")
    assert observed(recorder, {"X": x, "y": y}) == (("digits:v1",), [])
    edge = edges(recorder)["digits:v1"]
    assert (edge.is_declared, edge.is_detected, edge.mismatch) == (True, True, None)


def test_what_is_made_of_a_versions_arrays_is_detected(store: begat.Store) -> None:
    log_arrays(store, 1)
    x, y = arrays(1)
    whole = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    train, held_back = random_split(whole, [15, 5])
    for data in (x, x.T, whole, train, Subset(whole, [1]), DataLoader(held_back, shuffle=True)):
        assert observed(attach("digits"), data) == (("digits:v1",), [])


def test_arrays_of_another_version_than_declared_are_warned_of_once_and_recorded(
    store: begat.Store,
) -> None:
    log_arrays(store, 1)
    log_arrays(store, 2)
    x, y = arrays(1)
    recorder = attach("digits:v2")
    assert recorder.run is not None
    text = "declared digits:v2, but the training data comes from digits:v1"
    # The labels are those of both versions; the features tell which it is.
    refs, said = observed(recorder, [x, y])
    assert (refs, said) == (
        ("digits:v1",),
        [f"{text}; both are recorded (begat show {recorder.run.id})"],
    )
    assert observed(recorder, [x, y]) == (("digits:v1",), [])
    assert edges(recorder)["digits:v2"].mismatch == text
    assert edges(recorder)["digits:v1"].is_detected
    shown = done("show", recorder.run.id).out
    assert f"mismatch  {text}\n" in shown
    assert "from digits:v1" in shown


@pytest.mark.parametrize("suffix", ["parquet", "csv", "feather"])
def test_a_table_and_the_columns_of_one_are_detected(store: begat.Store, suffix: str) -> None:
    version = log_frame(store, 1, suffix)
    log_frame(store, 2, suffix)
    readers: Any = {"csv": pd.read_csv, "parquet": pd.read_parquet, "feather": pd.read_feather}
    loaded = readers[suffix](version.path / f"train.{suffix}")
    handed_out._given.clear()
    recorder = attach("table:v2")
    refs, said = observed(recorder, {"X": loaded.drop(columns="label"), "y": loaded["label"]})
    assert refs == ("table:v1",)
    assert len(said) == 1
    assert observed(attach("table:v1"), loaded) == (("table:v1",), [])
    assert observed(attach("table:v1"), datasets.Dataset.from_pandas(loaded)) == (
        ("table:v1",),
        [],
    )


def test_labels_alone_do_not_tell_of_a_version_that_was_not_declared(store: begat.Store) -> None:
    log_frame(store, 1, "parquet")
    recorder = attach("table")
    observed(recorder, frame(1))
    assert observed(attach(), frame(1)["label"]) == ((), [])
    assert observed(attach(), frame(1)) == (("table:v1",), [])  # all of it does


def test_changed_content_is_not_taken_for_a_version(store: begat.Store) -> None:
    log_arrays(store, 1)
    x, _ = arrays(1)
    x[7, 1] += 1
    recorder = attach("digits")
    assert observed(recorder, x) == ((), [])
    assert edges(recorder)["digits:v1"].is_detected is False


def test_a_file_that_did_not_change_is_that_of_the_declared_version_too(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_arrays(store, 1)
    x, _ = arrays(1)
    assert observed(attach("digits:v1"), x) == (("digits:v1",), [])
    Path("arrays-1/notes.txt").write_text("only this is new")
    store.log_artifact("digits", "arrays-1")
    # Also where the newer one cannot be read, in time or at all: the manifest tells that the file is the same.
    monkeypatch.setattr("begat.recording.matching.read_file", lambda *_: [])
    recorder = attach("digits:v2")
    assert observed(recorder, x) == (("digits:v2",), [])
    assert edges(recorder)["digits:v2"].mismatch is None


def test_a_declared_table_with_a_column_more_is_no_mismatch(store: begat.Store) -> None:
    version = store.log_artifact("table", b"any", type="dataset")
    version.recognize(frame(1).drop(columns="word"))
    log_frame(store, 1, "parquet")
    recorder = attach("table:v2")
    assert observed(recorder, frame(1).drop(columns="word")) == (("table:v2",), [])


def test_stored_files_are_read_once(store: begat.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log_arrays(store, 1)
    recorder = attach("digits")
    assert observed(recorder, arrays(9)[0]) == ((), [])
    monkeypatch.setattr("begat.recording.matching.read_file", None)
    assert observed(attach("digits"), arrays(1)[0]) == (("digits:v1",), [])
    assert observed(attach("digits"), arrays(9)[0]) == ((), [])


def test_files_that_cannot_be_read_are_passed_over(store: begat.Store) -> None:
    folder = Path("odd")
    folder.mkdir()
    for name in ("a.npy", "b.npz", "c.parquet", "d.csv", "e.arrow", "f.feather"):
        (folder / name).write_bytes(b"\x93nothing of the kind")
    np.save(folder / "objects.npy", np.array([object()]), allow_pickle=True)
    np.savez(folder / "some.npz", bad=np.array([{}], dtype=object), good=np.arange(9))
    store.log_artifact("odd", folder)
    assert observed(attach("odd"), np.arange(9)) == (("odd:v1",), [])


def test_damaged_files_are_no_evidence_and_no_error(store: begat.Store) -> None:
    log_arrays(store, 1)
    for path in (store.path / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(b"\0" * path.stat().st_size)
    assert observed(attach("digits"), arrays(1)[0]) == ((), [])


def test_other_versions_are_read_up_to_a_bound(store: begat.Store) -> None:
    for content in range(12):
        log_arrays(store, content)
    assert observed(attach("digits"), arrays(5)[0])[0] == ("digits:v6",)
    assert observed(attach("digits"), arrays(0)[0]) == ((), [])


# --- what was registered ---


def test_what_a_version_recognises_is_detected_in_any_run(store: begat.Store) -> None:
    version = store.log_artifact("rows", b"any", type="dataset")
    ds = datasets.Dataset.from_dict({"x": [1.5, 2.5, 3.5], "y": ["a", "b", "c"]})
    found = version.recognize(ds)
    assert found.digest == begat.fingerprint(ds).digest
    same = datasets.Dataset.from_dict({"x": [1.5, 2.5, 3.5], "y": ["a", "b", "c"]})
    recorder = attach()
    assert observed(recorder, DataLoader(same)) == (("rows:v1",), [])  # type: ignore[arg-type]
    edge = edges(recorder)["rows:v1"]
    assert (edge.is_declared, edge.is_detected, edge.role) == (False, True, "train")
    assert observed(attach(), same.select([2, 1])) == ((), [])


def test_an_object_whose_content_cannot_be_known_is_known_itself(store: begat.Store) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("the stream was read")

    version = store.log_artifact("stream", b"any")
    stream = Stream()
    assert version.recognize(stream).digest is None
    assert observed(attach(), DataLoader(stream)) == (("stream:v1",), [])
    assert observed(attach(), DataLoader(Stream())) == ((), [])


def test_an_object_that_was_changed_since_is_not_the_version_any_more(store: begat.Store) -> None:
    version = store.log_artifact("array", b"any")
    x, _ = arrays(1)
    version.recognize(x)
    assert observed(attach(), x) == (("array:v1",), [])
    x[0] = 9
    assert observed(attach(), x) == ((), [])


def test_a_dead_object_does_not_lend_its_id_to_another(store: begat.Store) -> None:
    version = store.log_artifact("array", b"any")
    x, _ = arrays(1)
    version.recognize(x)
    assert id(x) in handed_out._objects
    del x
    assert handed_out._objects == {}


def test_in_a_read_only_store_this_process_knows(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.log_artifact("array", b"any")
    x, _ = arrays(1)
    with monkeypatch.context() as patched:
        patched.setattr("os.access", lambda *_: False)
        reading = begat.open_store(store.path)
        assert reading.is_read_only
        assert reading.get_artifact("array:v1").recognize(x).digest is not None
        reading.close()
    assert store.catalog.fingerprints.find(begat.fingerprint(x).digest or "") == []
    assert handed_out.find_object(x) == (store.uid, version.uid, begat.fingerprint(x).digest)
    assert observed(attach(), x) == (("array:v1",), [])


def test_a_copied_folder_is_known_by_its_content(store: begat.Store) -> None:
    version = log_arrays(store, 1)
    assert observed(attach(), f"arrays-{1}") == ((version.ref,), [])
    Path("arrays-1/new").write_text("more")
    assert observed(attach(), Path("arrays-1")) == ((), [])


# --- what the run says of its data ---


def test_a_run_says_what_it_was_trained_on_also_where_no_version_has_it() -> None:
    x, y = arrays(1)
    recorder = attach()
    assert observed(recorder, TensorDataset(torch.from_numpy(x), torch.from_numpy(y))) == ((), [])
    observed(recorder, x[:5], role="validation")
    observed(recorder, x[:5], role="validation")
    observed(recorder, (value for value in [1]), role="test")
    observed(recorder, None, role="nothing")
    observed(recorder, object())
    assert recorder.run is not None
    facts = data_of(recorder)
    assert sorted(facts) == ["test", "train", "validation"]
    assert facts["train"] == {
        "kind": "list",
        "digest": begat.fingerprint((x, y)).digest,
        "rows": 20,
        "schema": "0: float32 (20, 3); 1: int64 (20)",
        "exact": True,
        "how": "all of it was hashed",
        "versions": [],
    }
    assert (facts["test"]["digest"], facts["test"]["exact"]) == (None, False)
    shown = done("show", recorder.run.id).out
    digest = begat.fingerprint(x[:5]).digest or ""
    assert f"validation: array of float32 (5, 3), 5 rows, {digest[:15]}; no version" in shown
    assert "test: stream (not known: generator would have to be read to its end)" in shown
    assert "begat.data" not in shown


def test_several_data_sets_of_one_role_stand_beside_each_other() -> None:
    recorder = attach()
    for content in range(20):
        observed(recorder, arrays(content)[0])
    names = sorted(data_of(recorder))
    assert names == ["train", *(f"train-{count}" for count in range(2, 9))]


def test_observing_never_raises_into_the_training(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_arrays(store, 1)
    recorder = attach("digits")

    def broken(*_: Any) -> Any:
        raise begat.errors.CatalogBusy("busy")

    monkeypatch.setattr("begat.catalog.events.Fingerprints.find_many", broken)
    refs, said = observed(recorder, arrays(1)[0])
    assert refs == ()
    assert len(said) == 1
    assert "busy" in said[0]
