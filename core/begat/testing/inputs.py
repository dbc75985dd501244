"""Scenarios: what a training uses is known, declared and as it really is."""

from __future__ import annotations

import pytest

from begat.active import active_run
from begat.errors import ArtifactNotFound
from begat.run import Run
from begat.testing.driver import Driver
from begat.testing.scene import NAME, Calls, Scene, begat_warnings
from begat.testing.training import BATCHES


class InputScenarios(Driver):
    """Of what goes in."""

    def test_what_is_used_is_committed_before_the_first_batch(self, scene: Scene) -> None:
        digits = scene.store.log_artifact("digits", b"0123", type="dataset")
        seen: list[tuple[Run, ...]] = []
        callback = self.callback(NAME, uses=["digits:latest"])
        self.fit(scene, callback, act=lambda epoch, batch: seen.append(digits.consumed_by))
        assert len(seen) == BATCHES
        assert seen[0] == (scene.run(),)
        assert scene.run().inputs == (digits,)
        assert scene.edges()[0].requested == "digits:latest"

    def test_a_declared_reference_that_does_not_exist_raises_before_the_first_batch(
        self, scene: Scene
    ) -> None:
        scene.store.log_artifact("digits", b"0123", type="dataset")
        seen: list[int] = []
        callback = self.callback(NAME, uses=["digits:latest", "digit:latest"])
        with pytest.raises(ArtifactNotFound, match="digits"):  # the nearest name
            self.fit(scene, callback, act=lambda epoch, batch: seen.append(batch))
        assert seen == []
        assert active_run() is None
        assert (
            scene.runs() == []
        )  # it is looked up before there is a run: `Recorder.attach(uses=...)`

    def test_data_that_is_what_was_declared_is_detected_without_a_word(self, scene: Scene) -> None:
        scene.log_rows(0)
        second = scene.log_rows(1)
        with begat_warnings() as said:
            self.fit(scene, self.callback(NAME, uses=["rows:latest"]), data=second.path)
        assert said == []
        (edge,) = scene.edges()
        assert (edge.is_declared, edge.is_detected, edge.mismatch) == (True, True, None)

    def test_data_that_is_not_what_was_declared_is_one_warning_and_recorded(
        self, scene: Scene
    ) -> None:
        first = scene.log_rows(0)
        second = scene.log_rows(1)
        with begat_warnings() as said:
            self.fit(scene, self.callback(NAME, uses=["rows:latest"]), epochs=2, data=first.path)
        (text,) = said
        assert first.ref in text
        assert second.ref in text
        edges = scene.edges_by_ref()
        assert (edges[second.ref].is_detected, edges[first.ref].is_declared) == (False, False)
        assert edges[second.ref].mismatch
        assert edges[first.ref].is_detected
        assert scene.run().status == "finished"

    def test_data_from_elsewhere_is_no_input_and_no_warning(self, scene: Scene) -> None:
        with begat_warnings() as said:
            self.fit(scene)
        assert said == []
        assert scene.run().inputs == ()

    def test_a_batch_costs_no_call(self, scene: Scene) -> None:
        calls = Calls(self.package)

        def act(epoch: int, batch: int) -> None:
            if epoch == 1 and batch == 0:
                calls.start()
            elif epoch == 1 and batch == BATCHES - 1:
                calls.stop()

        self.fit(scene, epochs=2, saves=("each",), act=act)
        assert calls.seen == []
        assert len(scene.versions()) == 2
