"""What rank 0 does for all ranks. Every function is called by all of them, at the same place."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from begat import BegatError

_RUN_ID = "BEGAT_RUN_ID"
Told = TypeVar("Told")


def from_rank_zero(trainer: Any, make: Callable[[], Told]) -> Told:
    """What rank 0 makes, on every rank (by pickle); where it raises there, all raise."""
    problem: Exception | None = None
    told: tuple[Told | None, str | None] = (None, None)
    if trainer.is_global_zero:
        try:
            told = (make(), None)
        except Exception as error:  # noqa: BLE001 - raised below, when the other ranks know
            problem = error
            told = (None, str(error))
    if trainer.world_size > 1:
        told = cast("tuple[Told | None, str | None]", trainer.strategy.broadcast(told))
    made, message = told
    if problem is not None:
        raise problem
    if message is not None:
        raise BegatError(f"rank 0 could not go on: {message}")
    return cast("Told", made)


def joined(run_id: str | None) -> Callable[[], None]:
    """Let what this process starts be part of the run; calling the result ends that."""
    if run_id is None or _RUN_ID in os.environ:  # rank 0 has it from the run itself
        return lambda: None
    os.environ[_RUN_ID] = run_id
    return lambda: cast("None", os.environ.pop(_RUN_ID, None))
