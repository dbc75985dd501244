"""What a Keras model predicts is a version: a table of all rows, made from the model and the data."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest
from pyarrow import parquet

import begat
from begat.errors import ArtifactNotFound
from begat.testing.scene import begat_warnings
from begat_keras import ArtifactCallback, EvaluationTable, PredictionCallback

ROWS = 10
X = np.arange(2 * ROWS, dtype="float32").reshape(ROWS, 2) / ROWS
Y = np.arange(ROWS) % 3

# Most models here were never stored, which is warned of and tested once.
pytestmark = pytest.mark.filterwarnings(
    "ignore:begat does not know which version:begat.errors.BegatWarning"
)


def classifier(**layer: Any) -> Any:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, **layer)], name="net")
    from_logits = "activation" not in layer
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    model.compile("sgd", loss)
    return model


@pytest.fixture
def store() -> begat.Store:
    return begat.open_store()


def fitted(*callbacks: Any, model: Any = None) -> Any:
    model = model or classifier()
    saver = keras.callbacks.ModelCheckpoint("net.keras")
    model.fit(X, Y, verbose=0, callbacks=[*callbacks, saver, ArtifactCallback("net")])
    return model


def table(version: begat.Version, folder: str = "") -> dict[str, Any]:
    return parquet.read_table(version.path / folder / "part-00000.parquet").to_pydict()


def inputs(run: begat.Run | None) -> dict[str, str | None]:
    """Version -> role, of what a run used."""
    assert run is not None
    versions = begat.open_store().catalog.versions
    used = [edge for edge in run.edges if edge.kind == "used"]
    return {versions.get(edge.version_uid).ref: edge.role for edge in used}


# --- model.predict ---


def test_what_predict_gives_is_a_version_of_the_model_and_the_data(store: begat.Store) -> None:
    store.log_artifact("digits", b"0123", type="dataset")
    model = fitted()
    callback = PredictionCallback("preds", uses=["digits:latest"], classes=["a", "b", "c"])
    returned = model.predict(X, batch_size=4, verbose=0, callbacks=[callback])
    version = store.get_artifact("preds:v1")
    assert version.type == "predictions"
    assert inputs(version.produced_by) == {"digits:v1": None, "net:v1": "model"}
    assert version.produced_by is not None
    assert (version.produced_by.status, version.produced_by.job) == ("finished", "predict-preds")
    facts = {"model": "net:v1", "datasets": ["digits:v1"], "classes": ["a", "b", "c"]}
    assert version.metadata == facts
    rows = table(version)
    assert rows["id"] == list(range(ROWS))
    assert rows["label"] == [None] * ROWS
    np.testing.assert_allclose(rows["pred"], returned, rtol=1e-6)
    assert "prob" not in rows


@pytest.mark.parametrize("reads_as", ["logits", "probabilities"])
def test_values_of_classes_are_read_as_what_they_are(store: begat.Store, reads_as: Any) -> None:
    model = classifier() if reads_as == "logits" else classifier(activation="softmax")
    returned = model.predict(X, verbose=0, callbacks=[PredictionCallback("p", reads_as=reads_as)])
    rows = table(store.get_artifact("p"))
    assert rows["pred"] == returned.argmax(1).tolist()
    np.testing.assert_allclose(np.sum(rows["prob"], axis=1), np.ones(ROWS), rtol=1e-5)
    if reads_as == "probabilities":
        np.testing.assert_allclose(rows["prob"], returned, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [4, 3])  # the last batch has several rows, or one
def test_one_value_a_row_says_whether_it_is_so(store: begat.Store, batch_size: int) -> None:
    model: Any = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    callback = PredictionCallback("p", reads_as="logits")
    returned = model.predict(X - X.mean(), batch_size=batch_size, verbose=0, callbacks=[callback])
    rows = table(store.get_artifact("p"))
    assert rows["pred"] == (returned.ravel() > 0).astype(int).tolist()
    np.testing.assert_allclose(rows["prob"], 1 / (1 + np.exp(-returned)), rtol=1e-5)


def test_a_last_batch_of_one_row_is_a_row(store: begat.Store) -> None:
    model: Any = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    callback = PredictionCallback("p")
    returned = model.predict(X, batch_size=3, verbose=0, callbacks=[callback])
    assert table(store.get_artifact("p"))["pred"] == returned.ravel().tolist()


@pytest.mark.parametrize("kind", [dict, list])
def test_a_model_with_several_outputs_makes_a_table_of_each(store: begat.Store, kind: Any) -> None:
    inside = keras.Input((2,))
    named = {"0": keras.layers.Dense(1)(inside), "1": keras.layers.Dense(3)(inside)}
    model: Any = keras.Model(inside, named if kind is dict else list(named.values()))
    returned = model.predict(X, verbose=0, callbacks=[PredictionCallback("p")])
    version = store.get_artifact("p")
    for name, values in returned.items() if kind is dict else enumerate(returned):
        rows = table(version, str(name))
        np.testing.assert_allclose(np.reshape(rows["pred"], (ROWS, -1)), values, rtol=1e-6)


def test_a_model_that_is_not_the_declared_one_is_told(store: begat.Store) -> None:
    model = fitted()
    fitted(model=model)
    other: Any = keras.models.load_model(store.get_artifact("net:v1").file)
    callback = PredictionCallback("p", model="net:latest")
    with begat_warnings() as said:
        other.predict(X, verbose=0, callbacks=[callback])
    assert ["declared net:v2" in text for text in said] == [True]
    version = store.get_artifact("p")
    assert inputs(version.produced_by) == {"net:v2": "model", "net:v1": "model"}
    assert version.metadata["model"] == "net:v1"


def test_with_detect_off_the_model_is_what_was_declared(store: begat.Store) -> None:
    model = fitted()
    fitted(model=model)
    model.predict(X, verbose=0, callbacks=[PredictionCallback("p", model="net:v1", detect=False)])
    assert inputs(store.get_artifact("p").produced_by) == {"net:v1": "model"}


def test_a_model_that_nobody_stored_is_no_input(store: begat.Store) -> None:
    model = fitted()
    model.set_weights([each + 1 for each in model.get_weights()])
    with begat_warnings() as said:
        model.predict(X, verbose=0, callbacks=[PredictionCallback()])
    assert ["it: PredictionCallback(model=...)" in text for text in said] == [True]
    version = store.get_artifact("net-predictions")
    assert inputs(version.produced_by) == {}
    assert version.metadata == {}


def test_what_is_predicted_within_a_run_is_made_by_it(store: begat.Store) -> None:
    with store.start_run("mine") as run:
        fitted().predict(X, verbose=0, callbacks=[PredictionCallback("p")])
    assert [version.ref for version in run.outputs] == ["net:v1", "p:v1"]
    assert inputs(run) == {"net:v1": "model"}  # which it made itself, before
    assert [version.ref for version in store.lineage("p:v1").versions] == ["net:v1", "p:v1"]
    assert store.get_artifact("p").metadata["model"] == "net:v1"


def test_a_reference_that_does_not_exist_raises_before_the_first_batch(store: begat.Store) -> None:
    seen: list[int] = []

    class Look(keras.callbacks.Callback):
        def on_predict_batch_begin(self, batch: int, logs: Any = None) -> None:
            seen.append(batch)

    with pytest.raises(ArtifactNotFound):
        classifier().predict(
            X, verbose=0, callbacks=[PredictionCallback("p", uses=["nothing"]), Look()]
        )
    assert seen == []
    assert store.runs() == []


def test_a_predict_that_was_left_leaves_no_table_and_the_next_one_works(
    store: begat.Store,
) -> None:
    class Boom(keras.callbacks.Callback):
        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            raise ZeroDivisionError

    callback = PredictionCallback("p")
    with pytest.raises(ZeroDivisionError):
        classifier().predict(X, verbose=0, callbacks=[callback, Boom()])
    classifier().predict(X, verbose=0, callbacks=[callback])
    assert [run.status for run in store.runs()] == ["finished", "interrupted"]
    assert [version.ref for version in store.versions("p")] == ["p:v1"]


@pytest.mark.parametrize("store_at", ["nowhere", "here"])
def test_predicting_goes_on_whatever_happens(store_at: str, store: begat.Store) -> None:
    model: Any = keras.Sequential([keras.Input((2,)), keras.layers.Reshape((1, 2, 1))])
    Path("nowhere").write_text("a file")
    options: dict[str, Any] = {"detect": False}  # the model is known to nobody
    options |= {"store": "nowhere"} if store_at == "nowhere" else {}
    with begat_warnings() as said:
        returned = model.predict(
            X, batch_size=4, verbose=0, callbacks=[PredictionCallback("p", **options)]
        )
    assert returned.shape == (ROWS, 1, 2, 1)
    assert len(said) == 1
    if store_at == "here":
        assert "begat.not_logged" in store.runs()[0].params


def test_what_cannot_be_a_table_raises_where_that_is_wanted() -> None:
    model: Any = keras.Sequential([keras.Input((2,)), keras.layers.Reshape((1, 2, 1))])
    with pytest.raises(begat.BegatError):
        model.predict(X, verbose=0, callbacks=[PredictionCallback("p", on_error="raise")])


def test_another_rank_writes_nothing(store: begat.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    classifier().predict(X, verbose=0, callbacks=[PredictionCallback("p")])
    assert store.runs() == []
    assert list(store.artifacts()) == []


def test_a_pickled_callback_records_like_the_one_it_was(store: begat.Store) -> None:
    callback = PredictionCallback("p")
    classifier().predict(X, verbose=0, callbacks=[callback])
    classifier().predict(X, verbose=0, callbacks=[pickle.loads(pickle.dumps(callback))])
    assert len(store.versions("p")) == 2


def test_a_way_of_reading_that_there_is_not_is_named() -> None:
    with pytest.raises(TypeError, match="'softmax'"):
        PredictionCallback(reads_as="softmax")  # type: ignore[arg-type]


# --- the end of a fit ---


@pytest.mark.parametrize("is_first", [True, False])
def test_an_evaluation_is_made_from_the_model_and_the_data(
    store: begat.Store, is_first: bool
) -> None:
    store.log_artifact("digits", b"0123", type="dataset")
    callbacks = [
        keras.callbacks.ModelCheckpoint("net.keras"),
        ArtifactCallback("net", uses=["digits:latest"]),
    ]
    evaluation = EvaluationTable(X, Y, ids=[f"row {n}" for n in range(ROWS)], reads_as="logits")
    callbacks.insert(0 if is_first else 2, evaluation)
    model = classifier()
    model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
    version = store.get_artifact("net-predictions:v1")
    assert inputs(version.produced_by) == {"digits:v1": None, "net:v2": "model"}
    assert version.metadata == {"model": "net:v2", "datasets": ["digits:v1"]}
    rows = table(version)
    assert rows["id"][3] == "row 3"
    assert rows["label"] == Y.tolist()
    assert rows["pred"] == model.predict(X, verbose=0).argmax(1).tolist()
    assert [run.status for run in store.runs()] == ["finished", "finished"]


def test_an_evaluation_sees_the_weights_that_another_callback_restores(store: begat.Store) -> None:
    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["score"] = float(epoch)

    model = classifier()
    model.fit(
        X,
        Y,
        epochs=3,
        verbose=0,
        callbacks=[
            Worse(),
            EvaluationTable(X, Y),
            ArtifactCallback("net"),
            keras.callbacks.ModelCheckpoint(
                "best.keras", monitor="score", mode="min", save_best_only=True
            ),
            keras.callbacks.EarlyStopping(
                "score", mode="min", patience=9, restore_best_weights=True
            ),
        ],
    )
    best = store.get_artifact("net:best")
    assert best.metadata["epoch"] == 0
    assert store.get_artifact("net-predictions").metadata["model"] == best.ref


def test_an_evaluation_within_a_run_is_made_by_it(store: begat.Store) -> None:
    with store.start_run("mine") as run:
        fitted(EvaluationTable(X, Y))
    assert [version.ref for version in run.outputs] == ["net:v1", "net-predictions:v1"]


def test_an_evaluation_alone_needs_no_other_callback(store: begat.Store) -> None:
    classifier().fit(X, Y, verbose=0, callbacks=[EvaluationTable(X, name="p")])
    assert table(store.get_artifact("p"))["label"] == [None] * ROWS


def test_the_rows_of_an_evaluation_are_known_by_their_content(store: begat.Store) -> None:
    np.save("x.npy", X)
    store.log_artifact("rows", "x.npy", type="dataset").recognize(X)
    fitted(EvaluationTable(np.load("x.npy"), Y))
    assert inputs(store.get_artifact("net-predictions").produced_by) == {
        "net:v1": "model",
        "rows:v1": "validation",
    }


def test_an_evaluation_that_cannot_be_made_does_not_end_the_training(store: begat.Store) -> None:
    with begat_warnings() as said:
        model = fitted(EvaluationTable(np.ones((ROWS, 7)), Y))
    assert ["recording the predictions failed" in text for text in said] == [True]
    assert model.predict(X, verbose=0).shape == (ROWS, 3)
    assert [run.status for run in store.runs()] == ["finished", "finished"]


def test_a_second_fit_makes_a_second_evaluation(store: begat.Store) -> None:
    evaluation = EvaluationTable(X, Y)
    model = fitted(evaluation)
    fitted(evaluation, model=model)
    models = [version.metadata["model"] for version in store.versions("net-predictions")]
    assert models == ["net:v1", "net:v2"]
