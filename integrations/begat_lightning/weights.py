"""Which version a model's weights are, as long as nobody changes them."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

# Of each parameter; a step of an optimizer moves nearly all of them, and a save must not wait for reading them all.
LOOKED_AT = 16

_versions: WeakKeyDictionary[Any, tuple[str, object]] = WeakKeyDictionary()


def note_version(module: Any, uid: str) -> None:
    """These weights were just saved as this version, or loaded from it."""
    _versions[module] = (uid, _state(module))


def version_of(module: Any) -> str | None:
    """The version that the weights still are, or None."""
    uid, state = _versions.get(module, (None, None))
    return uid if uid is not None and state == _state(module) else None


def _state(module: Any) -> object:
    """Another one after every change: how often torch changed each parameter in place, and some of its values.

    Fused optimizers are not counted by torch, hence the values. Not the buffers, as moving a module to another device
    makes new ones of the same values.
    """
    try:
        parameters = list(module.parameters())
        counted = [(id(each), each._version) for each in parameters]
        values = [_some_of(each) for each in parameters]
        return counted, torch.cat(values).cpu().numpy().tobytes() if values else b""
    except (
        RuntimeError,
        TypeError,
    ):  # tensors without storage or count: nothing can be said of them
        return object()


def _some_of(parameter: Any) -> torch.Tensor:
    values = parameter.detach()
    if hasattr(values, "to_local"):  # of a sharded one, what lies here: no other process is asked
        values = values.to_local()
    flat: torch.Tensor = values.reshape(-1)
    return flat[:: max(1, flat.numel() // LOOKED_AT)][:LOOKED_AT].double()
