"""What Keras's objects tell of a checkpoint that is being saved."""

# Keras ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np

from begat_keras.stack import Saving

_NOT_IN_AN_ALIAS = re.compile(r"[^A-Za-z0-9._-]+")
_SHARDED = ".weights.json"


def score_of(saving: Saving) -> tuple[float | None, str | None]:
    """(score, monitor), if the callback that saves monitors something that Keras has told it."""
    monitor = getattr(saving.callback, "monitor", None)
    score = scalars(saving.logs).get(monitor) if isinstance(monitor, str) else None
    return (None, None) if score is None else (float(score), monitor)


def aliases_of(saving: Saving) -> list[str]:
    """`best` if a `ModelCheckpoint` saves the best model it has seen; of several each has `best-<monitor>` too."""
    score, monitor = score_of(saving)
    if score is None or monitor is None or not _keeps_best(saving.callback):
        return []
    best = cast("float | None", saving.callback.best)
    if best is None or float(best) != score:
        return []
    choosing = [each for each in saving.callbacks if _keeps_best(each)]
    found = ["best"] if choosing[:1] == [saving.callback] else []
    first = next(each for each in choosing if each.monitor == monitor)
    if len(choosing) > 1 and first is saving.callback:
        found.append(f"best-{_NOT_IN_AN_ALIAS.sub('-', monitor)}")
    return found


def step_of(model: Any) -> int | None:
    """How often the optimizer has been applied."""
    optimizer = getattr(model, "optimizer", None)
    iterations = getattr(optimizer, "iterations", None)
    return None if iterations is None else int(np.asarray(keras.ops.convert_to_numpy(iterations)))


def files_beside(path: str | os.PathLike[str]) -> list[Path]:
    """The files that hold the weights, where the one that was saved only lists them."""
    index = Path(path)
    if not index.name.endswith(_SHARDED):
        return []
    listed = json.loads(index.read_bytes())["weight_map"]
    names = {
        name for value in listed.values() for name in ([value] if isinstance(value, str) else value)
    }
    return [index.parent / name for name in sorted(names)]


def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that JSON can hold as they are, arrays and tensors of one number among them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(value, str | bool | int | float):
            try:
                # By its text: 0.01 of 32 bits is 0.01, and not what is left of it in 64.
                value = float(str(np.asarray(keras.ops.convert_to_numpy(value))))
            except (TypeError, ValueError):
                continue
        if not isinstance(value, float) or math.isfinite(value):
            found[str(key)] = value
    return found


def _keeps_best(callback: Any) -> bool:
    return isinstance(callback, keras.callbacks.ModelCheckpoint) and bool(callback.save_best_only)
