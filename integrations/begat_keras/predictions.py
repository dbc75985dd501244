"""Predictions as versions: those of `model.predict`, and those on held-out data at the end of a fit."""

# Keras ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import keras

from begat import Version
from begat_keras import stack, weights
from begat_keras.callback import ArtifactCallback, at_the_end
from begat_keras.columns import Reading
from begat_keras.table import Table, Terms


class PredictionCallback(keras.callbacks.Callback):
    """What `model.predict` gives becomes a version: a table as parquet, with a row for each sample.

    `name` is the artifact (default: `<name of the model>-predictions`), its type `predictions`. Its inputs are the data
    (`uses`, references; and what it is known to be) and the model: `model` if it is given, and the version that has its
    weights, which is looked for where this process has fitted the model and among the artifacts that are declared.
    `detect=False` looks for nothing. The run is the active one, or one of its own with `job` as its job.

    `pred` is what the model returns. `reads_as="logits"` or `"probabilities"` is for values of all classes: `prob` is
    made of them, and `pred` is the number of the highest. `classes` are the names of the classes. A model with several
    outputs makes a folder of each. `id` is the row's number. Nothing is kept in memory here. `on_error="warn"` lets
    predicting go on whatever happens to its tracking, `"raise"` does not.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        uses: Iterable[str | Version] = (),
        model: str | Version | None = None,
        reads_as: Reading = "values",
        classes: Sequence[str] | None = None,
        job: str | None = None,
        store: str | os.PathLike[str] | None = None,
        detect: bool = True,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        self.terms = Terms(
            name=name,
            uses=(uses,) if isinstance(uses, str | Version) else tuple(uses),
            model=model,
            reads_as=reads_as,
            classes=classes,
            job=job,
            store=store,
            detect=detect,
            on_error=on_error,
        )
        self._table: Table | None = None

    def on_predict_begin(self, logs: Any = None) -> None:
        """Start or join a run, and commit what it uses."""
        data = stack.data_of("predict", self._model)
        self._table = Table(self.terms, self.model, data=data, role="predict")
        stack.watch(self._table.recorder, stack.callback_list(), self._model)

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write what the model returned for a batch."""
        if self._table is not None:
            # Of a model whose outputs have names, Keras tells each of them in the place of all.
            self._table.write((logs or {}).get("outputs", logs))

    def on_predict_end(self, logs: Any = None) -> None:
        """Make a version of all."""
        table, self._table = self._table, None
        if table is not None:
            table.store()
            table.recorder.finish()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_table": None}


class EvaluationTable(keras.callbacks.Callback):
    """At the end of a fit, what the model predicts for these rows becomes a version: a table as parquet.

    It has `label` (from `y`) and `id` (the row's number, or from `ids`) beside `pred`, and `prob` as `reads_as` says;
    see `PredictionCallback`. Its inputs are the model, if that was saved as it is at the end, and the data: `uses`, by
    default what the fit declared, and what the rows are known to be. It is made after all other callbacks, by the run
    around the fit or else by one of its own.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        ids: Any = None,
        name: str | None = None,
        uses: Iterable[str | Version] | None = None,
        reads_as: Reading = "values",
        classes: Sequence[str] | None = None,
        batch_size: int | None = None,
        store: str | os.PathLike[str] | None = None,
        detect: bool = True,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        self.x, self.y, self.ids = x, y, ids
        self.uses = (uses,) if isinstance(uses, str | Version) else uses
        self.batch_size = batch_size
        self.terms = Terms(
            name=name,
            reads_as=reads_as,
            classes=classes,
            store=store,
            detect=detect,
            on_error=on_error,
        )
        self._callbacks: stack.Weakly | None = None  # all those of the fit that goes on

    def on_train_begin(self, logs: Any = None) -> None:
        """See to it that the end of the fit is told."""
        callbacks = stack.callback_list()
        self._callbacks = stack.weakly(callbacks)
        at_the_end(callbacks, self)

    def on_train_end(self, logs: Any = None) -> None:
        """The fit came to its end; if that can be seen, other callbacks come first."""
        if self._callbacks is not None and self._callbacks() is None:
            self.end_of_fit(logs)

    def end_of_fit(self, logs: Mapping[str, Any] | None) -> None:
        """Predict, and make a version of it; the checkpoints are stored by now."""
        if self._callbacks is None:
            return
        callbacks, self._callbacks = self._callbacks(), None
        for each in [] if callbacks is None else list(callbacks.callbacks):
            if isinstance(each, ArtifactCallback):
                each.end_of_fit(logs)
        model = self.model
        fitted = weights.fitted(model)
        uses = self.uses if self.uses is not None else fitted.used if fitted else ()
        terms = self.terms.with_defaults(uses=tuple(uses), store=fitted.store if fitted else None)
        data = {"x": self.x, "y": self.y} if self.y is not None else {"x": self.x}
        table = Table(terms, model, data=data, role="validation")
        with table.recorder:
            returned = table.predict(model, self.x, batch_size=self.batch_size)
            table.write(returned, id=self.ids, label=self.y)
            table.store()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_callbacks": None}
