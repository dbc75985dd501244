"""What a model returns, as the columns of tables: one table for each of its outputs."""

# Keras ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import keras
import numpy as np

Reading = Literal["values", "logits", "probabilities"]


def outputs_of(returned: Any) -> dict[str, Any]:
    """Name -> values, as arrays; the only output of a model has no name."""
    if isinstance(returned, Mapping):
        named = {str(name): each for name, each in cast("Mapping[Any, Any]", returned).items()}
    elif isinstance(returned, list | tuple):
        several = cast("tuple[Any, ...]", returned)
        named = {str(number): each for number, each in enumerate(several)}
    else:
        named = {"": returned}
    # Of a batch of one row and one value, Keras tells the number.
    return {
        name: np.atleast_1d(np.asarray(keras.ops.convert_to_numpy(each)))
        for name, each in named.items()
    }


def columns_of(values: Any, reads_as: Reading) -> dict[str, Any]:
    """`pred`, and `prob` where the values are read as those of classes; one value a row says whether it is so."""
    if reads_as == "values":
        return {"pred": values, "prob": None}
    is_one = values.ndim == 1 or values.shape[1] == 1
    prob = values.astype(np.float32).reshape(-1, 1) if is_one else values.astype(np.float32)
    if reads_as == "logits":
        function = keras.ops.sigmoid if is_one else keras.ops.softmax
        prob = np.asarray(keras.ops.convert_to_numpy(function(prob)))
    return {"pred": (prob.ravel() > 0.5).astype(int) if is_one else prob.argmax(1), "prob": prob}
