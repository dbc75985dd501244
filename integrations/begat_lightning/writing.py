"""Checkpoints that are not written yet when their save returns: what `AsyncCheckpointIO` does in a thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class Writing:
    """What is to be done with checkpoints once they are written; elsewhere than with `AsyncCheckpointIO`, at once."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Future[Any]]] = {}

    def then(self, trainer: Any, path: Any, act: Callable[[], Any]) -> None:
        """Do this after everything that was saved until now is written; `path` is what it is about."""
        executor = getattr(trainer.strategy.checkpoint_io, "_executor", None)
        if not isinstance(executor, Executor):
            act()
            return
        try:
            done = executor.submit(act)  # its only thread takes one thing after the other
        except RuntimeError:  # after the fit, in Lightning 2.4: it has ended, and all is written
            act()
            return
        self._waiting.setdefault(os.path.realpath(path), []).append(done)

    def wait_for(self, path: Any) -> None:
        """Wait until a checkpoint is written and dealt with; raises what went wrong with that."""
        for done in self._waiting.pop(os.path.realpath(path), ()):
            done.result()

    def wait_for_all(self) -> None:
        """Wait for every one."""
        for path in list(self._waiting):
            self.wait_for(path)
