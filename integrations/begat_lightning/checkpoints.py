"""What Lightning's objects tell of checkpoints: which are the best and the last, and how they are written."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, cast

# What is put into each checkpoint, so that whoever loads it is known to have used that very version.
KEY = "begat"
_NOT_IN_AN_ALIAS = re.compile(r"[^A-Za-z0-9._-]+")


def pointers(trainer: Any) -> Iterator[tuple[str, str, str]]:
    """(state key of a `ModelCheckpoint`, alias, path) of all that is the best or the last checkpoint now.

    `best` is that of the first one that monitors something, or of the only one; of several that monitor, each has
    `best-<monitor>` too.
    """
    found = list(_model_checkpoints(trainer))
    monitored = [each for each in found if each.monitor]
    named: set[str] = set()
    for each in found:
        if each.best_model_path and each in (monitored or found)[:1]:
            yield each.state_key, "best", each.best_model_path
        if each.best_model_path and each.monitor and len(monitored) > 1:
            alias = f"best-{_NOT_IN_AN_ALIAS.sub('-', each.monitor)}"
            if alias not in named:
                named.add(alias)
                yield each.state_key, alias, each.best_model_path
        if each.last_model_path:
            yield each.state_key, "last", each.last_model_path


class Pointers:
    """Where `ModelCheckpoint`s pointed when they were last asked."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], str] = {}

    def moved(self, trainer: Any, *, saved: Any = None) -> list[tuple[str, str]]:
        """(alias, path) of what points to another file than last time, or to the one just saved."""
        moved: list[tuple[str, str]] = []
        for owner, alias, path in pointers(trainer):
            real = os.path.realpath(path)
            if self._seen.get((owner, alias)) != real or (
                saved is not None and is_same_path(path, saved)
            ):
                self._seen[owner, alias] = real
                moved.append((alias, path))
        return moved


def score_of(trainer: Any, path: str) -> tuple[float | None, str | None]:
    """(score, monitor) of a checkpoint that was just saved, from the `ModelCheckpoint` that saved it."""
    for each in _model_checkpoints(trainer):
        if not each.monitor or path not in (each.last_model_path, *each.best_k_models):
            continue
        score = each.best_k_models.get(path, trainer.callback_metrics.get(each.monitor))
        return (None if score is None else float(score)), each.monitor
    return None, None


def is_replaced_whole(trainer: Any, path: Any) -> bool:
    """Whether the writer of a checkpoint puts a new file in the place of an old one, and never writes into it.

    Lightning's own writer makes a temporary file in the system's folder for those and moves it; where that is another
    file system, moving copies into the file that is there.
    """
    writer = cast("type[object]", type(getattr(trainer.strategy, "checkpoint_io", None)))
    is_own = writer.__name__ == "TorchCheckpointIO" and writer.__module__.partition(".")[0] in (
        "lightning",
        "lightning_fabric",
        "pytorch_lightning",
    )
    try:
        # A folder is the strategy's, which writes its parts as it likes.
        return (
            is_own
            and os.path.isfile(path)
            and os.stat(tempfile.gettempdir()).st_dev == os.stat(path).st_dev
        )
    except OSError:
        return False


def uid_in(checkpoint: Mapping[str, Any]) -> str | None:
    """The id of the version that a checkpoint is, from inside it."""
    uid = mapping(checkpoint.get(KEY)).get("uid")
    return uid if isinstance(uid, str) else None


def is_temporary(path: Any) -> bool:
    """Whether Lightning saves something for itself, to come back to and to remove (`.lr_find_<uuid>.ckpt`)."""
    return os.path.basename(os.path.normpath(path)).startswith(".")


def is_same_path(path: Any, other: Any) -> bool:
    """Whether two paths mean one file."""
    return os.path.realpath(path) == os.path.realpath(other)


def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that JSON can hold as they are, tensors of one number among them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if callable(getattr(value, "item", None)) and getattr(value, "numel", lambda: 1)() == 1:
            value = value.item()
        if isinstance(value, str | bool | int) or (
            isinstance(value, float) and math.isfinite(value)
        ):
            found[str(key)] = value
    return found


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one: what is read from a checkpoint may be anything."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def without_loggers(state: Mapping[str, Any]) -> dict[str, Any]:
    """A callback's attributes without the methods of the model that Lightning gave it, which hold the whole model."""
    return {name: value for name, value in state.items() if name not in ("log", "log_dict")}


def _model_checkpoints(trainer: Any) -> Iterator[Any]:
    for each in trainer.checkpoint_callbacks:
        if hasattr(each, "best_model_path") and hasattr(each, "last_model_path"):
            yield each
