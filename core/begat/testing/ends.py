"""Scenarios: every way out of a training is an end that its run tells of, and no checkpoint is lost."""

from __future__ import annotations

import os
import signal

import pytest

from begat.active import active_run
from begat.recording.journal import sync
from begat.recording.leaving import TrainingLeft
from begat.run import Run
from begat.testing import child
from begat.testing.driver import Driver
from begat.testing.scene import NAME, Boom, Scene

FAILED = {"type": f"{Boom.__module__}.Boom", "message": "out of luck"}
LEFT = f"{TrainingLeft.__module__}.TrainingLeft"


def boom(epoch: int, batch: int) -> None:
    """Die in the second epoch."""
    if epoch == 1:
        raise Boom("out of luck")


def interrupt(epoch: int, batch: int) -> None:
    """Press Ctrl-C in the second epoch."""
    if epoch == 1:
        os.kill(os.getpid(), signal.SIGINT)


def check_was_left(run: Run) -> None:
    """The one rule for a training whose exception the user's code has dealt with.

    Where a hook told of it, the run has failed with it. Else all that is known is that the training stopped before its
    end: the run is interrupted, and says that nobody told why.
    """
    error = run.error or {}
    is_known = error.get("type") != LEFT
    assert (run.status, error) == (("failed", FAILED) if is_known else ("interrupted", error))


class EndScenarios(Driver):
    """Of how it ends."""

    def test_an_exception_fails_the_run(self, scene: Scene) -> None:
        with pytest.raises(Boom):
            self.fit(scene, epochs=3, saves=("each",), act=boom)
        assert scene.run().status == "failed"
        assert scene.run().error == FAILED
        assert len(scene.versions()) == 1
        assert active_run() is None

    def test_ctrl_c_interrupts_the_run(self, scene: Scene) -> None:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            self.fit(scene, epochs=3, saves=("each",), act=interrupt)
        assert scene.run().status == "interrupted"
        assert len(scene.versions()) == 1
        assert active_run() is None

    def test_an_exception_fails_the_run_around_the_training(self, scene: Scene) -> None:
        with pytest.raises(Boom), scene.store.start_run("mine"):
            self.fit(scene, epochs=3, saves=("each",), act=boom)
        assert len(scene.runs()) == 1
        assert scene.run().status == "failed"
        assert scene.run().error == FAILED
        assert scene.run().outputs == tuple(scene.versions())

    def test_after_an_exception_the_same_callback_records_again(self, scene: Scene) -> None:
        callback = self.callback(NAME)
        with pytest.raises(Boom):
            self.fit(scene, callback, epochs=3, act=boom)
        self.fit(scene, callback, saves=("each",))
        after, before = scene.runs()
        check_was_left(before)
        assert after.status == "finished"
        assert after.outputs == tuple(scene.versions())
        assert len(scene.versions()) == 1

    def test_a_training_that_begins_while_an_exception_is_handled_fails_the_one_before_with_it(
        self, scene: Scene
    ) -> None:
        try:
            self.fit(scene, epochs=3, act=boom)
        except Boom:
            self.fit(scene, saves=("each",))
        after, before = scene.runs()
        assert (before.status, before.error) == ("failed", FAILED)
        assert after.status == "finished"
        assert after.outputs == tuple(scene.versions())

    def test_an_exception_that_ends_the_process_fails_the_run(self, scene: Scene) -> None:
        done = child.run(self, "raise", scene.folder)
        assert done.returncode != 0
        assert "out of luck" in done.stderr
        assert scene.run().status == "failed", done.stderr
        assert scene.run().error == FAILED
        assert len(scene.versions()) == child.AT

    def test_a_process_that_goes_on_after_an_exception_says_that_the_training_did_not(
        self, scene: Scene
    ) -> None:
        done = child.run(self, "handle", scene.folder)
        assert done.returncode == 0, done.stderr
        check_was_left(scene.run())

    def test_ctrl_c_that_ends_the_process_interrupts_the_run(self, scene: Scene) -> None:
        done = child.run(self, "interrupt", scene.folder)
        assert done.returncode != 0
        assert scene.run().status == "interrupted", done.stderr
        assert len(scene.versions()) == child.AT

    def test_what_a_kill_left_is_stored_by_sync(self, scene: Scene) -> None:
        done = child.run(self, "kill", scene.folder)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert scene.run().status == "lost"
        report = sync(scene.store)
        assert (report.lost, report.pending) == ((), ())
        assert len(scene.versions()) == child.AT
        assert scene.run().outputs == tuple(scene.versions())
        scene.check_versions()
