"""Scenarios: every way out of a training is an end that its run tells of, and no checkpoint is lost."""

from __future__ import annotations

import os
import signal

import pytest

from begat.active import active_run
from begat.recording.journal import sync
from begat.testing import child
from begat.testing.driver import Driver
from begat.testing.scene import NAME, Boom, Scene

FAILED = {"type": f"{Boom.__module__}.Boom", "message": "out of luck"}


def boom(epoch: int, batch: int) -> None:
    """Die in the second epoch."""
    if epoch == 1:
        raise Boom("out of luck")


def interrupt(epoch: int, batch: int) -> None:
    """Press Ctrl-C in the second epoch."""
    if epoch == 1:
        os.kill(os.getpid(), signal.SIGINT)


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
        assert before.status in ("failed", "interrupted")
        assert after.status == "finished"
        assert after.outputs == tuple(scene.versions())
        assert len(scene.versions()) == 1

    def test_an_exception_that_ends_the_process_fails_the_run(self, scene: Scene) -> None:
        done = child.run(self, "raise", scene.folder)
        assert done.returncode != 0
        assert "out of luck" in done.stderr
        assert scene.run().status == "failed", done.stderr
        assert scene.run().error == FAILED
        assert len(scene.versions()) == child.AT

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
