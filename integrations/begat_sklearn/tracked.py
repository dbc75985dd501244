"""An estimator whose fits are recorded: what data they used, and the fitted model as a version."""

# scikit-learn ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUntypedFunctionDecorator=false, reportUntypedBaseClass=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_consistent_length
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

import begat
from begat.errors import BadInput, BegatError, NotFound, Refused, warn
from begat_sklearn.delegating import DelegatingEstimator, offers
from begat_sklearn.model_file import Serializer
from begat_sklearn.parameters import json_of
from begat_sklearn.recording import (
    FitRecording,
    OnError,
    Options,
    Uses,
    attach,
    is_of_parent,
    is_recording,
    name_of,
    refs,
    warn_once,
)

OF_CLONES = (
    "the fit of a cloned TrackedEstimator is not recorded; wrap the search or the cross-validated estimator from "
    "outside: TrackedEstimator(GridSearchCV(...))"
)
OF_WORKERS = (
    "the fit of a TrackedEstimator in a worker process is not recorded: the process that started it owns the run; "
    "fit there, or wrap what starts the workers"
)
NOT_HERE = (
    "this process is one of several and not the one that records; log on rank 0. Nothing was stored"
)


class TrackedEstimator(DelegatingEstimator):
    """Wraps an estimator, pipeline or search; `fit` records what it used and logs the fitted model as a version.

    `uses` are references of the data (`"digits:latest"`); they are resolved and recorded before fitting begins, and
    one that does not exist raises. `name` is the model's artifact, by default the estimator's class in lower case
    (`logistic-regression`). A fit joins the active run; without one it is a run of its own, of the job `fit-<name>`,
    in `store` (a store's folder; the default store if None). `serializer` writes the model: "skops", which can be read
    without running what is in it, or "joblib", a pickle, for estimators that skops cannot write.

    A fit is not lost because it could not be recorded: with `on_error="warn"` a store that fails is a `BegatWarning`,
    `estimator_` is fitted and `version_ref_` is None; with "raise" it is an error.

    Wrap a search from outside, `TrackedEstimator(GridSearchCV(...))`. A clone is fitted without being recorded, as
    searches and cross-validation fit dozens, often in other processes; it warns of that unless it is part of a
    recorded fit. So is a copy in a worker process.

    Attributes after `fit`: `estimator_` (a fitted clone of `estimator`), `version_ref_` (`digits-model:v4`), and those
    of the fitted estimator (`classes_`, `best_params_`, ...).
    """

    _is_clone = False
    _pickled_by: int | None = None
    # What `uses` meant when partial_fit began, by which `log_model` records it.
    _pinned: list[str] | None = None

    def __init__(
        self,
        estimator: Any,
        *,
        name: str | None = None,
        uses: Uses = None,
        store: str | os.PathLike[str] | None = None,
        on_error: OnError = "warn",
        serializer: Serializer = "skops",
    ) -> None:
        self.estimator = estimator
        self.name = name
        self.uses: Uses = uses
        self.store = store
        self.on_error: OnError = on_error
        self.serializer: Serializer = serializer

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> TrackedEstimator:
        """Fit a clone of the estimator, and log it as a version of type `model` made by the run.

        Raises what the estimator raises (the run ends as failed or interrupted), `begat.errors.NotFound` and
        `BadReference` for `uses`, and with `on_error="raise"` any `begat.BegatError`.
        """
        self._recorded("fit", X, y, fit_params)
        return self

    @available_if(offers("fit_transform", "transform"))
    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Fit as `fit` does; what the fitted estimator makes of X."""
        return self._recorded("fit_transform", X, y, fit_params)

    @available_if(offers("fit_predict"))
    def fit_predict(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Fit as `fit` does; what the fitted estimator predicts for X."""
        return self._recorded("fit_predict", X, y, fit_params)

    @available_if(offers("partial_fit"))
    def partial_fit(self, X: Any, y: Any = None, **params: Any) -> TrackedEstimator:
        """Train with one more piece of the data. Nothing is logged; `log_model` logs what came of all of them.

        The first call resolves `uses`, and raises for a reference that does not exist.
        """
        estimator: Any = self.__dict__.get("estimator_")
        if estimator is None:
            if not self._is_part():
                self._pin()
            estimator = _cloned(self.estimator)
        estimator.partial_fit(X, y, **self._routed("partial_fit", params))
        self.estimator_: Any = estimator
        self.version_ref_: str | None = None
        return self

    def log_model(self) -> begat.Version:
        """Log the fitted estimator as it is now, as `fit` does: after `partial_fit`. Errors always raise."""
        check_is_fitted(self)
        uses = self.uses if self._pinned is None else self._pinned
        options = self._options(uses=uses, on_error="raise")
        with FitRecording(options, self.estimator_) as recording:
            version = recording.keep(self.estimator_)
        if version is None:
            raise Refused(NOT_HERE)
        self.version_ref_ = version.ref
        return version

    def log_predictions(
        self,
        X: Any,
        y: Any = None,
        *,
        ids: Any = None,
        name: str | None = None,
        uses: Uses = None,
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
                f"the model {name_of(self.name, self.estimator)} is not in a store, so its predictions have no origin; "
                "fit it outside of a search, with a store that can be written. Nothing was stored"
            )
        check_consistent_length(X, y, ids)
        classes = json_of(getattr(self, "classes_", None))
        options = self._options(uses=uses, on_error="raise")
        with attach("predict", options) as recorder:
            recorder.consume([self.version_ref_], role="model")
            predictions = recorder.predictions(
                model=self.version_ref_,
                datasets=[version.ref for version in recorder.declared],
                classes=classes,
            )
            pred, prob = self.predict(X), self._probabilities(X)
            predictions.write(pred=pred, id=ids, label=y, prob=prob)
            version = predictions.store(name or f"{options.name}-predictions")
        if version is None:
            raise Refused(NOT_HERE)
        return version

    def __sklearn_clone__(self) -> TrackedEstimator:
        copy: Any = super().__sklearn_clone__()
        copy._is_clone = True
        return copy

    def __getstate__(self) -> Any:
        state: Any = super().__getstate__()
        return {**state, "_pickled_by": os.getpid()}

    # --- inside ---

    def _recorded(self, method: str, X: Any, y: Any, params: dict[str, Any]) -> Any:
        if isinstance(self.estimator, type):
            kind = self.estimator.__name__
            raise TypeError(
                f"an estimator is wrapped, and not its class: TrackedEstimator({kind}())"
            )
        self._pinned = None
        if self._is_part():
            return self._fit(method, X, y, params)
        with FitRecording(self._options(), self.estimator) as recording:
            recording.observe(X, y, params)
            result = self._fit(method, X, y, params)
            version = recording.keep(self.estimator_)
            self.version_ref_ = version.ref if version else None
        return result

    def _probabilities(self, X: Any) -> Any:
        """Of each class; None where there are none, or a table for each of several outputs."""
        if not hasattr(self, "predict_proba"):
            return None
        table = self.predict_proba(X)
        return None if isinstance(table, list) else np.asarray(table, dtype=np.float32)

    def _fit(self, method: str, X: Any, y: Any, params: dict[str, Any]) -> Any:
        estimator = _cloned(self.estimator)
        routed = self._routed(method, params)
        if method == "fit_transform" and not hasattr(estimator, "fit_transform"):
            estimator.fit(X, y, **routed)
            result = estimator.transform(X)
        else:
            result = getattr(estimator, method)(X, y, **routed)
        self.estimator_ = estimator
        self.version_ref_ = None
        return result

    def _is_part(self) -> bool:
        """Whether this fit is a part of another one, and so makes no version of its own."""
        if is_recording():
            return True
        if self._is_clone:
            warn_once(OF_CLONES)
            return True
        if is_of_parent(self._pickled_by):
            warn_once(OF_WORKERS)
            return True
        return False

    def _pin(self) -> None:
        """Find out what `uses` means now, as it may mean something else when the last piece is trained."""
        options = self._options()
        asked = refs(options.uses)
        if not asked:
            return
        if begat.active_run() is not None:
            with attach("fit", options):
                return
        try:
            with begat.open_store(self.store) as store:
                self._pinned = [
                    ref.ref if isinstance(ref, begat.Version) else store.get_artifact(ref).ref
                    for ref in asked
                ]
        except (NotFound, BadInput):
            raise
        except BegatError as error:
            if self.on_error == "raise":
                raise
            warn(f"what {options.name} uses is not known before it is logged: {error}")

    def _options(self, *, uses: Uses = None, on_error: OnError | None = None) -> Options:
        return Options(
            name=name_of(self.name, self.estimator),
            uses=self.uses if uses is None else uses,
            store=self.store,
            on_error=on_error or self.on_error,
            serializer=self.serializer,
        )


def _cloned(estimator: Any) -> Any:
    return clone(estimator)
