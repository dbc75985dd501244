"""Others in the process are told of runs: which were started, and that they used something."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import begat


class Noting:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, tuple[str, ...]]] = []

    def run_started(self, run: begat.Run) -> None:
        assert begat.active_run() == run
        run.log_params({"linked": True})
        self.told.append(("started", run.name, ()))

    def inputs_changed(self, run: begat.Run) -> None:
        self.told.append(("inputs", run.name, tuple(version.ref for version in run.inputs)))


class Failing(Noting):
    """Has trouble of its own."""

    def run_started(self, run: begat.Run) -> None:
        raise OSError("the other server is away")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[begat.Store]:
    with begat.open_store(tmp_path / "store") as store:
        store.log_artifact("digits", b"1")
        yield store


@pytest.fixture
def noting() -> Iterator[Noting]:
    listener = Noting()
    begat.add_run_listener(listener)
    begat.add_run_listener(listener)  # once, however often
    yield listener
    begat.remove_run_listener(listener)
    begat.remove_run_listener(listener)  # nothing


def test_a_listener_is_told_of_a_run_and_of_what_it_uses(
    store: begat.Store, noting: Noting
) -> None:
    with store.start_run("train", uses=["digits"]) as run:
        run.use_artifact("digits:v1")
        store.get_artifact("digits")  # reading tells nobody
    assert noting.told == [
        ("started", "train", ()),
        ("inputs", "train", ("digits:v1",)),
        ("inputs", "train", ("digits:v1",)),
    ]
    assert run.params == {"linked": True}


def test_a_listener_is_told_of_an_input_that_was_detected(
    store: begat.Store, noting: Noting
) -> None:
    folder = store.get_artifact("digits").path
    recorder = begat.Recorder.attach(store=store, job="train")
    recorder.observe(folder)
    recorder.observe(folder)  # known by now: there is nothing to tell
    run = recorder.run
    recorder.finish()
    assert run is not None
    assert noting.told == [("started", run.name, ()), ("inputs", run.name, ("digits:v1",))]


def test_joining_a_run_is_not_starting_one(
    store: begat.Store, noting: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.start_run("train") as run:
        id = run.id
    monkeypatch.setenv("BEGAT_RUN_ID", id)
    noting.told.clear()
    store.start_run("part").finish()
    assert noting.told == []


def test_who_is_removed_is_told_nothing_more(store: begat.Store, noting: Noting) -> None:
    begat.remove_run_listener(noting)
    with store.start_run("train", uses=["digits"]):
        pass
    assert noting.told == []


def test_the_trouble_of_a_listener_is_not_the_run_s(store: begat.Store) -> None:
    listener = Failing()
    begat.add_run_listener(listener)
    try:
        with pytest.warns(begat.BegatWarning, match="Failing.*the other server is away"):
            with store.start_run("train", uses=["digits"]) as run:
                pass
    finally:
        begat.remove_run_listener(listener)
    assert run.status == "finished"
    assert listener.told == [("inputs", "train", ("digits:v1",))]
