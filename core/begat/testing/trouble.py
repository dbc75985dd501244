"""Scenarios: whatever happens to the tracking, training goes on, and what is missing is said."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from begat import files
from begat.errors import BegatError, StoreUnavailable
from begat.recording import shipping
from begat.recording.recorder import Recorder
from begat.removing import remove_tree
from begat.testing.driver import Driver
from begat.testing.scene import NAME, Scene, begat_warnings
from begat.testing.training import BATCHES

NOT_LOGGED = "begat.not_logged"


class TroubleScenarios(Driver):
    """Of what goes wrong."""

    def test_a_store_that_cannot_be_opened_is_one_warning(self, scene: Scene) -> None:
        seen: list[int] = []
        callback = self.callback(NAME, uses=["digits:latest"], store=_no_store())
        with begat_warnings() as said:
            self.fit(scene, callback, saves=("each",), act=lambda epoch, batch: seen.append(batch))
        (text,) = said
        assert "not recorded" in text
        assert len(seen) == BATCHES
        assert any(scene.folder.iterdir())

    def test_a_store_that_cannot_be_opened_raises_where_that_is_wanted(self, scene: Scene) -> None:
        seen: list[int] = []
        callback = self.callback(NAME, store=_no_store(), on_error="raise")
        with pytest.raises(BegatError):
            self.fit(scene, callback, act=lambda epoch, batch: seen.append(batch))
        assert seen == []

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
    def test_a_store_that_cannot_be_written_is_one_warning_and_the_run_says_what_is_missing(
        self, scene: Scene, code: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _break_taking_in(monkeypatch, code)
        seen: list[int] = []
        with begat_warnings() as said:
            self.fit(scene, epochs=3, saves=("each",), act=lambda epoch, batch: seen.append(batch))
        (text,) = said
        assert "taking in" in text
        assert len(seen) == 3 * BATCHES
        assert scene.versions() == []
        missing = cast("list[str]", scene.run().params[NOT_LOGGED])
        assert len(missing) == 3
        assert missing[0] == text
        assert scene.run().status == "finished"

    def test_a_store_that_cannot_be_written_raises_where_that_is_wanted(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _break_taking_in(monkeypatch, errno.ENOSPC)
        with pytest.raises(BegatError):
            self.fit(scene, self.callback(NAME, on_error="raise"), epochs=2, saves=("each",))

    def test_a_store_that_is_away_for_a_while_loses_nothing(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*args: Any) -> Any:
            raise StoreUnavailable("nobody is there")

        with monkeypatch.context() as patch:
            patch.setattr(shipping, "carry_out", away)
            with begat_warnings() as said:
                self.fit(scene, self.callback(NAME, drain_timeout_s=1.0), saves=("each",))
        assert len([text for text in said if "begat sync stores them" in text]) == 1
        assert scene.run().status == "finished"
        assert NOT_LOGGED not in scene.run().params
        (version,) = scene.wait_for(1)
        assert version.produced_by == scene.run()

    def test_the_end_does_not_wait_longer_than_it_may(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        may_go_on = threading.Event()
        carry_out = shipping.carry_out

        def slowly(*args: Any) -> Any:
            may_go_on.wait(60)
            return carry_out(*args)

        monkeypatch.setattr(shipping, "carry_out", slowly)
        with begat_warnings() as said:
            self.fit(scene, self.callback(NAME, drain_timeout_s=0.2), saves=("each",))
        try:
            assert scene.versions() == []
            assert len([text for text in said if "begat sync stores them" in text]) == 1
            assert scene.run().status == "finished"
        finally:
            may_go_on.set()
        (version,) = scene.wait_for(1)
        assert version.produced_by == scene.run()

    def test_a_checkpoint_that_is_removed_before_it_is_taken_in_is_missed(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        removed: list[Path] = []
        saved = Recorder.saved

        def too_late(self: Recorder, path: Any, **options: Any) -> str | None:
            if not removed:
                removed.append(Path(path))
                remove_tree(Path(path))  # a file as well
            return saved(self, path, **options)

        monkeypatch.setattr(Recorder, "saved", too_late)
        self._misses_the_first(scene)
        assert str(removed[0]) not in {version.metadata["path"] for version in scene.versions()}

    def test_a_checkpoint_that_is_rewritten_while_it_is_taken_in_is_missed(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy_file, rewritten = files.copy_file, list[Path]()

        def torn(source: Path, target: Path) -> None:
            copy_file(source, target)
            if not rewritten:
                rewritten.append(source)
                files.append_line(source, b"another process writes here\n", durable=False)

        monkeypatch.setattr(files, "hard_link", _raising(errno.EXDEV))
        monkeypatch.setattr(files, "copy_file", torn)
        self._misses_the_first(scene)

    def _misses_the_first(self, scene: Scene) -> None:
        """Two checkpoints are saved, and the first is not a version; both the user and the run are told."""
        with begat_warnings() as said:
            self.fit(scene, epochs=2, saves=("each",))
        (text,) = said
        assert "taking in" in text
        assert scene.run().params[NOT_LOGGED] == [text]
        (version,) = scene.versions()
        assert version.verify() == ()
        assert scene.run().status == "finished"

    def test_without_the_framework_the_import_says_what_to_install(self) -> None:
        paths = [path for path in sys.path if path]
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, self.package, *self.needs],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"pip install {self.install}" in done.stdout


_IMPORT = """
import importlib, sys
from begat.errors import MissingExtra
package, *needs = sys.argv[1:]
sys.modules.update(dict.fromkeys(needs))
try:
    importlib.import_module(package)
except MissingExtra as error:
    print(error)
"""


def _no_store() -> Path:
    return Path(__file__)  # a file, and no folder


def _raising(code: int) -> Any:
    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def _break_taking_in(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(files, "copy_file", _raising(code))
    monkeypatch.setattr(files, "hard_link", _raising(code))
