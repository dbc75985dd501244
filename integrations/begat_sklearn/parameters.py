"""Parameters of estimators as JSON: what can be said is kept, the rest is named by its kind."""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# A vocabulary or a list of samples belongs into a dataset; in metadata it would only be in the way.
MOST_ITEMS = 100


def json_of(value: Any) -> Any:
    """The value as JSON. Equal parameters give equal JSON: no addresses, no order of a set.

    Estimators, functions and other objects become the name of their class or their own (`sklearn.svm._classes.SVC`),
    NaN and infinities their text, arrays and lists of more than 100 items their kind and shape.
    """
    if hasattr(value, "tolist") and getattr(value, "size", 0) <= MOST_ITEMS:  # of NumPy
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping) and len(value) <= MOST_ITEMS:
        return {str(key): json_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and len(value) <= MOST_ITEMS:
        return [json_of(item) for item in value]
    return kind_of(value)


def kind_of(value: Any) -> str:
    """`sklearn.svm._classes.SVC` for an SVC, `numpy.log1p` for the function, `numpy.ndarray(400, 3)` for an array."""
    named = value if hasattr(value, "__qualname__") else type(value)
    name = f"{getattr(named, '__module__', None) or 'builtins'}.{named.__qualname__}"
    if hasattr(value, "shape"):
        return f"{name}{value.shape}"
    return f"{name}[{len(value)}]" if isinstance(value, list | tuple | Mapping) else name
