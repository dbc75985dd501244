"""A table of predictions that is being made: its run with what it used, its files, and its end."""

# Keras ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import keras

from begat import Recorder, Version
from begat.errors import warn
from begat_keras import stack, weights
from begat_keras.columns import Reading, columns_of, outputs_of

_DOING = "recording the predictions"
_NO_MODEL = (
    "begat does not know which version the model that predicts is, so these predictions have none as an input. It "
    "knows the weights of a checkpoint that ArtifactCallback recorded where this process has fitted the model; or say "
    "it: PredictionCallback(model=...)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the user asked for; see `begat_keras.PredictionCallback`."""

    name: str | None = None
    uses: tuple[str | Version, ...] = ()
    model: str | Version | None = None
    reads_as: Reading = "values"
    classes: Sequence[str] | None = None
    job: str | None = None
    store: str | os.PathLike[str] | None = None
    detect: bool = True
    on_error: Literal["warn", "raise"] = "warn"

    def __post_init__(self) -> None:
        if self.reads_as not in ("values", "logits", "probabilities"):
            raise TypeError(
                f"reads_as is 'values', 'logits' or 'probabilities', not {self.reads_as!r}"
            )

    def with_defaults(
        self, *, uses: tuple[str | Version, ...], store: str | os.PathLike[str] | None
    ) -> Terms:
        """These, with what a fit has shown where nothing was asked for."""
        return replace(self, uses=uses, store=self.store if self.store is not None else store)


class Table:
    """Predictions on their way into one version: a file of each output of the model, written while they are made."""

    def __init__(self, terms: Terms, model: Any, *, data: Mapping[str, Any], role: str) -> None:
        fitted = weights.fitted(model)
        self._terms = terms
        self._name = terms.name or f"{fitted.name if fitted else model.name}-predictions"
        self.recorder = Recorder.attach(
            store=terms.store,
            name=self._name,
            type="predictions",
            job=terms.job or f"predict-{self._name}",
            uses=terms.uses,
            on_error=terms.on_error,
        )
        used = list(self.recorder.declared)
        with self.recorder.beginning():
            models = self.recorder.consume(
                [] if terms.model is None else [terms.model], role="model"
            )
            with self.recorder.guarded(_DOING):
                if terms.detect:
                    models += self._found(model, [*models, *used])
                    self.recorder.observe(stack.as_one(data), role=role)
        self._predictions = self.recorder.predictions(
            # By its weights if that could be seen: it is what was declared, or what it is instead.
            model=models[-1].ref if models else None,
            datasets=[each.ref for each in used if each not in models],
            classes=terms.classes,
            names_run=True,
        )
        if role == "predict" and terms.detect and not models and self.recorder.is_recording:
            warn(_NO_MODEL)

    def _found(self, model: Any, declared: list[Version]) -> list[Version]:
        """The version that the model is, recorded as used by the run."""
        fitted = weights.fitted(model)
        names = [version.name for version in declared] + ([fitted.name] if fitted else [])
        found = weights.find(self.recorder, model, names)
        if found is None:
            return []
        self.recorder.observe(found, role="model")
        return [found]

    def predict(self, model: Any, x: Any, *, batch_size: int | None) -> Any:
        """What the model returns for all rows; None if it cannot, of which the user is told."""
        with self.recorder.guarded(_DOING), _unharmed(model):
            return model.predict(x, batch_size=batch_size, verbose=0)

    def write(self, returned: Any, *, id: Any = None, label: Any = None) -> None:
        """Add what the model returned for some rows."""
        if not self.recorder.is_recording or returned is None:
            return
        with self.recorder.guarded(_DOING):
            for name, values in outputs_of(returned).items():
                columns = columns_of(values, self._terms.reads_as)
                self._predictions.write(output=name, **columns, id=id, label=label)

    def store(self) -> Version | None:
        """Make a version of it; None if there is nothing, or if that failed."""
        return self._predictions.store(self._name)


@contextlib.contextmanager
def _unharmed(model: Any) -> Generator[None]:
    """A model that has its values also after an exception: JAX takes them out of it while it predicts."""
    is_taken = keras.config.backend() == "jax"
    values = [(each, keras.ops.convert_to_numpy(each)) for each in model.variables if is_taken]
    try:
        yield
    except BaseException:
        for variable, value in values:
            variable.assign(value)
        raise
