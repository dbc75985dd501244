"""What is predicted becomes one version, whole or not at all."""

from __future__ import annotations

from typing import Any

import pytest

import begat
from begat import Recorder
from begat.errors import BegatWarning


@pytest.fixture
def store() -> begat.Store:
    return begat.open_store()


def attach(**options: Any) -> Recorder:
    return Recorder.attach(**{"name": "preds", "job": "predict", **options})


def rows_of(version: begat.Version) -> list[int]:
    from pyarrow import parquet

    return parquet.read_table(version.path / "part-00000.parquet")["pred"].to_pylist()


def test_predictions_are_one_version_and_their_folder_goes(store: begat.Store) -> None:
    recorder = attach()
    predictions = recorder.predictions(model="net:v1", datasets=["digits:v1"], classes=["a", "b"])
    assert predictions.folder is not None
    predictions.write(pred=[1, 2])
    predictions.write(pred=[3])
    version = predictions.store("preds", metadata={"rows": 3})
    recorder.finish()
    assert version is not None
    assert (version.type, rows_of(version)) == ("predictions", [1, 2, 3])
    facts = {"model": "net:v1", "datasets": ["digits:v1"], "classes": ["a", "b"], "rows": 3}
    assert version.metadata == facts
    assert version.produced_by == store.runs()[0]
    assert not predictions.folder.exists()


def test_equal_predictions_are_one_version_unless_they_name_their_run(store: begat.Store) -> None:
    for names_run in (False, False, True, True):
        with attach() as recorder:
            predictions = recorder.predictions(names_run=names_run)
            predictions.write(pred=[1])
            predictions.store("preds")
    assert len(store.versions("preds")) == 3


def test_several_outputs_are_a_table_each() -> None:
    with attach() as recorder:
        predictions = recorder.predictions()
        for output in ("first", "second"):
            predictions.write(output=output, pred=[1])
        version = predictions.store("preds")
    assert version is not None
    paths = [entry.path for entry in version.entries]
    assert paths == ["first/part-00000.parquet", "second/part-00000.parquet"]


def test_predictions_that_lack_a_batch_are_no_version(store: begat.Store) -> None:
    recorder = attach()
    predictions = recorder.predictions()
    predictions.write(pred=[1, 2])
    with pytest.warns(BegatWarning, match="recording the predictions"):
        predictions.write(pred=["three"])
    predictions.write(pred=[4])
    assert predictions.store("preds") is None
    recorder.finish()
    assert store.artifacts() == []
    assert "begat.not_logged" in store.runs()[0].params


def test_where_nothing_is_recorded_there_are_no_predictions() -> None:
    predictions = attach(is_main=False).predictions()
    predictions.write(pred=[1])
    assert (predictions.folder, predictions.store("preds")) == (None, None)
