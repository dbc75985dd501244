"""One recorded fit, from what it uses to the fitted model: what the wrapper and the callback have in common."""

# scikit-learn ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sklearn

import begat
from begat.errors import warn
from begat_sklearn.model_file import VERSIONS, Serializer, check_serializer, write_estimator
from begat_sklearn.parameters import json_of, kind_of

OnError = Literal["warn", "raise"]
Uses = str | begat.Version | Sequence[str | begat.Version] | None

# Within a recorded fit, other tracked fits are parts of it and make no versions of their own.
_is_recording: ContextVar[bool] = ContextVar("begat_sklearn_is_recording", default=False)
_told: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user said about a fit's record; the name is known once the estimator is."""

    name: str
    uses: Uses = None
    store: str | os.PathLike[str] | None = None
    on_error: OnError = "warn"
    serializer: Serializer = "skops"


class FitRecording:
    """The record of one outermost fit; made before it begins, ended by `end` on every way out."""

    def __init__(self, options: Options, estimator: Any) -> None:
        """Attach to a run, with the declared inputs committed; raises for a reference that does not exist."""
        check_serializer(options.serializer)
        self.options = options
        self._is_failed = False
        self._recorder = recorder = attach("fit", options)
        token = _is_recording.set(True)
        recorder.at_end(lambda: _reset(token))
        with recorder.beginning():
            self._note(params=json_of(estimator.get_params()))

    def __enter__(self) -> FitRecording:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(error)

    def observe(self, X: Any, y: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Record what is really fitted: the versions that the data comes from, as far as begat knows it."""
        data = {"X": X, "y": y, "sample_weight": (metadata or {}).get("sample_weight")}
        self._recorder.observe({key: value for key, value in data.items() if value is not None})

    def keep(self, model: Any) -> begat.Version | None:
        """Log the fitted model; None if it could not be stored, which ends the run as failed."""
        if not self._recorder.is_recording:
            return None
        best = {name: getattr(model, f"{name}_", None) for name in ("best_score", "best_params")}
        self._note(
            metrics={name: json_of(value) for name, value in best.items() if value is not None}
        )
        version = None
        with (
            self._recorder.guarded(f"storing the fitted {self.options.name}"),
            tempfile.TemporaryDirectory(prefix="begat-sklearn-") as folder,
        ):
            write_estimator(model, Path(folder), self.options.serializer)
            version = self._recorder.output(
                folder, name=self.options.name, type="model", metadata=self._facts(model)
            )
        self._is_failed = version is None
        return version

    def end(self, error: BaseException | None = None) -> None:
        """End the run, if it is this fit's own, as the fit ended; after the last one that shares it."""
        # Nothing came of it, which a finished run would not say.
        is_failed = self._is_failed and error is None
        self._recorder.finish("failed" if is_failed else None, error=error)

    def left(self) -> None:
        """End the run of a fit that ended before its last task, and nobody knows why."""
        self._recorder.left()

    def _note(self, **facts: dict[str, Any]) -> None:
        """Parameters and metrics: under their own names in the fit's own run, else with the model's name before."""
        run = self._recorder.run
        if run is not None and run.job != f"fit-{self.options.name}":
            facts = {
                kind: {f"{self.options.name}.{name}": value for name, value in values.items()}
                for kind, values in facts.items()
            }
        self._recorder.note(**facts)

    def _facts(self, model: Any) -> dict[str, Any]:
        facts = {
            "estimator": kind_of(model),
            "params": json_of(model.get_params()),
            "n_features": json_of(getattr(model, "n_features_in_", None)),
            "feature_names": json_of(getattr(model, "feature_names_in_", None)),
            "classes": json_of(getattr(model, "classes_", None)),
            "best_params": json_of(getattr(model, "best_params_", None)),
            "scikit_learn": sklearn.__version__,
            "numpy": np.__version__,
            self.options.serializer: VERSIONS[self.options.serializer],
        }
        return {key: value for key, value in facts.items() if value is not None}


def attach(doing: str, options: Options) -> begat.Recorder:
    """A recorder in the active run, or in a new one of the job `fit-<name>` or the like, with its inputs committed."""
    return begat.Recorder.attach(
        store=options.store,
        name=options.name,
        job=f"{doing}-{options.name}",
        uses=refs(options.uses),
        on_error=options.on_error,
    )


def is_recording() -> bool:
    """Whether a recorded fit is going on around this one."""
    return _is_recording.get()


def is_of_parent(pid: int | None) -> bool:
    """Whether we are a worker of the process with this id, which pickled what we hold."""
    parent = multiprocessing.parent_process()  # of joblib's workers too
    return parent is not None and parent.pid == pid


def refs(uses: Uses) -> list[str | begat.Version]:
    """The references in `uses`; `TypeError` for anything else, as a dataset in their place would go unnoticed."""
    if uses is None:
        return []
    listed: list[Any] = [uses] if isinstance(uses, str | begat.Version) else list(uses)
    for one in listed:
        if not isinstance(one, str | begat.Version):
            raise TypeError(
                f"uses is a reference ('digits:latest') or a list of them, not {kind_of(one)}"
            )
    return listed


def name_of(name: str | None, estimator: Any) -> str:
    """The model's name: as given, else the estimator's class in lower case, `GridSearchCV` -> `grid-search-cv`."""
    if name is not None:
        return name
    text = type(estimator).__name__
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", text)
    return words.strip("_").lower()


def warn_once(text: str) -> None:
    """Warn once in a process: a search fits dozens, and a warning for each would bury everything else."""
    if text not in _told:
        _told.add(text)
        warn(text, through=("joblib", "sklearn"))


def _reset(token: Token[bool]) -> None:
    with contextlib.suppress(ValueError):  # begun in another context, as of a generator
        _is_recording.reset(token)
