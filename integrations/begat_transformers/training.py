"""What a training tells besides its hooks: which Trainer it is, its settings and scores, and its other processes."""

# transformers and torch type little of what is asked here.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import traceback
import weakref
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from types import FrameType
from typing import Any, NamedTuple

import torch.distributed
from transformers import Trainer

from begat import Recorder

WAIT_FOR_RANKS_S = 60.0
_POLL_S = 0.005


class Call(NamedTuple):
    """A call of `Trainer.train`: whose it is, and which checkpoint folder it goes on from."""

    trainer: Trainer | None
    resumed: str | None


def surrounding_call() -> Call:
    """The call of `train` that a hook is part of. Hooks are given neither, so the stack is asked."""
    for frame, trainer in _calls_of_trainers(_TRAINING):
        if "resume_from_checkpoint" in frame.f_locals:
            resumed = frame.f_locals["resume_from_checkpoint"]
            return Call(trainer, str(resumed) if resumed else None)
    return Call(None, None)


def callbacks_of(trainer: Trainer | None) -> list[Any]:
    """All callbacks of a Trainer."""
    return [] if trainer is None else list(trainer.callback_handler.callbacks)


def predicted_data(loader: Any) -> Any:
    """The dataset that the surrounding `Trainer.predict` was given; it still has the columns that no model takes."""
    for frame, _ in _calls_of_trainers(("predict",)):
        if "test_dataset" in frame.f_locals:
            return frame.f_locals["test_dataset"]
    return loader


def watch(recorder: Recorder, trainer: Trainer | None, state: Any) -> None:
    """Have a recorder know whether the training of this Trainer that has this state goes on."""
    # Weakly: a training that was left must not keep a model in memory. Each call of `train` has a state of its own.
    owner: Any = (lambda: None) if trainer is None else weakref.ref(trainer)
    begun = weakref.ref(state)

    def is_running(frame: FrameType) -> bool:
        found = _trainer_of(frame, _TRAINING)
        return found is not None and found is owner() and found.state is begun()

    def has_raised(frame: FrameType) -> bool:
        found = _trainer_of(frame, _TRAINING)
        return found is not None and found is owner()

    recorder.watch(is_running, has_raised=has_raised)


_TRAINING = ("train", "_inner_training_loop")


def _calls_of_trainers(names: tuple[str, ...]) -> Iterator[tuple[FrameType, Trainer]]:
    """The calls of methods of these names that led here, the innermost first."""
    for frame, _ in traceback.walk_stack(None):
        trainer = _trainer_of(frame, names)
        if trainer is not None:
            yield frame, trainer


def _trainer_of(frame: FrameType, names: tuple[str, ...]) -> Trainer | None:
    """Whose method of such a name a frame is. Elsewhere no local variable is looked at: Python keeps what was seen
    until that function returns."""
    owner = frame.f_locals.get("self") if frame.f_code.co_name in names else None
    return owner if isinstance(owner, Trainer) else None


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
