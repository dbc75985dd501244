"""What a subclass of `CallbackTests` fills in, and how its scenarios train."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from begat.active import open_runs
from begat.testing.scene import NAME, Scene
from begat.testing.training import Saves, Training


class Driver(ABC):
    """How to train with one framework, and what it cannot do."""

    # The integration's own package, what must be installed for it, and what its `MissingExtra` says to install.
    package: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    install: ClassVar[str]
    # Name of a scenario -> why the framework can have no such thing. They are reported as skipped, with the reason.
    cannot: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def callback(self, name: str, **options: Any) -> Any:
        """The integration's callback for checkpoints of that name.

        The options are those that every integration has: `uses`, `store`, `keep`, `on_error`, `drain_timeout_s`.
        """

    @abstractmethod
    def train(self, training: Training, *callbacks: Any) -> object:
        """Train with the framework and these callbacks; what goes wrong inside comes out as it is."""

    @pytest.fixture
    def scene(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Scene]:
        """A store and a cache of this scenario's own, and a process that is as it was when it has ended."""
        scenario = request.function.__name__
        if scenario in self.cannot:
            pytest.skip(f"declared of {self.package}: {self.cannot[scenario]}")
        for name in ("BEGAT_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("BEGAT_STORE", str(tmp_path / "store"))
        monkeypatch.setenv("BEGAT_CACHE", str(tmp_path / "cache"))
        at_interrupt = signal.getsignal(signal.SIGINT)
        yield Scene(tmp_path / "checkpoints")
        signal.signal(signal.SIGINT, at_interrupt)  # a framework may ignore it after the first one
        for run in reversed(open_runs()):
            run.finish()  # of a training that was left, where the framework tells nobody

    def fit(
        self,
        scene: Scene,
        *callbacks: Any,
        epochs: int = 1,
        saves: tuple[Saves, ...] = (),
        scores: tuple[float, ...] = (),
        act: Callable[[int, int], object] = lambda epoch, batch: None,
        resume: Path | None = None,
        data: Path | None = None,
    ) -> None:
        """Train in the scene; with no callback given, with the integration's own for `net`."""
        training = Training(
            folder=scene.folder,
            epochs=epochs,
            saves=saves,
            scores=scores,
            act=act,
            resume=resume,
            data=data,
        )
        self.train(training, *(callbacks or (self.callback(NAME),)))
