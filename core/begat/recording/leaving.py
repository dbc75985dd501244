"""Trainings that are left without a hook: some frameworks tell no callback of an exception or of Ctrl-C.

Whether such a training goes on is asked of the stacks of all threads; why it was left, of the exception that is handled
now and of the one that Python showed last. An exception that the user's code has dealt with leaves no trace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

IsCall = Callable[[FrameType], bool]


class TrainingLeft(Exception):
    """The error of a run whose training was left before its end for a reason that nobody knows; never raised."""

    def __init__(self) -> None:
        super().__init__("the training was left before its end, and no hook told why")


@dataclass(frozen=True, slots=True)
class Watch:
    """How the call that trains is known: on a stack, and in the traceback of an exception that came out of it."""

    is_running: IsCall
    has_raised: IsCall

    @property
    def is_left(self) -> bool:
        """Whether no thread is in that call any more."""
        stacks = sys._current_frames().values()  # pyright: ignore[reportPrivateUsage]
        return not any(self.is_running(frame) for stack in stacks for frame in _below(stack))

    def cause(self) -> BaseException | None:
        """The exception that came out of it, if that is handled now, or was shown and nothing since."""
        for error in (sys.exception(), getattr(sys, "last_value", None)):
            if isinstance(error, BaseException) and any(map(self.has_raised, _frames_of(error))):
                return error
        return None


def _below(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _frames_of(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next
