"""However a training ends, its recorder puts back what was changed for it, and its run says the truth."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import begat
from begat import Recorder
from begat.errors import BegatWarning, StoreUnavailable, warn
from begat.recording.leaving import TrainingLeft

LEFT = f"{TrainingLeft.__module__}.TrainingLeft"


@pytest.fixture
def store() -> begat.Store:
    return begat.open_store()


def attach(**options: Any) -> Recorder:
    return Recorder.attach(**{"name": "net", "job": "train", **options})


def ends(store: begat.Store) -> list[tuple[str, str | None]]:
    """(status, type of the error) of all runs, the oldest first."""
    return [
        (run.status, None if run.error is None else str(run.error["type"]))
        for run in reversed(store.runs())
    ]


# --- a training that may be left ---


class Framework:
    """One whose training tells no callback of an exception."""

    def train(self, act: Callable[[], object] = lambda: None) -> None:
        recorder = attach()
        recorder.watch(self.is_call)
        act()
        recorder.finish()

    def is_call(self, frame: FrameType) -> bool:
        return frame.f_code is Framework.train.__code__ and frame.f_locals.get("self") is self


def fail() -> None:
    raise ValueError("out of luck")


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_training_whose_exception_was_dealt_with_is_interrupted_when_the_next_begins(
    store: begat.Store, kind: type[BaseException]
) -> None:
    def act() -> None:
        raise kind

    with pytest.raises(kind):
        Framework().train(act)
    assert ends(store) == [("running", None)]
    Framework().train()
    assert ends(store) == [("interrupted", LEFT), ("finished", None)]


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (ValueError(), ("failed", "ValueError")),
        (KeyboardInterrupt(), ("interrupted", "KeyboardInterrupt")),
        (SystemExit(3), ("failed", "SystemExit")),
        (SystemExit(), ("interrupted", "SystemExit")),
    ],
)
def test_an_exception_that_is_still_handled_when_the_next_begins_ends_the_one_it_came_from(
    store: begat.Store, error: BaseException, end: tuple[str, str]
) -> None:
    def act() -> None:
        raise error

    try:
        Framework().train(act)
    except BaseException:  # noqa: BLE001 - of any kind
        Framework().train()
    assert ends(store) == [end, ("finished", None)]


def test_an_exception_from_elsewhere_is_not_why_a_training_was_left(store: begat.Store) -> None:
    with pytest.raises(ValueError):
        Framework().train(fail)
    try:
        raise LookupError
    except LookupError:
        Framework().train()
    assert ends(store)[0] == ("interrupted", LEFT)


def test_an_exception_that_python_showed_is_why_a_training_was_left(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a notebook, where the next training is in the next cell.
    with pytest.raises(ValueError) as caught:
        Framework().train(fail)
    monkeypatch.setattr(sys, "last_value", caught.value, raising=False)
    Framework().train()
    assert ends(store)[0] == ("failed", "ValueError")


def test_a_training_that_goes_on_in_another_thread_is_not_left(store: begat.Store) -> None:
    began, may_end = threading.Event(), threading.Event()

    def act() -> None:
        began.set()
        may_end.wait(30)

    thread = threading.Thread(target=Framework().train, args=(act,))
    thread.start()
    assert began.wait(30)
    Framework().train()
    may_end.set()
    thread.join()
    assert ends(store) == [("finished", None)]  # of which the second training was a part


def test_a_training_inside_another_is_part_of_its_run(store: begat.Store) -> None:
    Framework().train(Framework().train)
    assert ends(store) == [("finished", None)]


def test_a_training_that_was_left_in_a_run_of_the_user_ends_with_that_run(
    store: begat.Store,
) -> None:
    with pytest.raises(ValueError), begat.start_run("mine"):
        Framework().train(fail)
    with begat.start_run("mine"), pytest.raises(ValueError):
        Framework().train(fail)
    assert ends(store) == [("failed", "ValueError"), ("finished", None)]


@pytest.mark.parametrize(
    ("act", "end"),
    [
        ("raise ValueError", ("failed", "ValueError")),
        ("raise KeyboardInterrupt", ("interrupted", "KeyboardInterrupt")),
        ("sys.exit(3)", ("interrupted", LEFT)),  # Python tells no exit handler of it
    ],
)
def test_a_training_that_ends_with_its_process_ends_as_far_as_python_tells(
    store: begat.Store, act: str, end: tuple[str, str]
) -> None:
    code = f"""
import sys; sys.path[:0] = {[str(Path(__file__).parent), *(path for path in sys.path if path)]!r}
from {Path(__file__).stem} import Framework
def act():
    {act}
Framework().train(act)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert ends(store) == [end], done.stderr


def test_left_says_so_where_nothing_is_watched(store: begat.Store) -> None:
    attach().left()
    assert ends(store) == [("interrupted", LEFT)]


# --- what is put back ---


class Model:
    def save(self) -> str:
        return "their own"


@pytest.mark.parametrize(
    "end", [Recorder.finish, Recorder.left, lambda one: one.finish(error=ValueError())]
)
def test_what_was_replaced_and_made_is_put_back_on_every_way_out(
    end: Callable[[Recorder], object],
) -> None:
    model, acts = Model(), list[str]()
    recorder = attach()
    recorder.at_end(lambda: acts.append("first"))
    recorder.at_end(lambda: acts.append("last"))
    recorder.replace(model, "save", lambda: "ours")
    assert model.save() == "ours"
    end(recorder)
    assert model.save() == "their own"
    assert "save" not in vars(model)
    end(recorder)
    assert acts == ["last", "first"]


def test_what_another_wrapped_after_us_stays(store: begat.Store) -> None:
    model = Model()
    recorder = attach()
    recorder.replace(model, "save", lambda: "ours")
    vars(model)["save"] = theirs = lambda: "theirs"
    recorder.finish()
    assert vars(model)["save"] is theirs


def test_where_nothing_is_recorded_it_is_put_back_too() -> None:
    model = Model()
    recorder = attach(is_main=False)
    recorder.replace(model, "save", lambda: "ours")
    recorder.finish()
    assert model.save() == "their own"


def test_what_cannot_be_put_back_is_a_warning_and_the_rest_is_done(store: begat.Store) -> None:
    acts: list[int] = []
    recorder = attach()
    recorder.at_end(lambda: acts.append(1))
    recorder.at_end(fail)
    with pytest.warns(BegatWarning, match="putting back"):
        recorder.finish()
    assert acts == [1]
    assert ends(store) == [("finished", None)]


# --- beginnings and blocks ---


def test_what_goes_wrong_as_a_training_begins_ends_its_run(store: begat.Store) -> None:
    recorder = attach()
    with pytest.raises(ValueError), recorder.beginning():
        fail()
    assert ends(store) == [("failed", "ValueError")]
    assert begat.active_run() is None


def test_inputs_that_cannot_be_recorded_end_the_run_that_was_begun_for_them(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.log_artifact("digits", b"0123")

    def away(*args: Any, **options: Any) -> Any:
        raise StoreUnavailable("nobody is there")

    monkeypatch.setattr(begat.Run, "use_artifact", away)
    with pytest.raises(StoreUnavailable):
        attach(uses=["digits"], on_error="raise")
    assert [run.status for run in store.runs()] == ["failed"]
    assert begat.active_run() is None


def test_a_recorder_knows_what_it_was_attached_with(store: begat.Store) -> None:
    digits = store.log_artifact("digits", b"0123")
    recorder = attach(uses="digits:latest")
    assert recorder.declared == (digits,)
    recorder.finish()
    assert attach(is_main=False, uses="digits:latest").declared == ()


def test_a_block_of_a_recorder_ends_as_the_block_does(store: begat.Store) -> None:
    with attach():
        pass
    with pytest.raises(ValueError), attach():
        fail()
    assert ends(store) == [("finished", None), ("failed", "ValueError")]


# --- several recorders of one run ---


def test_a_run_that_was_joined_stays_open_until_the_last_has_ended_and_ends_as_the_first(
    store: begat.Store,
) -> None:
    first, second, third = attach(), attach(), attach()
    first.finish(error=ValueError())
    assert ends(store) == [("running", None)]
    second.finish()
    Path("late.ckpt").write_bytes(b"weights")
    third.saved("late.ckpt")
    third.finish()
    assert ends(store) == [("failed", "ValueError")]
    assert [version.ref for version in store.runs()[0].outputs] == ["net:v1"]
    assert begat.active_run() is None


def test_a_run_does_not_wait_for_a_training_that_was_left_in_it(store: begat.Store) -> None:
    owner = attach()
    with pytest.raises(ValueError):
        Framework().train(fail)
    owner.finish()
    assert ends(store) == [("finished", None)]


def test_trainings_that_begin_and_end_at_once_leave_no_run_open(store: begat.Store) -> None:
    def train() -> None:
        for _ in range(5):
            attach().finish()

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {run.status for run in store.runs()} == {"finished"}
    assert begat.active_run() is None


# --- warnings ---


def test_a_warning_names_the_line_that_called_begat_or_an_integration() -> None:
    # A hook of an integration, which calls begat, and is called by a framework.
    integration: dict[str, Any] = {"__name__": "begat_tiny.callback", "warn": warn}
    exec(compile("def hook():\n    warn('mind the gap')\n", "begat_tiny.py", "exec"), integration)
    framework: dict[str, Any] = {"__name__": "tiny"}
    exec(compile("def fit(hook):\n    hook()\n", "tiny.py", "exec"), framework)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        framework["fit"](integration["hook"])
    (told,) = caught
    assert (told.category, told.filename, told.lineno) == (BegatWarning, "tiny.py", 2)
