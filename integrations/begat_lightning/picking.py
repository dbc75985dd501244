"""What `predict_step` returned, as the columns of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch

from begat.errors import BadInput

Pick = str | int | Callable[[Any, Any], Any]
Reading = Literal["values", "logits", "probabilities"]

# A dict of outputs has a column under one of these keys.
NAMES = {
    "pred": ("pred", "preds", "prediction", "predictions"),
    "prob": ("prob", "probs", "probability", "probabilities"),
    "label": ("label", "labels", "target", "targets"),
    "id": ("id", "ids"),
}
# A tuple has them in this order, as far as it goes.
ORDER = ("pred", "prob", "label")


def picked(
    outputs: Any, batch: Any, picks: Mapping[str, Pick | None], *, reads_as: Reading = "values"
) -> dict[str, Any]:
    """Column -> values, or None: `pred`, `prob`, `label`, `id`, each by its pick or where it is by default.

    Raises `BadInput` where there is no `pred`, or nothing at a pick.
    """
    columns = _by_default(outputs)
    for name, pick in picks.items():
        if pick is not None:
            columns[name] = _at(outputs, batch, name, pick)
    if reads_as != "values" and columns["pred"] is not None and columns["prob"] is None:
        columns["pred"], columns["prob"] = _of_classes(columns["pred"], reads_as)
    if columns["pred"] is None:
        told = f"the keys {', '.join(map(str, outputs))}" if _is_mapping(outputs) else "nothing"
        raise BadInput(
            f"predict_step returned {told}, and none of it is known as pred; "
            "say where it is: PredictionCallback(pred=<key, or function of outputs and batch>)"
        )
    return columns


def _by_default(outputs: Any) -> dict[str, Any]:
    columns: dict[str, Any] = dict.fromkeys(NAMES)
    if hasattr(outputs, "_asdict"):  # a named tuple says what its values are
        outputs = outputs._asdict()
    if _is_mapping(outputs):
        for name, keys in NAMES.items():
            columns[name] = next((outputs[key] for key in keys if key in outputs), None)
    elif isinstance(outputs, tuple):
        columns |= zip(ORDER, cast("tuple[Any, ...]", outputs), strict=False)
    else:
        columns["pred"] = outputs
    return columns


def _at(outputs: Any, batch: Any, name: str, pick: Pick) -> Any:
    if callable(pick):
        return pick(outputs, batch)
    try:
        is_attribute = isinstance(pick, str) and not _is_mapping(outputs)
        return getattr(outputs, cast("str", pick)) if is_attribute else outputs[pick]
    except (AttributeError, LookupError, TypeError) as error:
        raise BadInput(
            f"predict_step returned a {type(outputs).__name__} without {pick!r}, where {name} should be"
        ) from error


def _of_classes(scores: Any, reads_as: Reading) -> tuple[Any, Any]:
    """(the class with the highest probability, the probabilities); of one score a row: whether it is over a half."""
    scores = torch.as_tensor(scores).detach().float()
    is_one = scores.ndim == 1 or scores.shape[1] == 1
    if reads_as == "logits":
        scores = scores.sigmoid() if is_one else scores.softmax(1)
    return (scores.flatten() > 0.5).long() if is_one else scores.argmax(1), scores


def _is_mapping(outputs: Any) -> bool:
    return isinstance(outputs, Mapping)
