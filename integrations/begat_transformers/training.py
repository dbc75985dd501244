"""What a training tells besides its hooks: which Trainer it is, its settings and scores, and its other processes."""

# transformers and torch type little of what is asked here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import FrameType
from typing import Any, NamedTuple

import torch.distributed
from transformers import Trainer

WAIT_FOR_RANKS_S = 60.0
_POLL_S = 0.005


class Call(NamedTuple):
    """A call of `Trainer.train`: whose it is, and which checkpoint folder it goes on from."""

    trainer: Trainer | None
    resumed: str | None


def surrounding_call() -> Call:
    """The call of `train` that a hook is part of. Hooks are given neither, so the stack is asked."""
    for frame, trainer in _calls_of_trainers(traceback.walk_stack(None), _TRAINING):
        if "resume_from_checkpoint" in frame.f_locals:
            resumed = frame.f_locals["resume_from_checkpoint"]
            return Call(trainer, str(resumed) if resumed else None)
    return Call(None, None)


def predicted_data(loader: Any) -> Any:
    """The dataset that the surrounding `Trainer.predict` was given; it still has the columns that no model takes."""
    for frame, _ in _calls_of_trainers(traceback.walk_stack(None), ("predict",)):
        if "test_dataset" in frame.f_locals:
            return frame.f_locals["test_dataset"]
    return loader


def is_running(trainer: Trainer) -> bool:
    """Whether a call of `train` of this Trainer is running, in any thread."""
    for stack in sys._current_frames().values():  # pyright: ignore[reportPrivateUsage]
        calls = _calls_of_trainers(traceback.walk_stack(stack), _TRAINING)
        if any(each is trainer for _, each in calls):
            return True
    return False


def error_that_ended(trainer: Trainer) -> BaseException | None:
    """The error that came out of this Trainer, if it is handled now, or was shown and nothing since."""
    for error in (sys.exception(), getattr(sys, "last_value", None)):
        if isinstance(error, BaseException):
            calls = _calls_of_trainers(traceback.walk_tb(error.__traceback__), _TRAINING)
            if any(each is trainer for _, each in calls):
                return error
    return None


_TRAINING = ("train", "_inner_training_loop")


def _calls_of_trainers(
    frames: Iterable[tuple[FrameType, int]], names: tuple[str, ...]
) -> Iterator[tuple[FrameType, Trainer]]:
    """The calls of methods of these names. Elsewhere no local variable is looked at: Python keeps what was seen until
    that function returns."""
    for frame, _ in frames:
        if frame.f_code.co_name in names:
            owner = frame.f_locals.get("self")
            if isinstance(owner, Trainer):
                yield frame, owner


def predicts_in_order(args: Any) -> bool:
    """Whether predictions come in the order of their rows: of rows that were grouped by length, they do not."""
    return getattr(args, "train_sampling_strategy", None) != "group_by_length" and not getattr(
        args, "group_by_length", False
    )


def data_of(trainer: Trainer | None, loader: Any) -> Any:
    """The training data, as the user gave it where that is what the loader reads.

    The loader's own dataset has lost the columns that the model does not take, so it is other content.
    """
    own = trainer is not None and type(trainer).get_train_dataloader is Trainer.get_train_dataloader
    given = trainer.train_dataset if trainer is not None and own else None
    return loader if given is None else given


def chosen_arguments(args: Any) -> dict[str, Any]:
    """The `TrainingArguments` that are not the default, without places and secrets."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    chosen = {
        name: getattr(args, name)
        for name, default in defaults.items()
        if getattr(args, name, default) != default
    }
    return {
        name: value
        for name, value in scalars(chosen).items()
        if not name.endswith(("_token", "_dir")) and name not in _OF_THE_MACHINE
    }


_OF_THE_MACHINE = ("disable_tqdm", "local_rank", "run_name")


def last_values(history: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest of each value that was logged."""
    return scalars({key: value for logs in history for key, value in logs.items()})


def score_at(state: Any, metric: str | None) -> tuple[float | None, str | None]:
    """(score, monitor) of a checkpoint at the step where the training is; no score without an evaluation there."""
    if not metric:
        return None, None
    monitor = metric if metric.startswith("eval_") else f"eval_{metric}"
    for logs in reversed(state.log_history):
        if logs.get("step") != state.global_step:
            break
        if monitor in logs:
            return float(logs[monitor]), monitor
    return None, monitor


def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that JSON can hold."""
    plain = {
        key: value.value if isinstance(value, Enum) else value for key, value in values.items()
    }
    return {
        key: value
        for key, value in plain.items()
        if isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    }


_trainings = itertools.count()


class Ranks:
    """Where the processes of a training say that they have written their part of a checkpoint.

    It is the store of the process group and no collective, and rank 0 waits for a bounded time only for those who have
    said that they take part: a callback that was added on one rank alone hangs nobody.
    """

    def __init__(self, world_size: int, name: str) -> None:
        self._store: Any = None
        self._prefix = f"begat/{next(_trainings)}/{name}"
        self._saves = 0
        if (
            world_size > 1
            and torch.distributed.is_available()
            and torch.distributed.is_initialized()
        ):
            self._store = torch.distributed.distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
            self._store.add(f"{self._prefix}/ranks", 1)

    def wrote(self) -> None:
        """Say that this process has written its part."""
        self._saves += 1
        if self._store is not None:
            self._store.add(f"{self._prefix}/{self._saves}", 1)

    def all_wrote(self) -> bool:
        """Wait until every process has said so; False if one did not in time."""
        if self._store is None:
            return True
        deadline = time.monotonic() + WAIT_FOR_RANKS_S
        while self._store.add(f"{self._prefix}/{self._saves}", 0) < self._store.add(
            f"{self._prefix}/ranks", 0
        ):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True
