"""Real trainings under both names of Lightning: what was used is known, and every checkpoint is a version."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import begat
from begat.errors import ArtifactNotFound, StoreUnavailable
from lightning_kit import NAMESPACES, Boom, Kit, at_second_epoch, begat_warnings, boom, kits, loader


@pytest.fixture(params=list(NAMESPACES))
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    yield from kits(request.param, tmp_path)


# --- a plain training ---


def test_what_is_used_is_committed_before_the_first_batch(kit: Kit) -> None:
    digits = kit.store.log_artifact("digits", b"0123", type="dataset")
    seen: list[Any] = []
    kit.fit(
        kit.model(act=lambda model, batch: seen.append(digits.consumed_by)),
        kit.callback("net", uses=["digits:latest"]),
    )
    assert seen[0] == (kit.run(),)
    assert kit.run().inputs == (digits,)


def test_a_checkpoint_is_a_version_with_what_was_saved(kit: Kit) -> None:
    kit.fit(kit.model(scores=(0.5,)), kit.checkpoints(monitor="score"), kit.callback("net"))
    (version,) = kit.versions()
    (path,) = kit.folder.iterdir()
    assert version.type == "model"
    assert version.file.read_bytes() == path.read_bytes()
    assert version.metadata == {
        "path": str(path),
        "step": 2,
        "epoch": 0,
        "score": 0.5,
        "monitor": "score",
    }
    assert version.produced_by == kit.run()
    assert kit.run().status == "finished"


def test_parameters_and_last_metrics_are_recorded(kit: Kit) -> None:
    model = kit.model(scores=(0.5,))
    model.save_hyperparameters({"width": 4, "layer": torch.nn.Identity()})
    kit.fit(model, kit.callback("net"))
    params = dict(kit.run().params)
    assert list(params.pop("begat.data")) == ["train"]
    assert params == {"width": 4}
    assert kit.run().metrics == {"score": 0.5}


def test_nothing_stays_wrapped_after_a_fit(kit: Kit) -> None:
    trainer = kit.fit(kit.model(), kit.callback("net"))
    assert not {"save_checkpoint", "remove_checkpoint", "teardown"} & vars(trainer.strategy).keys()


def test_the_fit_is_part_of_the_run_around_it(kit: Kit) -> None:
    with begat.start_run("mine") as run:
        kit.fit(kit.model(), kit.checkpoints(), kit.callback("net"))
        assert run.status == "running"
    assert run.outputs == tuple(kit.versions())
    assert len(kit.store.runs()) == 1


def test_a_second_fit_is_a_second_run(kit: Kit) -> None:
    callback = kit.callback("net")
    for fit in range(2):
        kit.fit(kit.model(), kit.checkpoints(dirpath=kit.folder / str(fit)), callback)
    assert [run.status for run in kit.store.runs()] == ["finished", "finished"]
    assert [len(run.outputs) for run in kit.store.runs()] == [1, 1]


def test_a_pickled_callback_records_like_the_one_it_was(kit: Kit) -> None:
    callback = pickle.loads(pickle.dumps(kit.callback("net")))
    kit.fit(kit.model(), kit.checkpoints(), callback)
    assert len(kit.versions()) == 1


# --- best, last, and what is removed ---


def test_what_top_k_removes_is_retired_and_best_moves_on(kit: Kit) -> None:
    model = kit.model(scores=(0.5, 0.3, 0.4))
    kit.fit(model, kit.checkpoints(monitor="score"), kit.callback("net"), max_epochs=3)
    first, second = kit.versions()
    assert (first.state, second.state) == ("retired", "live")
    assert "best" in second.aliases
    assert second.metadata["score"] == pytest.approx(0.3)


def test_best_stays_at_an_older_checkpoint_that_is_still_the_best(kit: Kit) -> None:
    checkpoints = kit.checkpoints(monitor="score", save_top_k=2)
    kit.fit(kit.model(scores=(0.1, 0.5)), checkpoints, kit.callback("net"), max_epochs=2)
    first, second = kit.versions()
    assert first.aliases == ("best",)
    assert second.aliases == ("latest",)
    assert (first.state, second.state) == ("live", "live")


def test_with_keep_all_nothing_is_retired(kit: Kit) -> None:
    checkpoints = kit.checkpoints(monitor="score")
    kit.fit(
        kit.model(scores=(0.5, 0.3)), checkpoints, kit.callback("net", keep="all"), max_epochs=2
    )
    assert [version.state for version in kit.versions()] == ["live", "live"]


def test_a_path_that_is_overwritten_gives_a_version_each_time(kit: Kit) -> None:
    kit.fit(kit.model(), kit.checkpoints(filename="same"), kit.callback("net"), max_epochs=2)
    first, second = kit.versions()
    assert first.metadata["path"] == second.metadata["path"]
    assert first.digest != second.digest
    assert (first.state, second.state) == ("retired", "live")
    assert second.file.read_bytes() == (kit.folder / "same.ckpt").read_bytes()


def test_two_model_checkpoints_each_have_a_best(kit: Kit) -> None:
    model = kit.model(scores=(0.5, 0.9))
    kit.fit(
        model,
        kit.checkpoints(monitor="score", mode="min", filename="low-{epoch}"),
        kit.checkpoints(monitor="score", mode="max", filename="high-{epoch}", save_top_k=2),
        kit.callback("net"),
        max_epochs=2,
    )
    by_path = {Path(v.metadata["path"]).name: v for v in kit.versions()}
    assert sorted(by_path) == ["high-epoch=0.ckpt", "high-epoch=1.ckpt", "low-epoch=0.ckpt"]
    assert set(by_path["low-epoch=0.ckpt"].aliases) == {"best", "best-score"}
    assert by_path["high-epoch=1.ckpt"].metadata["score"] == pytest.approx(0.9)


def test_two_monitors_have_an_alias_each(kit: Kit) -> None:
    kit.fit(
        kit.model(scores=(0.5, 0.9), act=lambda model, batch: model.log("val/loss", 1.0)),
        kit.checkpoints(monitor="score", filename="a-{epoch}"),
        kit.checkpoints(monitor="val/loss", filename="b-{epoch}"),
        kit.callback("net"),
        max_epochs=2,
    )
    assert kit.store.get_artifact("net:best-score").metadata["monitor"] == "score"
    assert kit.store.get_artifact("net:best-val-loss").metadata["monitor"] == "val/loss"
    assert kit.store.get_artifact("net:best").metadata["monitor"] == "score"


def test_last_is_a_version_of_its_own_that_is_retired_when_overwritten(kit: Kit) -> None:
    checkpoints = kit.checkpoints(monitor="score", save_last=True, save_top_k=-1)
    kit.fit(kit.model(scores=(0.1, 0.5)), checkpoints, kit.callback("net"), max_epochs=2)
    lasts = [v for v in kit.versions() if v.metadata["path"].endswith("last.ckpt")]
    assert [(version.metadata["step"], version.state) for version in lasts] == [
        (2, "retired"),
        (4, "live"),
    ]
    assert "last" in lasts[1].aliases
    assert kit.store.get_artifact("net:best").metadata["step"] == 2


def test_a_last_that_is_a_link_is_only_an_alias(kit: Kit) -> None:
    checkpoints = kit.checkpoints(save_top_k=-1, save_last="link")
    kit.fit(kit.model(), checkpoints, kit.callback("net"), max_epochs=2)
    first, second = kit.versions()
    assert "last" in second.aliases
    assert "last" not in first.aliases


def test_a_checkpoint_that_the_user_saves_is_a_version_too(kit: Kit) -> None:
    def save(model: Any, batch: int) -> None:
        model.trainer.save_checkpoint(kit.folder / f"mine-{batch}.ckpt")

    kit.fit(kit.model(act=save), kit.callback("net"), enable_checkpointing=False)
    assert [version.entries[0].path for version in kit.versions()] == ["mine-0.ckpt", "mine-1.ckpt"]


# --- going on from a checkpoint ---


def test_a_resumed_fit_has_used_the_version_it_goes_on_from(kit: Kit) -> None:
    kit.fit(kit.model(), kit.checkpoints(), kit.callback("net"))
    (path,) = kit.folder.iterdir()
    kit.fit(kit.model(), kit.checkpoints(), kit.callback("net"), ckpt_path=path, max_epochs=2)
    first, second = kit.versions()
    assert kit.run().inputs == (first,)
    assert second.produced_by == kit.run()
    assert kit.run().edges[0].role == "checkpoint"


def test_a_resumed_fit_finds_its_version_through_a_downloaded_file(kit: Kit) -> None:
    kit.fit(kit.model(), kit.checkpoints(), kit.callback("net"))
    path = kit.store.get_artifact("net:latest").file
    kit.fit(kit.model(), kit.callback("net"), ckpt_path=path, max_epochs=2)
    assert kit.run().inputs == (kit.versions()[0],)


def test_a_resumed_fit_retires_what_it_removes_of_the_earlier_one(kit: Kit) -> None:
    def checkpoints() -> Any:
        return kit.checkpoints(monitor="score", filename="top-{epoch}", save_last=True)

    kit.fit(kit.model(scores=(0.5,)), checkpoints(), kit.callback("net"))
    model, last = kit.model(scores=(0.5, 0.1)), kit.folder / "last.ckpt"
    kit.fit(model, checkpoints(), kit.callback("net"), ckpt_path=last, max_epochs=2)
    assert not (kit.folder / "top-epoch=0.ckpt").exists()
    top = {v.metadata["step"]: v for v in kit.versions() if "top" in v.metadata["path"]}
    assert (top[2].state, top[4].state) == ("retired", "live")


def test_testing_a_checkpoint_is_no_resume(kit: Kit) -> None:
    trainer = kit.fit(kit.model(), kit.checkpoints(), kit.callback("net"))
    model = kit.model()
    model.test_step = lambda batch, batch_idx: None
    (path,) = kit.folder.iterdir()
    trainer.test(model, loader(), ckpt_path=path, verbose=False)
    assert len(kit.store.runs()) == 1
    assert kit.run().inputs == ()


# --- ends ---


def test_an_exception_fails_the_run_and_keeps_the_checkpoints(kit: Kit) -> None:
    with pytest.raises(Boom):
        kit.fit(
            kit.model(act=at_second_epoch(boom)),
            kit.checkpoints(),
            kit.callback("net"),
            max_epochs=3,
        )
    assert kit.run().status == "failed"
    assert kit.run().error == {"type": f"{Boom.__module__}.Boom", "message": "out of luck"}
    assert len(kit.versions()) == 1
    assert begat.active_run() is None


def test_what_is_saved_because_of_an_exception_is_a_version(kit: Kit) -> None:
    try:
        saver = kit.checkpoints(save_on_exception=True, every_n_epochs=5, save_last=True)
    except TypeError:  # before Lightning 2.6 a callback of its own does it
        saver = kit.pl.callbacks.OnExceptionCheckpoint(kit.folder)
    trainer = kit.trainer(saver, kit.callback("net"), max_epochs=3)
    with pytest.raises(Boom):
        trainer.fit(kit.model(act=at_second_epoch(boom)), loader())
    assert {v.metadata["step"] for v in kit.versions()} == {2}
    written = sorted(path.name for path in kit.folder.glob("*.ckpt"))
    assert sorted(version.entries[0].path for version in kit.versions()) == written
    assert not {"save_checkpoint", "remove_checkpoint", "teardown"} & vars(trainer.strategy).keys()


def test_ctrl_c_interrupts_the_run_and_keeps_the_checkpoints(kit: Kit) -> None:
    with pytest.raises(SystemExit):
        kit.fit(
            kit.model(act=at_second_epoch(lambda: os.kill(os.getpid(), signal.SIGINT))),
            kit.checkpoints(),
            kit.callback("net"),
            max_epochs=3,
        )
    assert kit.run().status == "interrupted"
    assert len(kit.versions()) == 1


def test_sigterm_interrupts_the_run_and_keeps_the_checkpoints(kit: Kit) -> None:
    with pytest.raises(SystemExit):
        kit.fit(
            kit.model(act=at_second_epoch(lambda: os.kill(os.getpid(), signal.SIGTERM))),
            kit.checkpoints(),
            kit.callback("net"),
            max_epochs=3,
        )
    assert kit.run().status == "interrupted"
    assert len(kit.versions()) == 1


def test_after_an_exception_the_same_callback_fits_again(kit: Kit) -> None:
    callback = kit.callback("net")
    with pytest.raises(Boom):
        kit.fit(kit.model(act=lambda model, batch: boom()), callback)
    kit.fit(kit.model(), kit.checkpoints(), callback)
    assert [run.status for run in kit.store.runs()] == ["finished", "failed"]


# --- what is not there ---


def test_a_declared_reference_that_does_not_exist_raises_before_the_first_batch(kit: Kit) -> None:
    seen: list[int] = []
    callback = kit.callback("net", uses=["nothing:latest"])
    with pytest.raises(ArtifactNotFound):
        kit.fit(kit.model(act=lambda model, batch: seen.append(batch)), callback)
    assert seen == []
    assert kit.store.runs() == []  # nothing was trained: a typo leaves no run behind
    assert begat.active_run() is None


def test_of_several_declared_references_none_is_recorded_if_one_does_not_exist(kit: Kit) -> None:
    kit.store.log_artifact("digits", b"0123")
    callback = kit.callback("net", uses=["digits:latest", "nothing:latest"])
    with pytest.raises(ArtifactNotFound):
        kit.fit(kit.model(), callback)
    assert kit.store.runs() == []
    with pytest.raises(ArtifactNotFound), kit.store.start_run("around") as run:
        kit.fit(kit.model(), callback)
    assert (run.edges, run.status) == ((), "failed")


def test_a_store_that_cannot_be_opened_is_a_warning_and_the_training_goes_on(
    kit: Kit, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"not a store")
    callback = kit.callback("net", uses=["digits:latest"], store=tmp_path / "file")
    with begat_warnings() as said:
        trainer = kit.fit(kit.model(), kit.checkpoints(), callback)
    assert "not recorded" in said[0]
    assert trainer.global_step == 2
    assert len(list(kit.folder.iterdir())) == 1


def test_a_store_that_cannot_be_opened_raises_where_that_is_wanted(
    kit: Kit, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"not a store")
    with pytest.raises(StoreUnavailable):
        kit.fit(kit.model(), kit.callback("net", store=tmp_path / "file", on_error="raise"))


def test_a_store_that_goes_away_during_the_training_loses_nothing(kit: Kit) -> None:
    objects, aside = kit.store.path / "objects", kit.store.path / "aside"

    def take_away(model: Any, batch: int) -> None:
        if batch == 0:
            objects.rename(aside)
            objects.write_bytes(b"in the way")

    with begat_warnings() as said:
        kit.fit(
            kit.model(act=take_away),
            kit.checkpoints(),
            kit.callback("net", drain_timeout_s=5.0),
        )
    assert any("begat sync stores them" in one for one in said)
    assert kit.versions() == []
    assert kit.run().status == "finished"
    objects.unlink()
    aside.rename(objects)
    (version,) = _wait_for_versions(kit)
    assert version.produced_by == kit.run()
    assert version.verify() == ()


def _wait_for_versions(kit: Kit) -> list[begat.Version]:
    """The versions once this process's own worker has tried again."""
    deadline = time.monotonic() + 60
    while not kit.versions() and time.monotonic() < deadline:
        time.sleep(0.05)
    return kit.versions()


# --- how it is written ---


def test_a_checkpoint_that_is_a_folder_is_a_version_of_many_files(kit: Kit) -> None:
    io = importlib.import_module(f"{kit.pl.__name__}.plugins.io")

    class Sharded(io.TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            for shard in range(2):
                Path(path, "shards").mkdir(parents=True, exist_ok=True)
                torch.save(checkpoint["state_dict"], Path(path, "shards", f"{shard}.pt"))

    kit.fit(kit.model(), kit.checkpoints(), kit.callback("net"), max_epochs=2, plugins=[Sharded()])
    first, second = kit.versions()
    assert [entry.path for entry in second.entries] == ["shards/0.pt", "shards/1.pt"]
    assert (first.state, second.state) == ("retired", "live")


# --- without the framework ---


def test_without_lightning_the_import_says_what_to_install() -> None:
    code = f"""
import sys; sys.path[:0] = {[path for path in sys.path if path]!r}
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
import begat.errors
try:
    import begat_lightning
except begat.errors.MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "begat[lightning]"' in done.stdout
