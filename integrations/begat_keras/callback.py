"""The hooks of Keras, as calls on `begat.Recorder`.

Keras tells no callback of a checkpoint, so `save` and `save_weights` are wrapped on the model while a fit runs. It
tells none of an exception either: a run of its own ends then at the next fit, or with the process. The run of a
`with` around the fit ends there.
"""

# Keras ships no types; what comes from it is Any.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import keras

from begat import Recorder, Version
from begat.errors import warn
from begat_keras import stack, weights
from begat_keras.checkpoints import aliases_of, files_beside, scalars, score_of, step_of

_SAVES = ("save", "save_weights")
_OWNER = "begat_callback"


class ArtifactCallback(keras.callbacks.Callback):
    """Everything that the model saves while it is fitted becomes a version, of a run that says what it used.

    `name` is the artifact (default: the name of the model). `uses` are references, committed before the first batch;
    one that does not exist raises there. The run is the active one, or one of its own per fit, with `job` as its job.
    The alias `best` follows the first `ModelCheckpoint` with `save_best_only` (several also move `best-<monitor>`). A
    checkpoint that is overwritten or removed is retired (`keep="mirror"`) or not (`"all"`). `detect` looks at the data
    of the fit and at the weights it begins with, to see which versions they are. `on_error="warn"` lets a training go
    on whatever happens to its tracking, `"raise"` does not. The end waits `drain_timeout_s` at most for what is still
    to be stored.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        uses: Iterable[str | Version] = (),
        job: str | None = None,
        store: str | os.PathLike[str] | None = None,
        keep: Literal["mirror", "all"] = "mirror",
        detect: bool = True,
        on_error: Literal["warn", "raise"] = "warn",
        drain_timeout_s: float = 300.0,
    ) -> None:
        super().__init__()
        self.name, self.job, self.store, self.detect = name, job, store, detect
        self.uses = [uses] if isinstance(uses, str | Version) else list(uses)
        self._attach = functools.partial(
            Recorder.attach,
            store=store,
            keep=keep,
            on_error=on_error,
            drain_timeout_s=drain_timeout_s,
        )
        self._forget()

    def _forget(self) -> None:
        self._recorder: Recorder | None = None
        self._callbacks: stack.Weakly = stack.nothing  # all those of the fit that goes on
        self._paths: dict[str, None] = {}
        self._epoch: int | None = None
        self._has_looked = False

    # --- the beginning ---

    def on_train_begin(self, logs: Any = None) -> None:
        """Start or join a run, commit what it uses, and look at what data it reads."""
        callbacks = stack.callback_list()
        if callbacks is not None and self._callbacks() is callbacks:
            return  # it is in the list twice
        self._forget()
        name = self.name or str(cast("Any", self._model).name)
        recorder = self._attach(name=name, job=self.job or f"train-{name}", uses=self.uses)
        self._recorder, self._callbacks = recorder, stack.weakly(callbacks)
        stack.watch(recorder, callbacks, self._model)
        at_the_end(callbacks, self)
        with recorder.beginning():
            with recorder.guarded("looking at the model and its data"):
                if self._other() is None:
                    weights.note(self._model, weights.Fitted(name, self.store, recorder.declared))
                recorder.note(params=self._params())
                if self.detect:
                    self._observe(recorder)
            self._wrap(recorder)

    def _params(self) -> dict[str, Any]:
        optimizer = getattr(self._model, "optimizer", None)
        found: dict[str, Any] = scalars(self.params or {})
        found.pop("verbose", None)
        if optimizer is not None:
            found["optimizer"] = type(optimizer).__name__
            found |= scalars({"learning_rate": getattr(optimizer, "learning_rate", None)})
        return found

    def _observe(self, recorder: Recorder) -> None:
        data = stack.data_of("fit", self._model)
        validation = data.pop("validation_data", None)
        if data:
            recorder.observe(stack.as_one(data))
        if validation is not None:
            recorder.observe(validation, role="validation")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """See once which version the weights are: only now has every callback restored what it restores."""
        self._epoch = epoch
        recorder = self._recorder
        if recorder is None or self._has_looked:
            return
        self._has_looked = True
        if not self.detect:
            return
        with recorder.guarded("looking for the version of the model"):
            known = weights.find(recorder, self.model, [recorder.policy.name])
            if known is not None:
                recorder.observe(known, role="checkpoint")

    # --- checkpoints ---

    def _wrap(self, recorder: Recorder) -> None:
        other = self._other()
        if other is not None:
            self._say_who_records(other)
            return
        for name in _SAVES if recorder.is_recording else ():
            recorder.replace(self._model, name, self._saver(getattr(self._model, name)))

    def _other(self) -> ArtifactCallback | None:
        """The callback of ours that records this fit already, if there is one."""
        return getattr(vars(self._model).get(_SAVES[0]), _OWNER, None)

    def _say_who_records(self, other: ArtifactCallback) -> None:
        names = [each._recorder.policy.name for each in (other, self) if each._recorder]
        if len(set(names)) == 2:
            warn(
                f"the checkpoints of this fit become versions of {names[0]} and not of {names[1]}: it has two "
                "ArtifactCallbacks, and the first one records"
            )

    def _saver(self, save: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(save)
        def saved(filepath: Any, overwrite: bool = True, **options: Any) -> Any:
            before = None if overwrite else _signature(filepath)
            with self._digest_meanwhile() as digest:
                result = save(filepath, overwrite, **options)
            # Who is asked whether to overwrite a file may say no.
            if before is None or before != _signature(filepath):
                self._saved(filepath, digest)
            return result

        setattr(saved, _OWNER, self)
        return saved

    def _digest_meanwhile(self) -> AbstractContextManager[Callable[[], str | None]]:
        is_wanted = self.detect and self._recorder is not None and self._recorder.is_recording
        # Asking for the model has Keras bring its weights up to date first (JAX).
        return weights.digest_meanwhile(self.model) if is_wanted else nullcontext(lambda: None)

    def _saved(self, path: Any, digest_of_weights: Callable[[], str | None]) -> None:
        recorder = self._recorder
        if recorder is None or not recorder.is_recording or not isinstance(path, str | os.PathLike):
            return
        path = cast("str | os.PathLike[str]", path)
        with recorder.guarded(f"recording that {path} was saved"):
            saving = stack.saving(self)
            score, monitor = score_of(saving)
            digest = digest_of_weights()
            recorder.saved(
                path,
                step=step_of(self.model),
                epoch=self._epoch if saving.epoch is None else saving.epoch,
                score=score,
                monitor=monitor,
                aliases=aliases_of(saving),
                metadata={} if digest is None else {weights.KEY: digest},
                beside=files_beside(path),
            )
            self._paths[os.path.realpath(path)] = None
            self._see_removed()

    def _see_removed(self) -> None:
        """Keras removes the backup of a fit that has ended, and callbacks of others may remove anything."""
        for path in [path for path in self._paths if not os.path.exists(path)]:
            del self._paths[path]
            if self._recorder is not None:
                self._recorder.removed(path)

    # --- every way out ---

    def on_train_end(self, logs: Any = None) -> None:
        """The fit came to its end; if that can be seen, other callbacks come first."""
        if self._callbacks() is None:
            self.end_of_fit(logs)

    def end_of_fit(self, logs: Mapping[str, Any] | None) -> None:
        """Record the last metrics, and end what was begun; once."""
        recorder = self._recorder
        if recorder is not None:
            self._see_removed()
            recorder.note(metrics=scalars(logs or {}))
            self._forget()
            recorder.finish()

    def __getstate__(self) -> dict[str, Any]:
        # A copy, in another process perhaps, attaches for itself.
        copy = ArtifactCallback(self.name, uses=self.uses, job=self.job, store=self.store)
        return {**copy.__dict__, "detect": self.detect, "_attach": self._attach}


class EndOfFit(keras.callbacks.Callback):
    """Comes after the callbacks of the user, which may save or restore in their own `on_train_end`."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self.owner = owner

    def on_train_end(self, logs: Any = None) -> None:
        """Have the owner do what it does at the end."""
        self.owner.end_of_fit(logs)


def at_the_end(callbacks: Any, owner: Any) -> None:
    """Have `owner.end_of_fit` called at the end of a fit, after all other callbacks of the list."""
    listed = [] if callbacks is None else cast("list[Any]", callbacks.callbacks)
    # A list of the user's own may be from an earlier fit.
    if not any(isinstance(each, EndOfFit) and each.owner is owner for each in listed):
        listed.append(EndOfFit(owner))


def _signature(path: Any) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, TypeError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
