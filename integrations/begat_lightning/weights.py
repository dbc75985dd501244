"""Which version a model's weights are, as long as nobody changes them. Nothing is read or compared by content."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

_versions: WeakKeyDictionary[Any, tuple[str, object]] = WeakKeyDictionary()


def note_version(module: Any, uid: str) -> None:
    """These weights were just saved as this version, or loaded from it."""
    _versions[module] = (uid, _state(module))


def version_of(module: Any) -> str | None:
    """The version that the weights still are, or None."""
    uid, state = _versions.get(module, (None, None))
    return uid if uid is not None and state == _state(module) else None


def _state(module: Any) -> object:
    """Another one after every change: torch counts what is done to a tensor in place, and optimizers do nothing else.

    Only parameters, as moving a module to another device makes new buffers of the same values.
    """
    try:
        return [(id(each), each._version) for each in module.parameters()]
    except RuntimeError:  # tensors of inference mode are not counted
        return object()
