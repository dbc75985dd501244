"""The hooks of `transformers.Trainer`, as calls on `begat.Recorder`.

The Trainer deletes old checkpoints before it calls `on_save`, and calls no hook at all when a training ends by an error
or by Ctrl-C. What was deleted is seen by looking; a training that was left is ended when the next one begins, or with
the process, unless it is part of a run that ends by itself (`with begat.start_run(...)`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from transformers import TrainerCallback

from begat import BegatError, Recorder, Version
from begat_transformers import checkpoints, training
from begat_transformers.predictions import Checkpoint, Origin, reference, remember
from begat_transformers.recording import Recording


class ArtifactCallback(TrainerCallback):
    """Every checkpoint becomes a version; the run that made it is recorded with what it used.

    `name` is the artifact (default: the name of the model's class). `uses` are references, committed before the first
    batch; one that does not exist raises there. The run is the active one, or one of its own per `train()`, with `job`
    as its job. The alias `best` follows `state.best_model_checkpoint`, `last` the newest checkpoint. A checkpoint that
    `save_total_limit` removes, or that is overwritten, is retired (`keep="mirror"`) or not (`"all"`).
    `on_error="warn"` lets a training go on whatever happens to its tracking, `"raise"` does not. The end waits
    `drain_timeout_s` at most for what is still to be stored.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        uses: Iterable[str | Version] = (),
        job: str | None = None,
        store: str | os.PathLike[str] | None = None,
        keep: Literal["mirror", "all"] = "mirror",
        on_error: Literal["warn", "raise"] = "warn",
        drain_timeout_s: float = 300.0,
    ) -> None:
        super().__init__()
        self.name, self.job, self.store = name, job, store
        self.uses = [uses] if isinstance(uses, str | Version) else list(uses)
        self._attach = partial(
            Recorder.attach,
            store=store,
            keep=keep,
            on_error=on_error,
            drain_timeout_s=drain_timeout_s,
        )
        self._training: Recording | None = None
        self._weights: Checkpoint | None = None

    # --- the beginning ---

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        train_dataloader: Any = None,
        **others: Any,
    ) -> None:
        """Start or join a run, commit what it uses, and record what the data really is."""
        call = training.surrounding_call()
        name = self.name or type(model).__name__
        for each in training.callbacks_of(call.trainer) or [self]:
            one = each._training if isinstance(each, ArtifactCallback) else None
            if one is not None and one.is_of(state, name):  # the callback was added twice
                if one is not self._training:
                    self._training = None
                    one.recorder.consume(self.uses)
                return
        self._training = self._weights = None
        recorder = self._attach(
            name=name,
            job=self.job or f"train-{name}",
            uses=self.uses,
            # The environment is asked too: begat records on its rank 0 only, wherever ranks come from.
            is_main=None if state.is_world_process_zero else False,
        )
        training.watch(recorder, call.trainer, state)
        with recorder.beginning(), recorder.guarded("recording how the training begins"):
            self._training = one = Recording(recorder, args, state)
            saved = checkpoints.marked_in_place(one.folders)
            recorder.restore({**recorder.state(), "saved": dict(saved)})
            if call.resumed is not None:
                self._resume(recorder, call.resumed)
            chosen = training.chosen_arguments(args)
            recorder.note(params={**chosen, **training.scalars(state.trial_params or {})})
            recorder.observe(training.data_of(call.trainer, train_dataloader))

    def _resume(self, recorder: Recorder, folder: str) -> None:
        """The version that is gone on from is an input of this run."""
        uid = checkpoints.marked(folder)
        if uid is None:
            recorder.observe(folder, role="checkpoint")
        else:
            recorder.resumed_from(uid)

    # --- checkpoints ---

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Take in the checkpoint that was just written, and see which ones are gone."""
        one = self._training
        if one is None:
            return
        with one.recorder.guarded(f"taking in the checkpoint of step {state.global_step}"):
            one.ranks.wrote()
            if not one.recorder.is_recording:
                return
            if not one.ranks.all_wrote():
                with one.recorder.guarded("waiting for the other ranks"):
                    raise BegatError("not all have written their part of the checkpoint in time")
            folder = one.folders.take_new(state.global_step, state.best_model_checkpoint)
            if folder is not None:
                one.take_in(folder, *training.score_at(state, args.metric_for_best_model))
            elif one.last is None or checkpoints.step_of(one.last) != state.global_step:
                raise BegatError(f"no new folder of that step is below {args.output_dir}")
            one.follow()

    # --- every way out ---

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The training came to its end: see what was removed last, and wait for what is to be stored."""
        one, self._training = self._training, None
        if one is None:
            return
        with one.recorder.guarded("recording how the training ended"):
            if one.recorder.is_recording:
                # A checkpoint that is written because of SIGTERM has no hook.
                for folder in one.folders.take_all_new():
                    one.take_in(folder, None, None)
                one.follow()
                one.recorder.note(metrics=training.last_values(state.log_history))
                self._weights = one.weights(is_best=args.load_best_model_at_end)
        one.recorder.finish()

    # --- predictions ---

    def on_predict(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **others: Any
    ) -> None:
        """Remember which model has predicted which data, for `log_predictions`."""
        data = training.predicted_data(others.get("eval_dataloader"))
        origin = Origin(
            metrics,
            self._weights,
            reference(data),
            self.store,
            is_main=state.is_world_process_zero,
            is_in_order=training.predicts_in_order(args),
        )
        remember(origin)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, in another process perhaps, attaches for itself.
        return {**self.__dict__, "_training": None, "_weights": None}
