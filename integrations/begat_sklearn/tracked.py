"""An estimator whose fits are recorded: what data they used, and the fitted model as a version."""

# scikit-learn ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUntypedBaseClass=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sklearn
import skops
from sklearn.base import clone
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted

import begat
from begat.errors import BegatWarning, Refused
from begat_sklearn.delegating import DelegatingEstimator
from begat_sklearn.parameters import json_of, kind_of
from begat_sklearn.skops_file import MODEL_FILE, bytes_of_estimator, estimator_of

OnError = Literal["warn", "raise"]

# Within a recorded fit, tracked estimators inside the estimator are parts of it and make no versions of their own.
_is_recording: ContextVar[bool] = ContextVar("begat_sklearn_is_recording", default=False)
_told_of_clones: list[bool] = []


class TrackedEstimator(DelegatingEstimator):
    """Wraps an estimator, pipeline or search; `fit` records what it used and logs the fitted model as a version.

    `uses` are references of the data (`"digits:latest"`); they are resolved and recorded before fitting begins, and
    one that does not exist raises. `name` is the model's artifact, by default the estimator's class in lower case
    (`logistic-regression`). A fit joins the active run; without one it is a run of its own, of the job `fit-<name>`,
    in `store` (a store's folder; the default store if None).

    A fit is not lost because it could not be recorded: with `on_error="warn"` a store that fails is a `BegatWarning`,
    `estimator_` is fitted and `version_ref_` is None; with "raise" it is an error.

    Wrap a search from outside, `TrackedEstimator(GridSearchCV(...))`. A clone is fitted without being recorded, as
    searches and cross-validation fit dozens, often in other processes; it warns of that unless it is part of a
    recorded fit.

    Attributes after `fit`: `estimator_` (a fitted clone of `estimator`), `version_ref_` (`digits-model:v4`), and those
    of the fitted estimator (`classes_`, `best_params_`, ...).
    """

    _is_clone = False

    def __init__(
        self,
        estimator: Any,
        *,
        name: str | None = None,
        uses: str | Sequence[str] | None = None,
        store: str | os.PathLike[str] | None = None,
        on_error: OnError = "warn",
    ) -> None:
        self.estimator = estimator
        self.name = name
        self.uses = uses
        self.store = store
        self.on_error: OnError = on_error

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> TrackedEstimator:
        """Fit a clone of the estimator, and log it as a version of type `model` made by the run.

        Raises what the estimator raises (the run ends as failed or interrupted), `begat.errors.NotFound` and
        `BadReference` for `uses`, and with `on_error="raise"` any `begat.BegatError`.
        """
        if self._is_clone or _is_recording.get():
            if not _is_recording.get():
                _tell_of_clones()
            self._fit(X, y, fit_params)
            return self
        token = _is_recording.set(True)
        try:
            with self._recorder("fit", self.on_error, self.uses) as recorder:
                recorder.note(params=json_of(self.estimator.get_params()))
                self._fit(X, y, fit_params)
                self._log_model(recorder)
        finally:
            _is_recording.reset(token)
        return self

    def log_predictions(
        self,
        X: Any,
        y: Any = None,
        *,
        ids: Any = None,
        name: str | None = None,
        uses: str | Sequence[str] | None = None,
    ) -> begat.Version:
        """Predict, and log the table as a version of type `predictions`; its inputs are the model and the data.

        `part-00000.parquet` has the columns `id` (the row number, or what `ids` gives), `label` (`y`, or null),
        `pred` and, if the estimator gives probabilities, `prob` (a list of fixed size, in the order of `classes_`).
        `uses` are the references of the data, by default those of the fit, resolved anew unless the run has them.
        `name` is by default `<model>-predictions`. Joins the active run, like `fit`; errors always raise.
        """
        check_is_fitted(self)
        if self.version_ref_ is None:
            raise Refused(
                f"the model {self._model_name} is not in a store, so its predictions have no origin; "
                "fit it outside of a search, with a store that can be written. Nothing was stored"
            )
        check_consistent_length(X, y, ids)
        classes = json_of(getattr(self, "classes_", None))
        asked = _refs(self.uses if uses is None else uses)
        with self._recorder("predict", "raise", asked) as recorder:
            data = recorder.consume(asked)
            recorder.consume([self.version_ref_], role="model")
            probabilities = self.predict_proba(X) if hasattr(self, "predict_proba") else None
            if isinstance(probabilities, list):  # of several outputs, a table for each
                probabilities = None
            elif probabilities is not None:
                probabilities = np.asarray(probabilities, dtype=np.float32)
            with tempfile.TemporaryDirectory(prefix="begat-sklearn-") as folder:
                with begat.PredictionWriter(
                    folder,
                    run=recorder.run.id if recorder.run else None,
                    model=self.version_ref_,
                    datasets=[version.ref for version in data],
                    classes=classes,
                ) as writer:
                    writer.write(self.predict(X), id=ids, label=y, prob=probabilities)
                version = recorder.output(
                    folder,
                    name=name or f"{self._model_name}-predictions",
                    type="predictions",
                    metadata={"model": self.version_ref_, "classes": classes},
                )
        if version is None:
            raise Refused(
                "this process is one of several and not the one that records; log on rank 0. Nothing was stored"
            )
        return version

    def __sklearn_clone__(self) -> TrackedEstimator:
        copy: Any = super().__sklearn_clone__()
        copy._is_clone = True
        return copy

    # --- inside ---

    @property
    def _model_name(self) -> str:
        return self.name or _kebab_case(type(self.estimator).__name__)

    def _fit(self, X: Any, y: Any, fit_params: dict[str, Any]) -> None:
        estimator: Any = clone(self.estimator)
        estimator.fit(X, y, **fit_params)
        self.estimator_: Any = estimator
        self.version_ref_: str | None = None

    @contextmanager
    def _recorder(
        self, doing: str, on_error: OnError, uses: str | Sequence[str] | None
    ) -> Generator[begat.Recorder]:
        recorder = begat.Recorder.attach(
            store=self.store,
            name=self._model_name,
            job=f"{doing}-{self._model_name}",
            uses=_refs(uses),
            on_error=on_error,
        )
        try:
            yield recorder
        except BaseException as error:
            recorder.finish(error=error)
            raise
        recorder.finish()

    def _log_model(self, recorder: begat.Recorder) -> None:
        model = self.estimator_
        metadata = {
            "estimator": kind_of(model),
            "params": json_of(model.get_params()),
            "n_features": json_of(getattr(model, "n_features_in_", None)),
            "classes": json_of(getattr(model, "classes_", None)),
            "best_params": json_of(getattr(model, "best_params_", None)),
            "scikit_learn": sklearn.__version__,
            "skops": skops.__version__,
        }
        try:
            data = bytes_of_estimator(model)
        except (
            Exception
        ) as error:  # any, as each library has its own; a fit is worth more than its record
            if self.on_error == "raise":
                raise
            warnings.warn(
                f"{self._model_name} is fitted without being stored: {error}",
                BegatWarning,
                stacklevel=3,
            )
            recorder.finish("failed")
            return
        known = {key: value for key, value in metadata.items() if value is not None}
        version = _stored(
            recorder, MODEL_FILE, data, name=self._model_name, type="model", metadata=known
        )
        if version is None:
            recorder.finish("failed")  # nothing came of it, which a finished run would not say
        else:
            self.version_ref_ = version.ref


def load_estimator(
    ref: str | begat.Version,
    *,
    trusted: Sequence[str] = (),
    store: str | os.PathLike[str] | None = None,
) -> TrackedEstimator:
    """The model of a version that `TrackedEstimator` made, fitted; the active run is recorded as its user.

    It predicts, and its `log_predictions` knows where it comes from; `.estimator_` is the plain estimator. Without an
    active run it is read from `store` (a store's folder; the default store if None), and nothing is recorded.

    A file can name any class for loading to call. Only types that skops knows to be harmless, and those listed in
    `trusted` by their full names, are loaded; otherwise it raises `begat.errors.Refused` naming the others, and
    nothing in the file has run. All bytes are verified first.
    """
    if store is None or isinstance(ref, begat.Version) or begat.active_run() is not None:
        version = begat.use_artifact(ref)
        estimator = estimator_of(version, trusted=trusted)
    else:
        with begat.open_store(store) as opened:
            version = opened.get_artifact(ref)
            estimator = estimator_of(version, trusted=trusted)
    tracked = TrackedEstimator(estimator, name=version.name, store=store)
    tracked.estimator_ = estimator
    tracked.version_ref_ = version.ref
    return tracked


def _tell_of_clones() -> None:
    # Once in a process: a search fits dozens, and a warning for each would bury everything else.
    if not _told_of_clones:
        _told_of_clones.append(True)
        warnings.warn(
            "the fit of a cloned TrackedEstimator is not recorded; wrap the search or the cross-validated estimator "
            "from outside: TrackedEstimator(GridSearchCV(...))",
            BegatWarning,
            stacklevel=3,
        )


def _kebab_case(name: str) -> str:
    """`GridSearchCV` -> `grid-search-cv`"""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)
    return words.strip("_").lower()


def _refs(uses: str | Sequence[str] | None) -> list[str]:
    return [uses] if isinstance(uses, str) else list(uses or ())


def _stored(
    recorder: begat.Recorder,
    file: str,
    data: bytes,
    *,
    name: str,
    type: str,
    metadata: dict[str, Any],
) -> begat.Version | None:
    with tempfile.TemporaryDirectory(prefix="begat-sklearn-") as folder:
        Path(folder, file).write_bytes(data)
        return recorder.output(folder, name=name, type=type, metadata=metadata)
