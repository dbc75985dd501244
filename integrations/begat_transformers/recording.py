"""One call of `train()` as it is recorded, from its first hook until its last."""

from __future__ import annotations

import os
from typing import Any

from begat import Recorder
from begat_transformers import checkpoints, training
from begat_transformers.predictions import Checkpoint


class Recording:
    """A training that goes on, and its recorder."""

    def __init__(self, recorder: Recorder, args: Any, state: Any) -> None:
        self.recorder = recorder
        self.folders = checkpoints.Folders(args.output_dir, state.trial_name)
        self.ranks = training.Ranks(args.world_size, recorder.policy.name)
        self.last: str | None = None
        self._state = state

    def is_of(self, state: Any, name: str) -> bool:
        """Whether this is the training of a state, recorded under a name."""
        return self._state is state and self.recorder.policy.name == name

    def take_in(self, folder: str, score: float | None, monitor: str | None) -> None:
        """Stage a checkpoint folder, after telling it which version it is."""
        recorder, state = self.recorder, self._state
        uid = recorder.reserve()
        if recorder.run is not None:
            name = recorder.policy.name
            checkpoints.mark(folder, uid=uid, run_id=recorder.run.id, name=name)
        self.last = folder
        recorder.saved(
            folder,
            uid=uid,
            step=checkpoints.step_of(folder),
            epoch=None if state.epoch is None else int(state.epoch),
            score=score,
            monitor=monitor,
            aliases=["last", *(["best"] if self._is_best(folder, score) else [])],
        )

    def _is_best(self, folder: str, score: float | None) -> bool:
        state = self._state
        if state.best_model_checkpoint:
            return os.path.realpath(state.best_model_checkpoint) == folder
        # With save_strategy="best" transformers 5.0 notes neither folder nor step, only how good the best is.
        return state.best_global_step is None and score is not None and score == state.best_metric

    def follow(self) -> None:
        """Retire what is no longer there, and point to the best where that is an older one."""
        for folder in self.folders.take_gone():
            self.recorder.removed(folder)
        if self._state.best_model_checkpoint:
            self.recorder.alias(self._state.best_model_checkpoint, "best")

    def weights(self, *, is_best: bool) -> Checkpoint | None:
        """The checkpoint whose weights the model has at the end, if it is one of those."""
        best = self._state.best_model_checkpoint if is_best else None
        folder = os.path.realpath(best) if best else self.last
        if folder is None or not self.recorder.is_recording:
            return None
        step = checkpoints.step_of(folder)
        if best is None and step != self._state.global_step:
            return None
        return Checkpoint(self.recorder, folder, step, alias="best" if best else "last")
