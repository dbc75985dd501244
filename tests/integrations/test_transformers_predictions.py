"""Predictions of a real `Trainer` as versions: the rows are right, and their inputs are the model and the data."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet
from transformers import TrainingArguments
from transformers.trainer_utils import PredictionOutput

import begat
from begat.errors import ArtifactNotFound, BadInput, Refused
from begat_transformers import ArtifactCallback, log_predictions
from tiny_trainer import ROWS, Kit, Rows


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "out")


def logged(output: Any, **options: Any) -> begat.Version:
    version = log_predictions(output, **options)
    assert version is not None
    return version


def table_of(version: begat.Version) -> dict[str, list[Any]]:
    return parquet.read_table(version.path).to_pydict()


def inputs_of(version: begat.Version) -> list[str]:
    run = version.produced_by
    assert run is not None
    return [used.ref for used in run.inputs]


def other_output(predictions: Any, labels: Any = None) -> PredictionOutput:
    return PredictionOutput(predictions=predictions, label_ids=labels, metrics={})


# --- the table ---


def test_logits_become_classes_and_probabilities(kit: Kit) -> None:
    trainer = kit.trainer(ArtifactCallback("net"))
    trainer.train()
    output = trainer.predict(Rows())
    version = logged(output, ids=[f"row-{at}" for at in range(ROWS)], classes=["even", "odd"])
    table = table_of(version)
    logits = np.asarray(output.predictions, dtype=np.float64)
    assert table["id"] == [f"row-{at}" for at in range(ROWS)]
    assert table["label"] == [at % 2 for at in range(ROWS)]
    assert table["pred"] == logits.argmax(1).tolist()
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(table["prob"], expected, rtol=1e-4)
    assert version.type == "predictions"
    assert version.metadata == {"model": "net:v1", "rows": ROWS, "classes": ["even", "odd"]}


def test_rows_are_numbered_without_ids_and_labels_may_be_missing(kit: Kit) -> None:
    kit.store.log_artifact("net", b"weights", type="model")
    version = logged(other_output(np.array([[0.0, 2.0], [9.0, 1.0]])), model="net")
    table = table_of(version)
    assert (table["id"], table["label"], table["pred"]) == ([0, 1], [None, None], [1, 0])


@pytest.mark.parametrize(
    ("predictions", "labels", "pred"),
    [
        (np.array([[0.5], [1.5]]), np.array([[1.0], [2.0]]), [0.5, 1.5]),
        (np.array([0.5, 1.5]), None, [0.5, 1.5]),
        (np.array([[0.5, 3.0], [1.5, 4.0]]), np.array([0.1, 0.2]), [[0.5, 3.0], [1.5, 4.0]]),
        (np.array([[7, 8], [9, 9]]), None, [[7, 8], [9, 9]]),
    ],
)
def test_what_are_no_logits_is_stored_as_it_is(
    kit: Kit, predictions: Any, labels: Any, pred: list[Any]
) -> None:
    kit.store.log_artifact("net", b"weights", type="model")
    table = table_of(logged(other_output(predictions, labels), model="net"))
    assert table["pred"] == pred
    assert "prob" not in table


def test_with_prob_none_logits_are_stored_as_they_are(kit: Kit) -> None:
    kit.store.log_artifact("net", b"weights", type="model")
    table = table_of(logged(other_output(np.array([[0.0, 2.0]])), model="net", prob=None))
    assert (table["pred"], "prob" in table) == ([[0.0, 2.0]], False)


@pytest.mark.parametrize("several", [tuple, lambda pair: {"logits": pair[0], "states": pair[1]}])
def test_of_several_outputs_the_first_is_taken(kit: Kit, several: Any) -> None:
    kit.store.log_artifact("net", b"weights", type="model")
    pair = [np.array([[0.0, 2.0]]), np.zeros((1, 3, 3))]
    assert table_of(logged(other_output(several(pair)), model="net"))["pred"] == [1]


def test_extreme_logits_give_probabilities_that_are_numbers(kit: Kit) -> None:
    kit.store.log_artifact("net", b"weights", type="model")
    table = table_of(logged(other_output(np.array([[1e9, -1e9], [0.0, 1e4]])), model="net"))
    assert table["prob"] == [[1.0, 0.0], [0.0, 1.0]]


def test_rows_beyond_one_batch_keep_their_order(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("begat_transformers.predictions.ROWS_PER_BATCH", 3)
    kit.store.log_artifact("net", b"weights", type="model")
    version = logged(
        other_output(np.arange(8.0), np.arange(8)), ids=list(range(10, 18)), model="net"
    )
    table = table_of(version)
    assert table["id"] == list(range(10, 18))
    assert (table["pred"], table["label"]) == (list(np.arange(8.0)), list(range(8)))


@pytest.mark.parametrize("ids", [[1], [1, 2, 3]])
def test_ids_that_do_not_fit_are_refused_and_nothing_is_stored(kit: Kit, ids: list[int]) -> None:
    kit.store.log_artifact("net", b"weights", type="model")
    with pytest.raises(BadInput):
        log_predictions(other_output(np.array([0.5, 1.5])), ids=ids, model="net")
    assert kit.versions("net-predictions") == []
    assert kit.run().status == "failed"


# --- where they come from ---


def test_the_model_is_the_last_checkpoint_and_the_data_is_found(kit: Kit) -> None:
    digits = kit.store.log_artifact("digits", b"0123", type="dataset")
    trainer = kit.trainer(ArtifactCallback("net"), num_train_epochs=2)
    trainer.train()
    version = logged(trainer.predict(Rows(digits.path)))
    assert version.name == "net-predictions"
    assert inputs_of(version) == ["net:v2", "digits:v1"]
    run = version.produced_by
    assert run is not None
    assert (run.job, run.status) == ("predict-net", "finished")
    assert "test_loss" in run.metrics


def test_the_model_is_the_best_one_if_that_was_loaded(kit: Kit) -> None:
    trainer = kit.trainer(
        ArtifactCallback("net"), scores=(0.1, 0.5), num_train_epochs=2, load_best_model_at_end=True
    )
    trainer.train()
    assert inputs_of(logged(trainer.predict(Rows()))) == ["net:v1"]


def test_predictions_of_the_best_model_are_not_stale_because_of_a_later_one(kit: Kit) -> None:
    trainer = kit.trainer(
        ArtifactCallback("net"), scores=(0.1, 0.5), num_train_epochs=2, load_best_model_at_end=True
    )
    trainer.train()
    logged(trainer.predict(Rows()))
    assert kit.store.stale() == []
    kit.store.alias("net:v2", "best")
    assert [one.ref for one in kit.store.stale()] == ["net-predictions:v1"]


def test_each_output_has_the_model_of_its_own_trainer(kit: Kit) -> None:
    outputs: list[Any] = []
    for name in ("one", "two"):
        trainer = kit.trainer(ArtifactCallback(name), output_dir=kit.folder / name)
        trainer.train()
        outputs.append(trainer.predict(Rows()))
    versions = [logged(output) for output in outputs]
    assert [inputs_of(version) for version in versions] == [["one:v1"], ["two:v1"]]


def test_declared_data_and_a_declared_model_are_the_inputs(kit: Kit) -> None:
    kit.store.log_artifact("digits", b"0123", type="dataset")
    model = kit.store.log_artifact("net", b"weights", type="model")
    output = other_output(np.array([0.5]))
    version = logged(output, model=model, uses="digits:latest", name="mine")
    assert version.ref == "mine:v1"
    assert inputs_of(version) == ["net:v1", "digits:v1"]


def test_predictions_join_the_run_around_them(kit: Kit) -> None:
    with begat.start_run("mine") as run:
        trainer = kit.trainer(ArtifactCallback("net"))
        trainer.train()
        version = logged(trainer.predict(Rows()))
        assert run.status == "running"
    assert version.produced_by == run
    assert [one.ref for one in run.outputs] == ["net:v1", "net-predictions:v1"]
    assert "net:v1" in kit.store.lineage("net-predictions", "upstream").tree()


def test_equal_predictions_are_confirmed(kit: Kit) -> None:
    trainer = kit.trainer(ArtifactCallback("net"))
    trainer.train()
    first, second = (logged(trainer.predict(Rows())) for _ in range(2))
    assert (first.ref, second.ref, second.is_new) == (first.ref, first.ref, False)


# --- what is refused ---


def test_weights_that_were_never_saved_are_no_version(kit: Kit) -> None:
    trainer = kit.trainer(ArtifactCallback("net"), save_strategy="no")
    trainer.train()
    with pytest.raises(Refused):
        log_predictions(trainer.predict(Rows()))


def test_weights_that_moved_on_after_the_last_checkpoint_are_no_version(kit: Kit) -> None:
    class Save(ArtifactCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_save = state.global_step == 1

    trainer = kit.trainer(Save("net"), save_strategy="no")
    trainer.train()
    assert [version.metadata["step"] for version in kit.versions()] == [1]
    with pytest.raises(Refused):
        log_predictions(trainer.predict(Rows()))


def test_predictions_of_nobody_knows_which_model_are_refused(kit: Kit) -> None:
    with pytest.raises(Refused):
        log_predictions(kit.trainer().predict(Rows()))
    assert kit.store.runs() == []


def test_a_model_that_does_not_exist_raises(kit: Kit) -> None:
    with pytest.raises(ArtifactNotFound):
        log_predictions(other_output(np.array([0.5])), model="nothing:latest")
    assert begat.active_run() is None


class Echo(torch.nn.Module):
    """Predicts the first token of each row."""

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": input_ids[:, :1].float()}


def test_predictions_in_another_order_than_their_rows_are_refused(kit: Kit) -> None:
    is_newer = "train_sampling_strategy" in inspect.signature(TrainingArguments).parameters
    by_length: dict[str, Any] = (
        {"train_sampling_strategy": "group_by_length"} if is_newer else {"group_by_length": True}
    )
    trainer = kit.trainer(ArtifactCallback("net"), model=Echo(), **by_length)
    trainer.data_collator = lambda rows: {
        "input_ids": torch.nested.nested_tensor(
            [row["input_ids"] for row in rows]
        ).to_padded_tensor(0)
    }
    output = trainer.predict([{"input_ids": [at] * (1 + at % 3)} for at in range(ROWS)])  # pyright: ignore[reportArgumentType]
    assert np.ravel(np.asarray(output.predictions)).tolist() != list(range(ROWS))
    with pytest.raises(Refused):
        log_predictions(output, model="net")


def test_another_rank_logs_nothing(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.store.log_artifact("net", b"weights", type="model")
    monkeypatch.setenv("RANK", "1")
    assert log_predictions(other_output(np.array([0.5])), model="net") is None
    assert kit.versions("net-predictions") == []
