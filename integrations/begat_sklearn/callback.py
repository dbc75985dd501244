"""scikit-learn's own callbacks (1.9 and later): a fit recorded by an object that is set on the estimator."""

# scikit-learn ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

import sklearn

from begat.errors import MissingExtra
from begat_sklearn.model_file import Serializer, check_serializer
from begat_sklearn.recording import (
    FitRecording,
    OnError,
    Options,
    Uses,
    is_of_parent,
    is_recording,
    name_of,
    refs,
    warn_once,
)

OF_PARTS = (
    "an ArtifactFitCallback records nothing of a fit that scikit-learn itself calls, as in a search, a pipeline or "
    "cross_val_score; set it on the outermost estimator"
)
SECOND = "a fit is recorded by one ArtifactFitCallback, the first that is set; another one records nothing of it"
OF_WORKERS = "an ArtifactFitCallback records nothing in a worker process: the process that started it owns the run"


@dataclass(slots=True)
class _Fit:
    """One fit that goes on."""

    recording: FitRecording
    outer_error: (
        BaseException | None
    )  # that was being handled when it began, and so is none of its own
    is_done: bool = False


# The fits that go on and are recorded by any callback of ours.
_recorded: set[object] = set()


class ArtifactFitCallback:
    """Set on an estimator, it records each of its fits as `TrackedEstimator` does, and changes nothing else.

        callback = ArtifactFitCallback("digits-model", uses=["digits:latest"])
        LogisticRegression().set_callbacks(callback).fit(X, y)
        callback.version_ref  # digits-model:v4

    It needs scikit-learn 1.9 and an estimator that takes callbacks: `LogisticRegression`, `Pipeline`, the searches and
    a few more. All others are wrapped in a `TrackedEstimator`. `set_on` sets it, and says so if it cannot be.

    `name`, `uses`, `store`, `on_error` and `serializer` are those of `TrackedEstimator`. Set it on the outermost
    estimator: what a search or pipeline fits inside is part of its fit, and not recorded for itself. Clones share the
    callback, so one that is fitted later is recorded, too.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        uses: Uses = None,
        store: str | os.PathLike[str] | None = None,
        on_error: OnError = "warn",
        serializer: Serializer = "skops",
    ) -> None:
        if importlib.util.find_spec("sklearn.callback") is None:
            raise MissingExtra(
                f"ArtifactFitCallback needs scikit-learn 1.9 or later; this is {sklearn.__version__}. Either "
                'pip install "scikit-learn>=1.9", or wrap the estimator: TrackedEstimator(estimator, ...)'
            )
        check_serializer(serializer)
        refs(uses)
        self.name = name
        self.uses: Uses = uses
        self.store = store
        self.on_error: OnError = on_error
        self.serializer: Serializer = serializer
        self.version_ref: str | None = None
        self._pickled_by: int | None = None
        self._fits: dict[object, _Fit] = {}

    def set_on(self, estimator: Any) -> Any:
        """Set this as the estimator's only callback; the estimator. `TypeError` if it takes none, with what to do."""
        if not hasattr(estimator, "set_callbacks"):
            kind = type(estimator).__name__
            raise TypeError(
                f"{kind} takes no callbacks in scikit-learn {sklearn.__version__}; wrap it instead: "
                f"TrackedEstimator({kind}(...), ...)"
            )
        return estimator.set_callbacks(self)

    # --- called by scikit-learn, with these names of arguments ---

    def setup(self, estimator: Any, context: Any) -> None:
        """Before a fit: attach to a run and record what it uses; a reference that does not exist raises here."""
        if is_recording():
            if context.parent is None and context.root_uuid in _recorded:
                warn_once(SECOND)
            return
        if context.parent is not None or _is_called_by_sklearn(estimator):
            warn_once(OF_PARTS)
        elif is_of_parent(self._pickled_by):
            warn_once(OF_WORKERS)
        else:
            outer_error = sys.exc_info()[1]
            self.version_ref = None
            self._fits[context.root_uuid] = _Fit(
                FitRecording(self._options(estimator), estimator), outer_error
            )
            _recorded.add(context.root_uuid)

    def on_fit_task_begin(
        self, estimator: Any, context: Any, *, X: Any = None, y: Any = None, metadata: Any = None
    ) -> None:
        """At the root of a fit's tasks, which has all of the data: record where it comes from."""
        fit = self._fit_of(context)
        if fit is not None:
            fit.recording.observe(X, y, metadata)

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """At the root of a fit's tasks: it came to its end."""
        fit = self._fit_of(context)
        if fit is not None:
            fit.is_done = True

    def teardown(self, estimator: Any, context: Any) -> None:
        """After a fit, however it ended: log the model and end the run."""
        fit = self._fits.pop(context.root_uuid, None)
        if fit is None:
            return
        _recorded.discard(context.root_uuid)
        error = sys.exc_info()[1]
        if error is fit.outer_error:
            error = None
        if error is not None:
            fit.recording.end(error)
            return
        if not fit.is_done:
            fit.recording.left()
            return
        with fit.recording as recording:
            version = recording.keep(estimator)
            self.version_ref = version.ref if version else None

    # --- inside ---

    def _options(self, estimator: Any) -> Options:
        return Options(
            name=name_of(self.name, estimator),
            uses=self.uses,
            store=self.store,
            on_error=self.on_error,
            serializer=self.serializer,
        )

    def _fit_of(self, context: Any) -> _Fit | None:
        return self._fits.get(context.root_uuid) if context.parent is None else None

    def __getstate__(self) -> dict[str, Any]:
        # A fit that goes on stays in its process: workers of a search get copies of the callback.
        return {**self.__dict__, "_fits": {}, "_pickled_by": os.getpid()}


def _is_called_by_sklearn(estimator: Any) -> bool:
    """Whether a fit of this estimator was called by scikit-learn, which is to say as a part of something larger.

    Not every such part is told by its context: cross-validation and most ensembles know nothing of callbacks.
    """
    caller: FrameType | None = None
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
        if names and frame.f_locals.get(names[0]) is estimator:
            caller = frame.f_back  # the outermost method of the estimator itself counts
        frame = frame.f_back
    module = caller.f_globals.get("__name__", "") if caller is not None else ""
    return module.partition(".")[0] == "sklearn"
