"""Scenarios: what the framework saves is a version, what it removes is retired, and `best` is its own choice."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path

import pytest

from begat.active import active_run
from begat.testing.driver import Driver
from begat.testing.scene import NAME, Scene, content, content_at


class CheckpointScenarios(Driver):
    """Of what comes out."""

    def test_each_checkpoint_is_a_version(self, scene: Scene) -> None:
        self.fit(scene, epochs=2, saves=("each",))
        versions = scene.versions()
        assert len(versions) == 2
        for version in versions:
            path = Path(str(version.metadata["path"]))
            assert path.is_relative_to(scene.folder)
            assert content(version) == content_at(path)
            assert (version.type, version.state) == ("model", "live")
            assert version.produced_by == scene.run()
        assert scene.run().status == "finished"
        assert active_run() is None

    def test_a_checkpoint_tells_when_it_was_saved_and_how_good_it_is(self, scene: Scene) -> None:
        self.fit(scene, epochs=2, saves=("best",), scores=(0.5, 0.25))
        first, second = (dict(version.metadata) for version in scene.versions())
        assert {"path", "step", "epoch", "score", "monitor"} <= first.keys()
        assert (first["score"], second["score"]) == (pytest.approx(0.5), pytest.approx(0.25))
        assert "score" in first["monitor"]
        assert 0 < first["step"] < second["step"]
        assert first["epoch"] < second["epoch"]

    def test_best_follows_the_framework(self, scene: Scene) -> None:
        self.fit(scene, epochs=3, saves=("best",), scores=(0.5, 0.25, 0.75))
        best = scene.store.get_artifact(f"{NAME}:best")
        assert best.metadata["score"] == pytest.approx(0.25)
        scene.check_versions()

    def test_what_the_framework_removes_is_retired(self, scene: Scene) -> None:
        self.fit(scene, epochs=3, saves=("newest",))
        scene.check_versions()
        assert [version.state for version in scene.versions()] == ["retired", "retired", "live"]
        assert len({version.metadata["path"] for version in scene.versions()}) == 3

    def test_with_keep_all_nothing_is_retired(self, scene: Scene) -> None:
        self.fit(scene, self.callback(NAME, keep="all"), epochs=2, saves=("newest",))
        assert [version.state for version in scene.versions()] == ["live", "live"]

    def test_a_path_that_is_overwritten_is_a_version_each_time(self, scene: Scene) -> None:
        self.fit(scene, epochs=3, saves=("same",))
        scene.check_versions()
        assert len({version.metadata["path"] for version in scene.versions()}) == 1
        assert len({version.digest for version in scene.versions()}) == 3

    def test_two_that_save_at_once_are_kept_apart(self, scene: Scene) -> None:
        self.fit(scene, epochs=2, saves=("each", "same"))
        scene.check_versions()
        assert len(scene.versions()) == 4
        assert len({version.metadata["path"] for version in scene.versions()}) == 3

    def test_a_training_that_goes_on_from_a_checkpoint_has_used_its_version(
        self, scene: Scene
    ) -> None:
        self.fit(scene, saves=("each",))
        (first,) = scene.versions()
        self.fit(scene, epochs=2, saves=("each",), resume=Path(str(first.metadata["path"])))
        assert first in scene.run().inputs
        assert scene.edges_by_ref()[first.ref].role == "checkpoint"
        newest = scene.versions()[-1]
        assert newest != first
        assert newest.produced_by == scene.run()

    def test_a_run_that_goes_on_from_what_it_made_has_made_and_used_it(self, scene: Scene) -> None:
        with scene.store.start_run("mine"):
            self.fit(scene, saves=("each",))
            (first,) = scene.versions()
            self.fit(scene, epochs=2, saves=("each",), resume=Path(str(first.metadata["path"])))
        assert first.produced_by == scene.run()
        assert scene.edges_by_ref()[first.ref].role == "checkpoint"
        # What came of it is known to come from it, and it is not its own ancestor.
        newest = scene.versions()[-1]
        found = scene.store.lineage(newest.ref, direction="upstream").versions
        assert {version.ref for version in found} == {first.ref, newest.ref}

    def test_a_training_within_a_run_is_part_of_it(self, scene: Scene) -> None:
        with scene.store.start_run("mine") as run:
            self.fit(scene, saves=("each",))
            assert run.status == "running"
        assert scene.runs() == [run]
        assert run.outputs == tuple(scene.versions())
        assert run.status == "finished"

    def test_a_second_training_with_the_same_callback_is_a_second_run(self, scene: Scene) -> None:
        callback = self.callback(NAME)
        for _ in range(2):
            self.fit(scene, callback, saves=("each",))
        assert [run.status for run in scene.runs()] == ["finished", "finished"]
        assert [len(run.outputs) for run in scene.runs()] == [1, 1]

    def test_a_pickled_callback_records_like_the_one_it_was(self, scene: Scene) -> None:
        # The way that a worker process gets its copy, from before a training and from after one.
        here, there = Pipe()
        callback = self.callback(NAME)
        for epochs in (1, 2):
            here.send(callback)
            callback = there.recv()
            self.fit(scene, callback, epochs=epochs, saves=("each",))
        assert [len(run.outputs) for run in scene.runs()] == [2, 1]

    def test_a_process_of_another_rank_records_nothing(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RANK", "1")
        seen: list[int] = []
        self.fit(scene, saves=("each",), act=lambda epoch, batch: seen.append(batch))
        assert seen
        assert scene.versions() == []
        assert scene.runs() == []
