"""Real trainings with `transformers.Trainer`: what was used is known, and every checkpoint is a version."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

import begat
from begat.errors import ArtifactNotFound, StoreUnavailable
from begat_transformers import ArtifactCallback
from tiny_trainer import Kit, Net, Rows, any_net, begat_warnings, files_below, files_of


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "out")


# --- a plain training ---


def test_what_is_used_is_committed_before_the_first_batch(kit: Kit) -> None:
    digits = kit.store.log_artifact("digits", b"0123", type="dataset")
    seen: list[Any] = []
    model = Net(act=lambda step: seen.append(digits.consumed_by))
    kit.trainer(ArtifactCallback("net", uses=["digits:latest"]), model=model).train()
    assert seen[0] == (kit.run(),)
    assert kit.run().inputs == (digits,)


def test_a_checkpoint_is_a_version_of_its_whole_folder(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net"), scores=(0.5,)).train()
    (version,) = kit.versions()
    folder = kit.folder / "checkpoint-2"
    assert version.type == "model"
    assert files_of(version) == files_below(folder)
    assert {"model.safetensors", "optimizer.pt", "trainer_state.json"} < files_of(version).keys()
    assert version.metadata == {
        "path": str(folder),
        "step": 2,
        "epoch": 1,
        "score": 0.5,
        "monitor": "eval_score",
    }
    assert set(version.aliases) == {"best", "last", "latest"}
    assert version.produced_by == kit.run()
    assert kit.run().status == "finished"


def test_a_checkpoint_says_which_version_it_is(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net")).train()
    (version,) = kit.versions()
    said = json.loads(version.read_bytes("begat.json"))
    assert (said["artifact"], said["run_id"]) == ("net", kit.run().id)


def test_the_name_is_by_default_that_of_the_models_class(kit: Kit) -> None:
    kit.trainer(ArtifactCallback()).train()
    assert [version.ref for version in kit.versions("Net")] == ["Net:v1"]
    assert kit.run().job == "train-Net"


def test_chosen_arguments_and_last_metrics_are_recorded(kit: Kit) -> None:
    trainer = kit.trainer(
        ArtifactCallback("net"), scores=(0.5,), learning_rate=0.25, hub_token="secret"
    )
    trainer.train()
    params = kit.run().params
    assert (params["learning_rate"], params["save_strategy"]) == (0.25, "epoch")
    assert not {"output_dir", "hub_token", "weight_decay"} & params.keys()
    assert kit.run().metrics["eval_score"] == 0.5
    assert "train_loss" in kit.run().metrics


def test_the_training_is_part_of_the_run_around_it(kit: Kit) -> None:
    with begat.start_run("mine") as run:
        kit.trainer(ArtifactCallback("net")).train()
        assert run.status == "running"
    assert run.outputs == tuple(kit.versions())
    assert len(kit.store.runs()) == 1


def test_a_second_training_is_a_second_run(kit: Kit) -> None:
    callback = ArtifactCallback("net")
    for number in range(2):
        kit.trainer(callback, output_dir=kit.folder / str(number)).train()
    assert [run.status for run in kit.store.runs()] == ["finished", "finished"]
    assert [len(run.outputs) for run in kit.store.runs()] == [1, 1]


def test_a_pickled_callback_records_like_the_one_it_was(kit: Kit) -> None:
    kit.trainer(pickle.loads(pickle.dumps(ArtifactCallback("net")))).train()
    assert len(kit.versions()) == 1


@pytest.mark.parametrize("is_same", [True, False])
def test_a_callback_that_is_added_twice_records_once(kit: Kit, is_same: bool) -> None:
    digits = kit.store.log_artifact("digits", b"0123")
    first = ArtifactCallback("net")
    second = first if is_same else ArtifactCallback("net", uses=["digits:latest"])
    kit.trainer(first, second, num_train_epochs=2).train()
    assert [version.metadata["step"] for version in kit.versions()] == [2, 4]
    (run,) = kit.store.runs()
    assert run.inputs == (() if is_same else (digits,))


def test_two_callbacks_with_other_names_make_versions_of_both(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("one"), ArtifactCallback("two"), num_train_epochs=2).train()
    (run,) = kit.store.runs()
    assert run.status == "finished"
    for name in ("one", "two"):
        versions = kit.store.versions(name)
        assert [version.metadata["step"] for version in versions] == [2, 4]
        assert versions[-1].aliases == ("last", "latest")
        assert versions[-1].verify() == ()


# --- best, last, and what is removed ---


def test_what_the_limit_removes_is_retired(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net"), num_train_epochs=3, save_total_limit=2).train()
    assert sorted(path.name for path in kit.folder.iterdir()) == ["checkpoint-4", "checkpoint-6"]
    assert [version.state for version in kit.versions()] == ["retired", "live", "live"]
    assert "last" in kit.versions()[-1].aliases


def test_best_moves_when_the_trainer_says_so(kit: Kit) -> None:
    seen: list[tuple[str, ...]] = []

    class Look(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            seen.extend(version.aliases for version in kit.versions())

    trainer = kit.trainer(
        ArtifactCallback("net"), Look(), scores=(0.5, 0.3, 0.4), num_train_epochs=3
    )
    trainer.train()
    assert [set(aliases) for aliases in seen] == [set(), {"best"}, {"last", "latest"}]
    assert kit.store.get_artifact("net:best").metadata["score"] == pytest.approx(0.3)


def test_what_is_deleted_at_the_very_end_is_retired(kit: Kit) -> None:
    trainer = kit.trainer(
        ArtifactCallback("net"),
        scores=(0.3, 0.5),
        num_train_epochs=2,
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert [path.name for path in kit.folder.iterdir()] == ["checkpoint-2"]
    assert [version.state for version in kit.versions()] == ["live", "retired"]
    assert "best" in kit.versions()[0].aliases


def test_with_keep_all_nothing_is_retired(kit: Kit) -> None:
    callback = ArtifactCallback("net", keep="all")
    kit.trainer(callback, num_train_epochs=2, save_total_limit=1).train()
    assert [version.state for version in kit.versions()] == ["live", "live"]


def test_a_folder_that_a_later_training_overwrites_is_retired(kit: Kit) -> None:
    for _ in range(2):
        kit.trainer(ArtifactCallback("net")).train()
    first, second = kit.versions()
    assert first.metadata["path"] == second.metadata["path"]
    assert (first.state, second.state) == ("retired", "live")
    assert files_of(second) == files_below(kit.folder / "checkpoint-2")


def test_what_a_later_training_removes_of_an_earlier_one_is_retired(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net"), save_strategy="steps", save_steps=1).train()
    later = kit.trainer(ArtifactCallback("net"), num_train_epochs=2, save_total_limit=1)
    later.train()
    assert [path.name for path in kit.folder.iterdir()] == ["checkpoint-4"]
    assert {v.metadata["step"] for v in kit.versions() if v.state == "live"} == {4}


def test_a_copy_of_a_checkpoint_that_is_removed_retires_nothing(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net")).train()
    copied = kit.folder.parent / "copied"
    shutil.copytree(kit.folder, copied)
    shutil.rmtree(copied / "checkpoint-2" / "begat.json", ignore_errors=True)
    kit.trainer(
        ArtifactCallback("net"), output_dir=copied, num_train_epochs=2, save_total_limit=1
    ).train()
    assert kit.versions()[0].state == "live"


# --- a hyperparameter search ---


def test_in_a_search_the_checkpoints_of_each_trial_are_versions_of_its_run(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net")).train()  # leaves a checkpoint-2 where the search has none
    trainer = Trainer(
        model_init=any_net,
        args=kit.arguments(eval_strategy="epoch"),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        callbacks=[ArtifactCallback("searched")],
    )
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 0.1, 0.9)},
        n_trials=2,
        backend="optuna",
    )
    folders = [kit.folder / f"run-{number}" / "checkpoint-2" for number in range(2)]
    versions = kit.versions("searched")
    assert [version.metadata["path"] for version in versions] == [str(one) for one in folders]
    assert [files_of(version) for version in versions] == [files_below(one) for one in folders]
    runs = [version.produced_by for version in versions]
    assert len({run.id for run in runs if run}) == 2
    for run, folder in zip(runs, folders, strict=True):
        state = json.loads((folder / "trainer_state.json").read_text())
        assert run is not None
        assert run.params["learning_rate"] == state["trial_params"]["learning_rate"]


def test_in_a_search_with_names_the_folder_of_the_trial_is_found(kit: Kit) -> None:
    trainer = Trainer(
        model_init=any_net,
        args=kit.arguments(eval_strategy="epoch"),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        callbacks=[ArtifactCallback("searched")],
    )
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": 0.1},
        hp_name=lambda trial: f"deep/trial-{trial.number}",
        n_trials=1,
        backend="optuna",
    )
    (version,) = kit.versions("searched")
    assert version.metadata["path"] == str(kit.folder / "deep/trial-0/checkpoint-2")


# --- what is not there ---


def test_a_declared_reference_that_does_not_exist_raises_before_the_first_batch(kit: Kit) -> None:
    seen: list[int] = []
    trainer = kit.trainer(
        ArtifactCallback("net", uses=["nothing:latest"]), model=Net(act=seen.append)
    )
    with pytest.raises(ArtifactNotFound):
        trainer.train()
    assert seen == []
    assert kit.store.runs() == []
    assert begat.active_run() is None


def test_a_store_that_cannot_be_opened_is_a_warning_and_the_training_goes_on(
    kit: Kit, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"not a store")
    callback = ArtifactCallback("net", uses=["digits:latest"], store=tmp_path / "file")
    trainer = kit.trainer(callback)
    with begat_warnings() as said:
        trainer.train()
    assert trainer.state.global_step == 2
    assert len(said) == 1
    assert "not recorded" in said[0]
    assert not (kit.folder / "checkpoint-2" / "begat.json").exists()


def test_a_store_that_cannot_be_opened_raises_if_that_is_asked_for(
    kit: Kit, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"not a store")
    callback = ArtifactCallback("net", store=tmp_path / "file", on_error="raise")
    with pytest.raises((StoreUnavailable, begat.BegatError, OSError)):
        kit.trainer(callback).train()


class Remove(TrainerCallback):
    """Another callback that removes each checkpoint before ours sees it."""

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        shutil.rmtree(Path(args.output_dir, f"checkpoint-{state.global_step}"))


def test_a_checkpoint_that_is_gone_before_it_was_taken_is_a_warning(kit: Kit) -> None:
    trainer = kit.trainer(Remove(), ArtifactCallback("net"))
    with begat_warnings() as said:
        trainer.train()
    assert len(said) == 1
    assert "step 2" in said[0]
    assert kit.versions() == []
    assert kit.run().status == "finished"


def test_a_checkpoint_that_is_gone_before_it_was_taken_raises_if_that_is_asked_for(
    kit: Kit,
) -> None:
    with begat.start_run():
        with pytest.raises(begat.BegatError):
            kit.trainer(Remove(), ArtifactCallback("net", on_error="raise")).train()


def test_data_from_another_version_than_declared_is_warned_of_once(kit: Kit) -> None:
    kit.store.log_artifact("digits", b"old", type="dataset")
    new = kit.store.log_artifact("digits", b"new", type="dataset")
    callback = ArtifactCallback("net", uses=["digits:v1"])
    trainer = kit.trainer(callback, data=Rows(new.path))
    with begat_warnings() as said:
        trainer.train()
    assert len([text for text in said if "declared digits:v1" in text]) == 1
    assert [version.ref for version in kit.run().inputs] == ["digits:v1", "digits:v2"]


def test_a_checkpoint_that_is_saved_without_a_hook_is_taken_in_at_the_end(kit: Kit) -> None:
    class Save(TrainerCallback):
        """What the Trainer's own callback does at SIGTERM."""

        trainer: Any = None

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 1:
                self.trainer._save_checkpoint(self.trainer.model, trial=None)
                control.should_training_stop = True

    save = Save()
    save.trainer = trainer = kit.trainer(save, ArtifactCallback("net"), save_strategy="no")
    trainer.train()
    assert [version.metadata["step"] for version in kit.versions()] == [1]


def test_an_older_transformers_is_refused_with_what_to_install() -> None:
    code = """
import importlib.metadata
importlib.metadata.version = lambda name: "4.57.1"
from begat.errors import MissingExtra
try:
    import begat_transformers
except MissingExtra as error:
    print(error)
"""
    path = os.pathsep.join(place for place in sys.path if place)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "needs transformers 5 or later, and 4.57.1 is installed" in done.stdout
    assert 'pip install "begat[transformers]"' in done.stdout
