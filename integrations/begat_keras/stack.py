"""What the calls that led here tell: which fit is running, on which data, and which callback saves the model.

Keras gives a callback neither the data nor the other callbacks, and no hook for an exception. All of it is in the
local variables of the functions below us. What cannot be found there is left out; nothing depends on it.
"""

# Keras ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeAlias, cast

import keras

from begat import Recorder

# Of `Model.fit`, in their order; the function around it, which shortens tracebacks, has them as they were given.
_ARGUMENTS = ("x", "y", "batch_size", "epochs", "verbose", "callbacks", "validation_split")
_DATA = ("x", "y", "sample_weight", "validation_data")
# The function around the methods of a model; all that a shortened traceback has of them.
_AROUND = "error_handler"

Weakly: TypeAlias = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Saving:
    """A save that is going on: the callback that asked for it, when, and what Keras told it."""

    callback: Any = None
    callbacks: tuple[Any, ...] = ()
    epoch: int | None = None
    logs: Mapping[str, Any] = field(default_factory=dict[str, Any])


def callback_list() -> Any:
    """The `CallbackList` that calls us, or None."""
    calls = _calls_of_callbacks()
    return calls[-1].f_locals.get("self") if calls else None


def data_of(method: str, model: Any) -> dict[str, Any]:
    """The data that `fit` or `predict` was called with, by the names of its parameters, as far as it can be seen."""
    for frame in _below():
        if frame.f_code.co_name != method or frame.f_locals.get("self") is not model:
            continue
        found = {name: frame.f_locals.get(name) for name in _DATA}
        if frame.f_back is not None and frame.f_locals.get("validation_split"):
            # `fit` has cut its data in two by now.
            found |= _given(frame.f_back, model)
            found.pop("validation_data")
        return {name: value for name, value in found.items() if value is not None}
    return {}


def as_one(data: Mapping[str, Any]) -> Any:
    """Such data as one object: what `x` is if that is all."""
    return data["x"] if set(data) == {"x"} else dict(data)


def saving(us: Any) -> Saving:
    """Who saves the model now, but for the callback of ours that asks; empty if it is none."""
    *inner, hook = _calls_of_callbacks() or [None]
    if hook is None:
        return Saving()
    callers = (frame.f_locals.get("self") for frame in inner if frame is not None)
    found = [
        each for each in callers if isinstance(each, keras.callbacks.Callback) and each is not us
    ]
    epoch, logs = hook.f_locals.get("epoch"), hook.f_locals.get("logs")
    return Saving(
        found[0] if found else None,
        tuple(cast("Any", hook.f_locals.get("self")).callbacks),
        epoch if isinstance(epoch, int) else None,
        cast("Mapping[str, Any]", logs) if isinstance(logs, Mapping) else {},
    )


def watch(recorder: Recorder, callbacks: Any, model: Any) -> None:
    """Have a recorder know whether the call of `fit` or `predict` that these callbacks belong to goes on."""
    list_of, owner = weakly(callbacks), weakly(model)

    def is_running(frame: FrameType) -> bool:
        known = list_of()
        is_call = known is not None and frame.f_code.co_name in ("fit", "predict")
        return is_call and frame.f_locals.get("callbacks") is known

    def has_raised(frame: FrameType) -> bool:
        known, name = owner(), frame.f_code.co_name
        if known is None or name not in ("fit", "predict", _AROUND):
            return False
        return _is_call_of(frame, known) if name == _AROUND else frame.f_locals.get("self") is known

    recorder.watch(is_running, has_raised=has_raised)


def nothing() -> None:
    """What is referred to weakly and is gone."""


def weakly(value: Any) -> Weakly:
    """A weak reference, also to None."""
    return nothing if value is None else weakref.ref(value)


def _is_call_of(frame: FrameType, model: Any) -> bool:
    given = frame.f_locals.get("args")
    return isinstance(given, tuple) and bool(given) and given[0] is model


def _given(frame: FrameType, model: Any) -> dict[str, Any]:
    if not _is_call_of(frame, model):
        return {}
    named = cast("dict[str, Any]", frame.f_locals.get("kwargs") or {})
    ordered = cast("tuple[Any, ...]", frame.f_locals["args"])[1:]
    given = {**dict(zip(_ARGUMENTS, ordered, strict=False)), **named}
    return {name: given[name] for name in _DATA if name in given}


def _calls_of_callbacks() -> list[FrameType]:
    """The calls from us down to the `CallbackList`, which is the last; empty if none called us.

    Elsewhere no local variable is looked at: Python keeps what was seen until that function returns.
    """
    found: list[FrameType] = []
    for frame in _below():
        found.append(frame)
        if frame.f_code.co_qualname.startswith("CallbackList."):
            return found
    return []


def _below() -> Iterator[FrameType]:
    return _from(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]


def _from(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
