"""What `trainer.predict(...)` gave, as a version whose inputs are the model and the data."""

from __future__ import annotations

import re
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, cast

import numpy as np

import begat
from begat.errors import BadInput, Refused
from begat_transformers import training

ROWS_PER_BATCH = 65_536
# Calls of `predict` whose results may still be logged.
MOST_REMEMBERED = 16


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose weights a model has: the version that a folder became."""

    recorder: begat.Recorder
    folder: str
    step: int | None
    alias: str

    def version(self) -> begat.Version | None:
        """The version, if it is stored by now."""
        for version in reversed(self.recorder.store.versions(self.recorder.policy.name)):
            at = version.metadata.get("path"), version.metadata.get("step")
            if at == (self.folder, self.step):
                return version
        return None


@dataclass(frozen=True)
class Origin:
    """Where predictions come from, as the callback saw it when they were made."""

    metrics: Any
    model: Checkpoint | None
    data: Callable[[], Any]  # None once nobody has it any more
    store: str | PathLike[str] | None
    is_main: bool
    is_in_order: bool


_remembered: deque[Origin] = deque(maxlen=MOST_REMEMBERED)


def reference(data: Any) -> Callable[[], Any]:
    """What gives the data back as long as somebody holds it: it may fill the memory."""
    try:
        return weakref.ref(data)
    except TypeError:  # a list, for one, cannot be referred to like that
        return lambda: data


def remember(origin: Origin) -> None:
    """Keep where predictions come from; the dict of their metrics is theirs alone, and tells them apart."""
    _remembered.append(origin)


def _origin_of(metrics: Any) -> Origin | None:
    known = [one for one in _remembered if one.metrics is metrics]
    return max(known, key=lambda one: one.model is not None, default=None)


def log_predictions(
    output: Any,
    *,
    ids: Any = None,
    name: str | None = None,
    model: str | begat.Version | None = None,
    uses: str | begat.Version | Iterable[str | begat.Version] = (),
    classes: Sequence[str] | None = None,
    prob: Literal["softmax"] | None = "softmax",
    store: str | PathLike[str] | None = None,
) -> begat.Version | None:
    """The version of what `trainer.predict(...)` gave, of type `predictions`; None on a rank that does not record.

    Columns: `id` (row number, or what `ids` gives), `label` (or null), `pred`, and `prob`: logits, one row of them for
    each sample and labels that are classes or none, become `pred` (the class) and `prob` (softmax, in the order of
    `classes`). Everything else, and all with `prob=None`, is stored as it is. Of several outputs the first is taken.

    Inputs are the model and the data. The model is the version that the trainer's weights are, if it has an
    `ArtifactCallback` and was trained here; otherwise name it with `model`. The data are the versions in `uses`, and
    those that the dataset is found to come from. `name` is by default `<model>-predictions`. It joins the active run;
    without one it is a run of its own, of the job `predict-<model>`.

    Raises `begat.errors.Refused` if no model is known, and whatever prevents the version from being stored.
    """
    origin = _origin_of(getattr(output, "metrics", None))
    if origin is not None and not origin.is_main:
        return None
    if origin is not None and not origin.is_in_order:
        raise Refused(
            "these predictions are sorted by length (train_sampling_strategy='group_by_length'), so nobody can say "
            "which row is which; predict with a Trainer that has another strategy. Nothing was stored"
        )
    source = _model_of(origin) if model is None else model
    title = source.name if isinstance(source, begat.Version) else re.split("[:@]", source)[0]
    recorder = begat.Recorder.attach(
        store=store if store is not None or origin is None else origin.store,
        name=title,
        job=f"predict-{title}",
        on_error="raise",
    )
    with recorder:
        if not recorder.is_recording:
            return None
        used = _used(recorder, source, origin)
        recorder.consume([uses] if isinstance(uses, str | begat.Version) else uses)
        if origin is not None:
            recorder.observe(origin.data(), role="predict")
        table = _table_of(output, prob)
        version = _stored(recorder, table, ids, used, classes, name or f"{used.name}-predictions")
        recorder.note(metrics=training.scalars(getattr(output, "metrics", None) or {}))
    return version


def _model_of(origin: Origin | None) -> begat.Version:
    if origin is None:
        raise Refused(
            "no ArtifactCallback has seen these predictions being made, so their model is not known; "
            "name it: log_predictions(..., model='net:best'). Nothing was stored"
        )
    version = origin.model.version() if origin.model is not None else None
    if version is None:
        raise Refused(
            "the weights that made these predictions are not those of a checkpoint that was recorded by this Trainer; "
            "name their version: log_predictions(..., model='net:best'). Nothing was stored"
        )
    return version


def _used(
    recorder: begat.Recorder, source: str | begat.Version, origin: Origin | None
) -> begat.Version:
    """The model, recorded as used: by its alias if that is what the trainer has, so that predictions of the best
    checkpoint are not stale because another one is the latest."""
    alias = origin.model.alias if origin is not None and origin.model is not None else None
    if isinstance(source, begat.Version) and alias in source.aliases:
        (used,) = recorder.consume([f"{source.name}:{alias}"], role="model")
        if used == source:  # within a run an alias means what it meant at first
            return used
    (used,) = recorder.consume([source], role="model")
    return used


def _table_of(output: Any, prob: Literal["softmax"] | None) -> tuple[Any, Any, bool]:
    """(what the model gave, labels, whether that are logits of classes)"""
    given, labels = _first(output.predictions), _first(output.label_ids)
    given = np.asarray(given)
    labels = None if labels is None else np.asarray(labels)
    is_of_classes = labels is None or (labels.ndim == 1 and labels.dtype.kind in "iu")
    is_logits = given.ndim == 2 and given.shape[1] > 1 and given.dtype.kind == "f"
    return given, labels, prob is not None and is_of_classes and is_logits


def _first(values: Any) -> Any:
    """The first of several outputs: those after it are hidden states and the like."""
    if isinstance(values, Mapping):
        values = tuple(cast("Mapping[str, Any]", values).values())
    is_several = isinstance(values, tuple) and len(cast("tuple[Any, ...]", values)) > 0
    return cast("Any", values[0] if is_several else values)


def _stored(
    recorder: begat.Recorder,
    table: tuple[Any, Any, bool],
    ids: Any,
    model: begat.Version,
    classes: Sequence[str] | None,
    name: str,
) -> begat.Version | None:
    given, labels, is_logits = table
    run = recorder.run
    used = run.inputs if run is not None else ()
    datasets = [version.ref for version in used if version.type == "dataset"]
    if ids is not None and len(ids) != len(given):
        raise BadInput(f"there are {len(ids)} ids for {len(given)} predictions. Nothing was stored")
    predictions = recorder.predictions(model=model.ref, datasets=datasets, classes=classes)
    for start in range(0, len(given), ROWS_PER_BATCH):
        rows = slice(start, start + ROWS_PER_BATCH)
        predictions.write(
            pred=given[rows].argmax(axis=1) if is_logits else given[rows],
            id=None if ids is None else ids[rows],
            label=None if labels is None else labels[rows],
            prob=_softmax(given[rows]) if is_logits else None,
        )
    return predictions.store(name, metadata={"rows": len(given)})


def _softmax(logits: Any) -> Any:
    raised = np.exp(logits.astype(np.float32) - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)
