"""Calls of `fit` and `predict` that are going on, and what becomes of those that are left.

Keras tells no callback of an exception. A call that is not on the stack of any thread any more has been left; its run
is ended before another one begins, by the exception if that can still be found.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from begat_keras import stack


class FitLeft(KeyboardInterrupt):
    """What a run ends with whose `fit` or `predict` was left for a reason that nobody knows; never raised."""


class Call:
    """One call of a method of a model, from its first hook on; `end` is what is to be done should it be left."""

    def __init__(self, model: Any, end: Callable[[BaseException], None]) -> None:
        callbacks = stack.callback_list()
        self.callbacks: Callable[[], Any] = (
            (lambda: None) if callbacks is None else weakref.ref(callbacks)
        )
        self._model: Callable[[], Any] = weakref.ref(model)
        self._end = end
        _going_on.add(self)

    def over(self) -> None:
        """It came to its end."""
        _going_on.discard(self)

    def end_if_left(self) -> None:
        """End it if it does not go on, in any thread."""
        callbacks = self.callbacks()
        if callbacks is None or not stack.is_running(callbacks):
            self._end(self.cause())

    def cause(self) -> BaseException:
        """Why it was left."""
        for error in (sys.exception(), getattr(sys, "last_value", None)):
            if isinstance(error, BaseException) and stack.has_passed(error, self._model()):
                return error
        return FitLeft("the fit was left before its end; Keras tells no callback why")


_going_on: weakref.WeakSet[Call] = weakref.WeakSet()


def end_those_left() -> None:
    """End the runs of calls that were left by an exception, before a new run would become part of them."""
    for call in list(_going_on):
        call.end_if_left()
