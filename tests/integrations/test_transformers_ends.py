"""Trainings that go on from a checkpoint, and trainings that end in other ways than they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import begat
from begat_transformers import ArtifactCallback
from tiny_trainer import Boom, Kit, Net, at_second_epoch, boom


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path / "out")


# --- going on from a checkpoint ---


def test_a_resumed_training_has_used_the_version_it_goes_on_from(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net"), num_train_epochs=2).train()
    trainer = kit.trainer(ArtifactCallback("net"), num_train_epochs=3)
    trainer.train(resume_from_checkpoint=str(kit.folder / "checkpoint-2"))
    first, _, replaced, third = kit.versions()
    assert kit.run().inputs == (first,)
    assert kit.run().edges[0].role == "checkpoint"
    assert [version.metadata["step"] for version in (replaced, third)] == [4, 6]


def test_a_training_that_goes_on_from_the_newest_checkpoint_has_used_it(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net"), num_train_epochs=2).train()
    kit.trainer(ArtifactCallback("net"), num_train_epochs=3).train(resume_from_checkpoint=True)
    assert kit.run().inputs == (kit.versions()[1],)


def test_a_resumed_training_finds_its_version_through_a_downloaded_folder(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net")).train()
    (version,) = kit.versions()
    folder = version.download(kit.folder.parent / "downloaded")
    trainer = kit.trainer(
        ArtifactCallback("net"), num_train_epochs=2, output_dir=kit.folder.parent / "new"
    )
    trainer.train(resume_from_checkpoint=str(folder))
    assert kit.run().inputs == (version,)
    assert version.state == "live"


def test_a_checkpoint_of_a_training_without_the_callback_has_no_version(kit: Kit) -> None:
    kit.trainer().train()
    kit.trainer(ArtifactCallback("net"), num_train_epochs=2).train(resume_from_checkpoint=True)
    assert kit.run().inputs == ()


def test_a_resumed_training_retires_what_it_removes_of_the_earlier_one(kit: Kit) -> None:
    kit.trainer(ArtifactCallback("net"), save_total_limit=1).train()
    trainer = kit.trainer(ArtifactCallback("net"), num_train_epochs=2, save_total_limit=1)
    trainer.train(resume_from_checkpoint=True)
    assert [version.state for version in kit.versions()] == ["retired", "live"]


def test_callback_states_that_are_restored_leave_the_callback_as_it_is(kit: Kit) -> None:
    options: dict[str, Any] = {"restore_callback_states_from_checkpoint": True}
    kit.trainer(ArtifactCallback("net"), **options).train()
    callback = ArtifactCallback("net")
    trainer = kit.trainer(callback, num_train_epochs=2, **options)
    trainer.train(resume_from_checkpoint=True)
    assert callback in trainer.callback_handler.callbacks
    assert len(kit.versions()) == 2


# --- ends ---


def test_an_exception_fails_the_run_around_it_and_keeps_the_checkpoints(kit: Kit) -> None:
    trainer = kit.trainer(ArtifactCallback("net"), model=at_second_epoch(boom), num_train_epochs=3)
    with pytest.raises(Boom):
        with begat.start_run("mine"):
            trainer.train()
    assert kit.run().status == "failed"
    assert kit.run().error == {"type": f"{Boom.__module__}.Boom", "message": "out of luck"}
    assert len(kit.versions()) == 1
    assert begat.active_run() is None


def test_ctrl_c_interrupts_the_run_around_it_and_keeps_the_checkpoints(kit: Kit) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    trainer = kit.trainer(
        ArtifactCallback("net"), model=at_second_epoch(interrupt), num_train_epochs=3
    )
    with pytest.raises(KeyboardInterrupt):
        with begat.start_run("mine"):
            trainer.train()
    assert kit.run().status == "interrupted"
    assert len(kit.versions()) == 1


@pytest.mark.parametrize("is_same", [True, False])
def test_a_training_that_was_left_is_interrupted_when_the_next_begins(
    kit: Kit, is_same: bool
) -> None:
    model = Net(act=lambda step: boom())
    trainer = kit.trainer(ArtifactCallback("net"), model=model)
    with pytest.raises(Boom):
        trainer.train()
    assert kit.run().status == "running"
    model.act = None
    (trainer if is_same else kit.trainer(ArtifactCallback("net"))).train()
    assert [run.status for run in kit.store.runs()] == ["finished", "interrupted"]
    assert (kit.store.runs()[1].error or {})["type"] == "begat.recording.leaving.TrainingLeft"
    assert [len(run.outputs) for run in kit.store.runs()] == [1, 0]
    assert begat.active_run() is None


def test_a_training_inside_another_is_part_of_its_run(kit: Kit) -> None:
    def inner(step: int) -> None:
        if step == 1:
            kit.trainer(ArtifactCallback("inner"), output_dir=kit.folder / "inner").train()

    kit.trainer(ArtifactCallback("net"), model=Net(act=inner)).train()
    (run,) = kit.store.runs()
    assert run.status == "finished"
    assert [version.name for version in run.outputs] == ["inner", "net"]


SCRIPT = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import os, signal
from tiny_trainer import Kit, at_second_epoch, boom
from begat_transformers import ArtifactCallback

kit = Kit(Path("out"))
kit.trainer(ArtifactCallback("net"), model=at_second_epoch({act}), num_train_epochs=3).train()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "status", "error"),
    [
        ("boom", "failed", "out of luck"),
        ("lambda: os.kill(os.getpid(), signal.SIGINT)", "interrupted", None),
        ("lambda: sys.exit(3)", "interrupted", None),
    ],
)
def test_a_training_that_ends_with_its_process_ends_as_that_does(
    kit: Kit, act: str, status: str, error: str | None
) -> None:
    code = SCRIPT.format(path=[place for place in sys.path if place], act=act)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert kit.run().status == status, done.stderr
    assert error is None or (kit.run().error or {})["message"] == error
    assert len(kit.versions()) == 1
