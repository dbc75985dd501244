"""Every way in which Lightning saves: later, by hand, as a link, for itself; each is a version, once, or none."""

from __future__ import annotations

import copy
import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import begat
from begat_lightning.checkpoints import is_replaced_whole
from lightning_kit import NAMESPACES, Boom, Kit, at_second_epoch, begat_warnings, boom, kits


@pytest.fixture(params=list(NAMESPACES))
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    yield from kits(request.param, tmp_path)


# --- in a thread ---


def slow(kit: Kit, *, seconds: float = 0.3, error: Exception | None = None) -> Any:
    """An `AsyncCheckpointIO` whose files are there long after the training went on."""
    io = importlib.import_module(f"{kit.pl.__name__}.plugins.io")

    class Slow(io.TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            time.sleep(seconds)
            if error is not None:
                raise error
            super().save_checkpoint(checkpoint, path, storage_options)

    return io.AsyncCheckpointIO(Slow())


def test_checkpoints_written_in_a_thread_are_taken_in_when_they_are_there(kit: Kit) -> None:
    with begat_warnings() as said:
        kit.fit(
            kit.model(scores=(0.5, 0.3, 0.4)),
            kit.checkpoints(monitor="score"),
            kit.callback("net"),
            max_epochs=3,
            plugins=[slow(kit)],
        )
    assert said == []
    assert [(v.metadata["step"], v.state) for v in kit.versions()] == [(2, "retired"), (4, "live")]
    assert "best" in kit.versions()[1].aliases


def test_a_training_does_not_wait_for_what_is_written_in_a_thread(kit: Kit) -> None:
    written, waited = threading.Event(), list[bool]()
    io = importlib.import_module(f"{kit.pl.__name__}.plugins.io")

    class Blocked(io.TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            waited.append(written.wait(timeout=60))
            super().save_checkpoint(checkpoint, path, storage_options)

    def go_on(model: Any, batch: int) -> None:
        if model.current_epoch == 1:
            written.set()

    kit.fit(
        kit.model(act=go_on),
        kit.checkpoints(save_top_k=-1),
        kit.callback("net"),
        max_epochs=2,
        plugins=[io.AsyncCheckpointIO(Blocked())],
    )
    assert waited == [True, True]
    assert [version.metadata["step"] for version in kit.versions()] == [2, 4]


def test_an_alias_of_what_is_still_being_written_moves_when_it_is_there(kit: Kit) -> None:
    class LastIsThis(kit.pl.callbacks.ModelCheckpoint):
        def _save_last_checkpoint(self, trainer: Any, monitor_candidates: Any) -> None:
            self.last_model_path = self._last_checkpoint_saved

    kit.fit(
        kit.model(),
        LastIsThis(kit.folder, save_top_k=-1),
        kit.callback("net"),
        max_epochs=2,
        plugins=[slow(kit)],
    )
    first, second = kit.versions()
    assert "last" in second.aliases
    assert "last" not in first.aliases


def test_what_is_being_written_when_the_training_raises_is_a_version(kit: Kit) -> None:
    with pytest.raises(Boom):
        kit.fit(
            kit.model(act=at_second_epoch(boom)),
            kit.checkpoints(),
            kit.callback("net"),
            max_epochs=2,
            plugins=[slow(kit)],
        )
    (version,) = kit.versions()
    assert version.file.read_bytes() == next(kit.folder.iterdir()).read_bytes()
    assert kit.run().status == "failed"
    assert kit.run().error == {"type": f"{Boom.__module__}.Boom", "message": "out of luck"}


def test_what_is_being_written_at_ctrl_c_is_a_version(kit: Kit) -> None:
    with pytest.raises(SystemExit):
        kit.fit(
            kit.model(act=at_second_epoch(lambda: os.kill(os.getpid(), signal.SIGINT))),
            kit.checkpoints(),
            kit.callback("net"),
            max_epochs=2,
            plugins=[slow(kit)],
        )
    assert len(kit.versions()) == 1
    assert kit.run().status == "interrupted"


def test_a_checkpoint_that_could_not_be_written_in_a_thread_fails_the_run(kit: Kit) -> None:
    with begat_warnings() as said, pytest.raises(Boom):
        kit.fit(
            kit.model(),
            kit.checkpoints(),
            kit.callback("net"),
            plugins=[slow(kit, error=Boom("no room"))],
        )
    assert kit.versions() == []
    assert kit.run().status == "failed"
    assert any("taking in" in one for one in said)


# --- for Lightning itself ---


def test_the_search_for_a_learning_rate_leaves_no_version_and_is_no_resume(kit: Kit) -> None:
    model = kit.model()
    model.lr = 0.01
    finder = kit.pl.callbacks.LearningRateFinder(num_training_steps=3)
    with begat_warnings() as said:
        kit.fit(model, finder, kit.checkpoints(), kit.callback("net"))
    assert said == []
    # Lightning 2.4 saves none after a search.
    written = sorted(path.name for path in kit.folder.glob("*.ckpt"))
    assert [version.entries[0].path for version in kit.versions()] == written
    assert kit.run().inputs == ()
    assert kit.run().status == "finished"


# --- by hand ---


def test_what_is_saved_by_hand_after_the_fit_is_a_version_with_the_same_inputs(kit: Kit) -> None:
    digits = kit.store.log_artifact("digits", b"0123")
    callback = kit.callback("net", uses=["digits:latest"])
    trainer = kit.fit(kit.model(), callback, enable_checkpointing=False)
    kit.store.log_artifact("digits", b"4567")
    trainer.save_checkpoint(kit.folder / "final.ckpt")
    (version,) = kit.versions()
    assert version.entries[0].path == "final.ckpt"
    assert version.produced_by is not None
    assert version.produced_by.inputs == (digits,)
    assert [run.status for run in kit.store.runs()] == ["finished", "finished"]
    assert not {"save_checkpoint", "remove_checkpoint", "teardown"} & vars(trainer.strategy).keys()


def test_what_is_saved_by_hand_inside_a_run_is_part_of_it(kit: Kit) -> None:
    with begat.start_run("mine") as run:
        trainer = kit.fit(kit.model(), kit.callback("net"), enable_checkpointing=False)
        trainer.save_checkpoint(kit.folder / "final.ckpt")
        assert run.status == "running"
    assert run.outputs == tuple(kit.versions())
    assert len(kit.versions()) == 1


def test_a_save_by_hand_that_fails_leaves_no_run_open(kit: Kit) -> None:
    trainer = kit.fit(kit.model(), kit.callback("net"), enable_checkpointing=False)
    (kit.folder / "file").parent.mkdir(exist_ok=True)
    (kit.folder / "file").write_bytes(b"no folder")
    with pytest.raises(OSError):
        trainer.save_checkpoint(kit.folder / "file" / "final.ckpt")
    assert begat.active_run() is None
    assert [run.status for run in kit.store.runs()] == ["failed", "finished"]
    assert "save_checkpoint" not in vars(trainer.strategy)


def test_what_is_saved_by_hand_in_a_thread_is_a_version(kit: Kit) -> None:
    trainer = kit.fit(
        kit.model(), kit.callback("net"), enable_checkpointing=False, plugins=[slow(kit)]
    )
    try:
        trainer.save_checkpoint(kit.folder / "final.ckpt")
    except RuntimeError:  # of Lightning 2.4, whose thread is not started again
        assert kit.run().status == "failed"
        return
    (version,) = kit.versions()
    assert version.file.read_bytes() == (kit.folder / "final.ckpt").read_bytes()


def test_weights_alone_are_a_version_too(kit: Kit) -> None:
    def save(model: Any, batch: int) -> None:
        if batch == 0:
            model.trainer.save_checkpoint(kit.folder / "weights.ckpt", weights_only=True)

    kit.fit(kit.model(act=save), kit.callback("net"), enable_checkpointing=False)
    assert [version.entries[0].path for version in kit.versions()] == ["weights.ckpt"]


# --- copies ---


def test_a_copy_of_a_callback_that_records_is_a_new_one(kit: Kit) -> None:
    callback, copies = kit.callback("net"), list[Any]()
    kit.fit(
        kit.model(act=lambda model, batch: copies.append(copy.deepcopy(callback))),
        kit.checkpoints(),
        callback,
    )
    kit.fit(kit.model(), kit.checkpoints(filename="again"), copies[0])
    assert [run.status for run in kit.store.runs()] == ["finished", "finished"]
    assert [len(run.outputs) for run in kit.store.runs()] == [1, 1]


# --- how it is taken in ---


def test_only_files_that_lightning_itself_replaces_are_linked(kit: Kit) -> None:
    io: Any = importlib.import_module(f"{kit.pl.__name__}.plugins.io")
    kit.folder.mkdir()
    file, shards = kit.folder / "a.ckpt", kit.folder / "b.ckpt"
    torch.save({}, file)
    shards.mkdir()
    own = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=io.TorchCheckpointIO()))
    other = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=slow(kit)))
    is_same_disk = os.stat("/tmp").st_dev == kit.folder.stat().st_dev
    assert is_replaced_whole(own, file) is is_same_disk
    assert not is_replaced_whole(own, shards)
    assert not is_replaced_whole(other, file)


def test_a_fit_in_which_nothing_was_saved_is_a_run_without_outputs(kit: Kit) -> None:
    kit.fit(kit.model(), kit.callback("net"), enable_checkpointing=False)
    assert kit.run().outputs == ()
    assert kit.run().status == "finished"
