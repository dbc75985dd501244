"""Real trainings with Keras: what was used is known, and what the model saves is a version."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest

import begat
from begat.errors import ArtifactNotFound
from begat_keras import ArtifactCallback
from begat_keras.weights import digest_of

ROWS = 8
BATCH = 4


class Boom(Exception):
    """What the training of a test dies of."""


class Scores(keras.callbacks.Callback):
    """Tells these scores at the ends of the epochs, as a metric would."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["score"] = self.scores[epoch]


class Act(keras.callbacks.Callback):
    """Does something with the model at the end of a batch, as user code does: `act(model, epoch, batch)`."""

    def __init__(self, act: Callable[[Any, int, int], object]) -> None:
        super().__init__()
        self.act = act

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.act(self.model, self.epoch, batch)


class Kit:
    """A store, a folder for checkpoints, and a training that takes a moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = begat.open_store()

    def model(self) -> Any:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        return model

    def checkpoints(self, name: str = "{epoch}.keras", **options: Any) -> Any:
        given = {"monitor": "score", "mode": "min", **options}
        return keras.callbacks.ModelCheckpoint(str(self.folder / name), **given)

    def fit(self, *callbacks: Any, model: Any = None, epochs: int = 1, **options: Any) -> Any:
        model = model or self.model()
        x = np.arange(2 * ROWS, dtype="float32").reshape(ROWS, 2) / ROWS
        data = {"x": x, "y": x[:, :1] - x[:, 1:], "batch_size": BATCH, **options}
        model.fit(**data, epochs=epochs, verbose=0, callbacks=list(callbacks))
        return model

    def versions(self, name: str = "net") -> list[begat.Version]:
        try:
            return list(self.store.versions(name))
        except ArtifactNotFound:
            return []

    def run(self) -> begat.Run:
        (newest,) = self.store.runs(limit=1)
        return newest

    def used(self) -> dict[str, str | None]:
        """Version -> role, of what the newest run used."""
        edges = [edge for edge in self.run().edges if edge.kind == "used"]
        names = {edge.version_uid: edge.role for edge in edges}
        return {self.store.catalog.versions.get(uid).ref: role for uid, role in names.items()}


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    yield Kit(tmp_path / "checkpoints")
    run = begat.active_run()
    if run is not None:  # of a fit that was left; Keras tells nobody
        run.finish()


def epochs_of(versions: list[begat.Version]) -> list[Any]:
    return [version.metadata["epoch"] for version in versions]


def states(versions: list[begat.Version]) -> list[str]:
    return [version.state for version in versions]


# --- a plain training ---


def test_a_checkpoint_is_a_version_with_what_keras_told_of_it(kit: Kit) -> None:
    kit.fit(Scores(0.5), kit.checkpoints(), ArtifactCallback("net"))
    (version,) = kit.versions()
    facts = dict(version.metadata)
    assert facts.pop("weights").startswith("b3:")
    path = kit.folder / "1.keras"
    assert facts == {"path": str(path), "step": 2, "epoch": 0, "score": 0.5, "monitor": "score"}
    assert version.file.read_bytes() == path.read_bytes()
    assert version.produced_by == kit.run()
    assert kit.run().status == "finished"


@pytest.mark.parametrize("is_first", [True, False])
def test_the_place_in_the_list_of_callbacks_does_not_matter(kit: Kit, is_first: bool) -> None:
    callbacks = [Scores(0.5, 0.3), kit.checkpoints("same.keras", save_best_only=True)]
    callbacks.insert(0 if is_first else 2, ArtifactCallback("net"))
    kit.fit(*callbacks, epochs=2)
    first, second = kit.versions()
    assert (first.metadata["score"], second.metadata["score"]) == (0.5, 0.3)
    assert "best" in second.aliases


def test_parameters_and_last_metrics_are_recorded(kit: Kit) -> None:
    kit.fit(Scores(0.5), ArtifactCallback("net"))
    params = {"epochs": 1, "steps": 2, "optimizer": "SGD", "learning_rate": 0.01}
    assert {**kit.run().params, "begat.data": None} == {**params, "begat.data": None}
    # Until 3.6 Keras hands on at the end of the fit what a callback added to the logs of an epoch.
    assert kit.run().metrics.keys() - {"score"} == {"loss"}


def test_without_a_name_it_is_that_of_the_model(kit: Kit) -> None:
    model = kit.model()
    kit.fit(kit.checkpoints(), ArtifactCallback(), model=model)
    assert len(kit.versions(model.name)) == 1
    assert kit.run().job == f"train-{model.name}"


# --- what is saved, and by whom ---


def test_a_save_that_does_not_happen_is_no_version(kit: Kit) -> None:
    kit.fit(
        Scores(0.5, 0.7, 0.6, 0.2),
        kit.checkpoints("best.keras", save_best_only=True),
        ArtifactCallback("net"),
        epochs=4,
    )
    assert epochs_of(kit.versions()) == [0, 3]
    assert states(kit.versions()) == ["retired", "live"]


def test_best_stays_at_an_older_checkpoint_that_is_still_the_best(kit: Kit) -> None:
    best = kit.checkpoints("best-{epoch}.keras", save_best_only=True)
    kit.fit(Scores(0.2, 0.5), best, kit.checkpoints(), ArtifactCallback("net"), epochs=2)
    (version,) = [version for version in kit.versions() if "best" in version.aliases]
    assert version.metadata["path"].endswith("best-1.keras")


def test_where_keras_chooses_no_best_there_is_none(kit: Kit) -> None:
    kit.fit(Scores(0.5, 0.3), kit.checkpoints(), ArtifactCallback("net"), epochs=2)
    assert [version.aliases for version in kit.versions()] == [(), ("latest",)]


def test_two_monitors_have_an_alias_each_and_the_first_is_best(kit: Kit) -> None:
    kit.fit(
        Scores(0.5, 0.9),
        kit.checkpoints("a.keras", save_best_only=True),
        kit.checkpoints("b.keras", save_best_only=True, monitor="loss"),
        ArtifactCallback("net"),
        epochs=2,
    )
    assert kit.store.get_artifact("net:best").metadata["monitor"] == "score"
    assert kit.store.get_artifact("net:best-score").metadata["epoch"] == 0
    assert kit.store.get_artifact("net:best-loss").metadata["epoch"] == 1


@pytest.mark.parametrize("score", [None, np.array([0.5, 0.3])])
def test_a_best_that_keras_saves_for_want_of_a_score_is_not_called_best(
    kit: Kit, score: Any
) -> None:
    checkpoints = kit.checkpoints("a.keras", save_best_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kit.fit(Scores(score), checkpoints, ArtifactCallback("net"))
    # Without a score Keras saves since 3.10; with several at once it always did.
    is_saved = (kit.folder / "a.keras").exists()
    assert is_saved or score is None
    assert [version.aliases for version in kit.versions()] == [("latest",)] * is_saved


def test_weights_alone_are_a_version_of_the_same_weights(kit: Kit) -> None:
    weights = kit.checkpoints("a.weights.h5", save_weights_only=True)
    kit.fit(weights, kit.checkpoints("a.keras"), ArtifactCallback("net"))
    first, second = kit.versions()
    assert first.entries[0].path == "a.weights.h5"
    assert first.metadata["weights"] == second.metadata["weights"]
    assert first.digest != second.digest


def test_the_digest_of_weights_needs_no_thread(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def cannot_start(thread: threading.Thread) -> None:
        if thread.name == "begat-weights":
            raise RuntimeError("can't start new thread")
        start(thread)

    kit.fit(kit.checkpoints(), ArtifactCallback("net"))
    monkeypatch.setattr(threading.Thread, "start", cannot_start)
    model = kit.fit(kit.checkpoints("2.keras"), ArtifactCallback("net"))
    first, second = kit.versions()
    assert second.metadata["weights"] == digest_of(model) != first.metadata["weights"]


def test_weights_that_cannot_be_read_are_told_of_and_nothing_else_happens(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Act(lambda model, *_: monkeypatch.setattr("begat_keras.weights.digest_of", boom))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", begat.BegatWarning)
        kit.fit(broken, kit.checkpoints(), ArtifactCallback("net"))
    assert any("was saved failed: out of luck" in str(each.message) for each in told)
    assert (kit.folder / "1.keras").exists()
    assert kit.run().status == "finished"


def test_when_a_save_fails_nobody_reads_the_weights_any_more(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_failed, read = threading.Event(), list[Any]()

    def slow_digest(model: Any) -> str:
        assert is_failed.wait(10)
        read.append(model)
        return "b3:"

    def save(*args: Any, **options: Any) -> None:
        is_failed.set()
        raise Boom("the disk is gone")

    slow = Act(lambda model, *_: monkeypatch.setattr("begat_keras.weights.digest_of", slow_digest))
    model = kit.model()
    vars(model)["save"] = save
    with pytest.raises(Boom, match="the disk is gone"):
        kit.fit(slow, kit.checkpoints(), ArtifactCallback("net"), model=model)
    assert read == [model]
    assert kit.versions() == []


@pytest.mark.parametrize("answer", ["y", "n"])
def test_who_is_asked_whether_to_overwrite_a_file_may_say_no(
    kit: Kit, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: answer)
    kit.folder.mkdir()
    path = kit.folder / "mine.weights.h5"
    save = Act(lambda model, epoch, batch: model.save_weights(path, overwrite=False))
    kit.fit(save, ArtifactCallback("net"))
    assert len(kit.versions()) == (2 if answer == "y" else 1)


def test_what_the_user_saves_is_a_version_too(kit: Kit) -> None:
    kit.folder.mkdir()
    path = kit.folder / "mine.keras"
    kit.fit(Act(lambda model, epoch, batch: model.save(path)), ArtifactCallback("net"))
    assert [version.metadata["step"] for version in kit.versions()] == [1, 2]
    assert "monitor" not in kit.versions()[0].metadata


def test_a_save_in_a_later_callback_at_the_end_of_the_fit_is_a_version(kit: Kit) -> None:
    class Last(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            model: Any = self.model
            model.save(kit.folder / "last.keras")

    kit.folder.mkdir()
    kit.fit(ArtifactCallback("net"), Last())
    assert len(kit.versions()) == 1


def test_a_model_that_is_saved_as_a_folder_is_a_version_of_many_files(kit: Kit) -> None:
    kit.folder.mkdir()
    folder = kit.folder / "net"
    kit.fit(
        Act(lambda model, epoch, batch: batch or model.save(folder, zipped=False)),
        ArtifactCallback("net"),
    )
    (version,) = kit.versions()
    assert {entry.path for entry in version.entries} == {
        *(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
        "assets",  # an empty folder
    }


@pytest.mark.skipif(
    "max_shard_size" not in inspect.signature(keras.Model.save_weights).parameters,
    reason="Keras 3.10 brought weights in several files (max_shard_size)",
)
def test_weights_in_several_files_are_one_version(kit: Kit) -> None:
    kit.folder.mkdir()
    index = kit.folder / "net.weights.json"
    model = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(64) for _ in range(3))])
    model.compile("sgd", "mse")
    kit.fit(
        Act(lambda model, _, batch: batch or model.save_weights(index, max_shard_size=2e-5)),
        ArtifactCallback("net"),
        model=model,
    )
    (version,) = kit.versions()
    assert {entry.path for entry in version.entries} == {each.name for each in kit.folder.iterdir()}
    assert version.file_count > 2
    model.load_weights(version.path / index.name)


def test_a_backup_is_a_version_until_keras_removes_it(kit: Kit) -> None:
    backup = keras.callbacks.BackupAndRestore(str(kit.folder / "backup"))
    kit.fit(ArtifactCallback("net"), backup, epochs=2)
    assert states(kit.versions()) == ["retired", "retired"]
    assert not (kit.folder / "backup").exists()


def test_what_another_callback_removes_is_retired(kit: Kit) -> None:
    def remove(model: Any, epoch: int, batch: int) -> None:
        (kit.folder / f"{epoch}.keras").unlink(missing_ok=True)

    kit.fit(Act(remove), kit.checkpoints(), ArtifactCallback("net"), epochs=3)
    assert states(kit.versions()) == ["retired", "retired", "live"]


# --- the model is left as it was ---


def wrapped(model: Any) -> set[str]:
    return {"save", "save_weights"} & vars(model).keys()


def test_nothing_stays_wrapped_after_a_fit(kit: Kit) -> None:
    seen: list[set[str]] = []
    look = Act(lambda model, epoch, batch: seen.append(wrapped(model)))
    model = kit.fit(look, ArtifactCallback("net"))
    assert seen[0] == {"save", "save_weights"}
    assert wrapped(model) == set()


def test_nothing_stays_wrapped_when_the_next_fit_after_an_exception_has_ended(kit: Kit) -> None:
    model = kit.model()
    with pytest.raises(Boom):
        kit.fit(Act(boom), ArtifactCallback("net"), model=model)
    kit.fit(ArtifactCallback("net"), kit.checkpoints(), model=model)
    assert wrapped(model) == set()
    assert len(kit.versions()) == 1


def test_two_callbacks_on_one_model_record_each_save_once(kit: Kit) -> None:
    kit.store.log_artifact("digits", b"0123")
    model = kit.fit(
        ArtifactCallback("net"),
        kit.checkpoints(),
        ArtifactCallback("net", uses=["digits:latest"]),
    )
    assert len(kit.versions()) == 1
    assert len(kit.store.runs()) == 1
    assert kit.used() == {"digits:v1": None}
    assert wrapped(model) == set()


def test_of_two_callbacks_with_other_names_the_first_records_and_the_user_is_told(kit: Kit) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", begat.BegatWarning)
        model = kit.fit(ArtifactCallback("one"), kit.checkpoints(), ArtifactCallback("two"))
    (told,) = [str(each.message) for each in caught if each.category is begat.BegatWarning]
    assert "become versions of one and not of two" in told
    assert (len(kit.versions("one")), kit.versions("two")) == (1, [])
    assert [run.job for run in kit.store.runs()] == ["train-one"]
    assert wrapped(model) == set()


def test_one_callback_that_is_listed_twice_records_once(kit: Kit) -> None:
    callback = ArtifactCallback("net")
    kit.fit(callback, kit.checkpoints(), callback)
    assert len(kit.versions()) == 1
    assert kit.run().status == "finished"


def test_other_models_are_not_touched(kit: Kit) -> None:
    other = kit.model()
    path = kit.folder / "other.keras"
    kit.folder.mkdir()
    kit.fit(Act(lambda model, epoch, batch: other.save(path)), ArtifactCallback("net"))
    assert kit.versions() == []


def test_no_hook_is_called_for_a_batch() -> None:
    theirs = keras.callbacks.Callback
    for name in dir(theirs):
        if "batch" in name:
            assert getattr(ArtifactCallback, name) is getattr(theirs, name)


def test_a_pickled_callback_records_like_the_one_it_was(kit: Kit) -> None:
    used = ArtifactCallback("net")
    kit.fit(used)
    callback = pickle.loads(pickle.dumps(used))
    kit.fit(kit.checkpoints(), callback)
    assert len(kit.versions()) == 1


# --- going on from a checkpoint ---


@pytest.mark.parametrize("name", ["1.keras", "1.weights.h5"])
def test_a_fit_has_used_the_version_whose_weights_it_begins_with(kit: Kit, name: str) -> None:
    saved = kit.checkpoints(f"{{epoch}}.{name[2:]}", save_weights_only=name.endswith("h5"))
    kit.fit(saved, ArtifactCallback("net"), epochs=2)
    path = kit.store.get_artifact("net:v1").file
    model: Any = keras.models.load_model(path) if name.endswith("keras") else kit.model()
    if name.endswith("h5"):
        model.load_weights(path)
    kit.fit(ArtifactCallback("net"), model=model, epochs=3, initial_epoch=1)
    assert kit.used() == {"net:v1": "checkpoint"}


def test_a_fit_that_goes_on_with_the_same_model_has_used_its_last_checkpoint(kit: Kit) -> None:
    callback = ArtifactCallback("net")
    model = kit.fit(kit.checkpoints(), callback)
    kit.fit(callback, model=model)
    assert kit.used() == {"net:v1": "checkpoint"}


@pytest.mark.parametrize("is_first", [True, False])
def test_a_fit_that_restores_a_backup_has_used_that_very_version(kit: Kit, is_first: bool) -> None:
    def callbacks() -> list[Any]:
        backup = keras.callbacks.BackupAndRestore(str(kit.folder / "backup"))
        return [backup, ArtifactCallback("net")][:: 1 if is_first else -1]

    def act(model: Any, epoch: int, batch: int) -> None:
        if epoch == 2:
            raise Boom

    with pytest.raises(Boom):
        kit.fit(*callbacks(), Act(act), epochs=4)
    kit.fit(*callbacks(), epochs=4)
    assert kit.used() == {"net:v2": "checkpoint"}
    assert epochs_of(kit.versions()) == [0, 1, 2, 3]


def test_a_model_that_begins_anew_has_used_nothing(kit: Kit) -> None:
    kit.fit(kit.checkpoints(), ArtifactCallback("net"))
    kit.fit(kit.checkpoints(), ArtifactCallback("net"))
    assert kit.used() == {}


def test_with_detect_off_nothing_is_looked_at(kit: Kit) -> None:
    model = kit.fit(kit.checkpoints(), ArtifactCallback("net"))
    kit.fit(kit.checkpoints(), ArtifactCallback("net", detect=False), model=model)
    assert kit.used() == {}
    assert "weights" not in kit.versions()[1].metadata


# --- ends ---


def boom(*args: Any) -> None:
    raise Boom("out of luck")


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("act", "status"), [(boom, "failed"), (interrupt, "interrupted")])
def test_the_run_around_a_fit_ends_as_the_fit_does(kit: Kit, act: Any, status: str) -> None:
    callback = ArtifactCallback("net")
    with pytest.raises((Boom, KeyboardInterrupt)), begat.start_run("mine"):
        kit.fit(kit.checkpoints(), callback)
        kit.fit(Act(act), callback)
    assert kit.run().status == status
    assert len(kit.run().outputs) == 1
    assert kit.used() == {}


@pytest.mark.parametrize("act", [boom, interrupt])
def test_a_fit_that_was_left_is_interrupted_when_the_next_one_begins(kit: Kit, act: Any) -> None:
    with pytest.raises((Boom, KeyboardInterrupt)):
        kit.fit(Act(act), ArtifactCallback("net"))
    kit.fit(kit.checkpoints(), ArtifactCallback("other"))
    after, before = kit.store.runs()
    assert (before.status, after.status) == ("interrupted", "finished")
    assert before.error is not None
    assert before.error["message"].startswith("the training was left before its end")
    assert [version.name for version in after.outputs] == ["other"]


def test_a_fit_that_is_begun_again_while_its_exception_is_handled_fails_with_it(kit: Kit) -> None:
    model = kit.model()
    try:
        kit.fit(Act(boom), ArtifactCallback("net"), model=model)
    except Boom:
        kit.fit(ArtifactCallback("net"), model=model)
    after, before = kit.store.runs()
    assert (before.status, after.status) == ("failed", "finished")
    assert before.error == {"type": f"{Boom.__module__}.Boom", "message": "out of luck"}


def test_a_fit_that_was_left_is_interrupted_when_another_run_begins(kit: Kit) -> None:
    with pytest.raises(KeyboardInterrupt):
        kit.fit(Act(interrupt), ArtifactCallback("net"))
    with pytest.warns(begat.BegatWarning, match="still open"), begat.start_run("mine"):
        pass
    assert [run.status for run in kit.store.runs()] == ["finished", "interrupted"]


def test_a_fit_inside_of_a_fit_is_part_of_its_run(kit: Kit) -> None:
    inner = ArtifactCallback("inner")
    kit.fit(Act(lambda *_: kit.fit(kit.checkpoints("inner.keras"), inner)), ArtifactCallback("net"))
    assert len(kit.store.runs()) == 1
    assert {version.name for version in kit.run().outputs} == {"inner"}


ENDS = {
    "raise ValueError('out of luck')": ("failed", "ValueError"),
    "raise KeyboardInterrupt": ("interrupted", "KeyboardInterrupt"),
    "os.kill(os.getpid(), 2)": ("interrupted", "KeyboardInterrupt"),
    "sys.exit(3)": ("interrupted", "begat.recording.leaving.TrainingLeft"),
    "os.kill(os.getpid(), 9)": ("lost", None),
}


@pytest.mark.parametrize("act", ENDS)
def test_a_process_that_ends_in_a_fit_ends_its_run(kit: Kit, act: str) -> None:
    done = script(f"""
        def act(model, epoch, batch):
            if epoch == 2:
                {act}
        kit.fit(kit.checkpoints(), ArtifactCallback("net"), Act(act), epochs=4)
    """)
    assert done.returncode != 0, done.stderr
    status, error = ENDS[act]
    assert kit.run().status == status
    assert (kit.run().error or {}).get("type") == error
    if status == "lost":
        from begat.recording.journal import sync

        sync(kit.store)
    assert epochs_of(kit.versions()) == [0, 1]


def test_a_process_that_ends_well_after_a_fit_was_left_says_so(kit: Kit) -> None:
    done = script("""
        try:
            kit.fit(ArtifactCallback("net"), Act(boom))
        except Boom:
            pass
    """)
    assert done.returncode == 0, done.stderr
    assert kit.run().status == "interrupted"


def script(code: str) -> subprocess.CompletedProcess[str]:
    """Run code beside the names of this file, in a process of its own."""
    from textwrap import dedent

    here = Path(__file__)
    start = f"""
import os, sys; sys.path[:0] = {[str(here.parent), *(path for path in sys.path if path)]!r}
from pathlib import Path
from {here.stem} import *
kit = Kit(Path("checkpoints"))
"""
    return subprocess.run(
        [sys.executable, "-c", start + dedent(code)], capture_output=True, text=True, check=False
    )


# --- the data ---


class Rows(keras.utils.PyDataset):
    """Rows of a text file below `root`."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        values = [float(word) for word in (self.root / "rows.txt").read_text().split()]
        rows = np.array(values, dtype="float32").reshape(-1, 2)[BATCH * index : BATCH * (index + 1)]
        return rows, rows[:, :1]


def logged_rows(first: int) -> begat.Version:
    Path("rows.txt").write_text(" ".join(str(first + each) for each in range(2 * ROWS)))
    return begat.log_artifact("rows", "rows.txt", type="dataset")


def test_a_dataset_that_reads_a_version_has_its_run_use_it(kit: Kit) -> None:
    version = logged_rows(0)
    kit.fit(ArtifactCallback("net"), x=Rows(version.path), y=None, batch_size=None)
    assert kit.used() == {"rows:v1": "train"}


def test_validation_data_is_used_in_its_own_role(kit: Kit) -> None:
    first, second = logged_rows(0), logged_rows(1)
    kit.fit(
        ArtifactCallback("net"),
        x=Rows(first.path),
        y=None,
        batch_size=None,
        validation_data=Rows(second.path),
    )
    assert kit.used() == {"rows:v1": "train", "rows:v2": "validation"}


@pytest.mark.parametrize("options", [{}, {"validation_split": 0.5}])
def test_arrays_that_a_version_is_known_to_hold_are_used(kit: Kit, options: Any) -> None:
    x = np.arange(2 * ROWS, dtype="float32").reshape(ROWS, 2) / ROWS
    np.save("x.npy", x)
    begat.log_artifact("xs", "x.npy", type="dataset").recognize(x)
    kit.fit(ArtifactCallback("net"), x=np.load("x.npy"), **options)
    assert kit.used() == {"xs:v1": "train"}


def test_data_that_nobody_knows_is_no_input_and_no_warning(kit: Kit) -> None:
    def rows() -> Iterator[Any]:
        while True:
            yield np.ones((BATCH, 2)), np.ones((BATCH, 1))

    kit.fit(ArtifactCallback("net"), x=rows(), y=None, batch_size=None, steps_per_epoch=2)
    assert kit.used() == {}
    assert kit.run().status == "finished"


# --- without Keras, or with one that is too old ---


def test_without_keras_the_import_says_what_to_install() -> None:
    assert 'pip install "begat[keras]"' in imported_with('sys.modules["keras"] = None')


def test_an_old_keras_is_named() -> None:
    said = imported_with(
        'sys.modules["keras"] = module = types.ModuleType("keras"); module.__version__ = "3.4.1"'
    )
    assert "3.4.1 is installed" in said
    assert 'pip install --upgrade "begat[keras]"' in said


def imported_with(setup: str) -> str:
    code = f"""
import sys, types; sys.path[:0] = {[path for path in sys.path if path]!r}
{setup}
import begat.errors
try:
    import begat_keras
except begat.errors.MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_missing_backend_is_told_by_keras_itself() -> None:
    code = "import sys; sys.modules['tensorflow'] = None; import begat_keras"
    env = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert "tensorflow" in done.stderr
    assert "MissingExtra" not in done.stderr
