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
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

import keras

from begat import Recorder, Version
from begat_keras import stack, weights
from begat_keras.checkpoints import aliases_of, files_beside, scalars, score_of, step_of

_SAVES = ("save", "save_weights")
_OWNER = "begat_callback"


class FitLeft(KeyboardInterrupt):
    """What a run ends with whose fit was left for a reason that nobody knows; never raised."""


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
        self.name = name
        self.uses = [uses] if isinstance(uses, str | Version) else list(uses)
        self.job = job
        self.store = store
        self.keep: Literal["mirror", "all"] = keep
        self.detect = detect
        self.on_error: Literal["warn", "raise"] = on_error
        self.drain_timeout_s = drain_timeout_s
        self._forget()

    def _forget(self) -> None:
        self._recorder: Recorder | None = None
        self._callbacks: Callable[[], Any] = _nothing
        self._end_of_fit: _EndOfFit | None = None
        self._unwrap: list[Callable[[], None]] = []
        self._paths: dict[str, None] = {}
        self._epoch: int | None = None
        self._has_looked = False

    # --- the beginning ---

    def on_train_begin(self, logs: Any = None) -> None:
        """Start or join a run, commit what it uses, and look at what data it reads."""
        if self._recorder is not None and self._callbacks() is stack.callback_list() is not None:
            return  # it is in the list twice
        end_those_left()
        self._forget()
        self._recorder = recorder = self._attached()
        recorder.cause_if_left = self._cause
        _recording.add(self)
        self._see_the_end()
        try:
            recorder.consume(self.uses)
            recorder.note(params=self._params())
            if self.detect:
                self._observe(recorder)
        except Exception as error:
            self._end(error)
            raise
        self._wrap()

    def _attached(self) -> Recorder:
        name = self.name or str(cast("Any", self._model).name)
        return Recorder.attach(
            store=self.store,
            name=name,
            job=self.job or f"train-{name}",
            on_error=self.on_error,
            keep=self.keep,
            drain_timeout_s=self.drain_timeout_s,
        )

    def _params(self) -> dict[str, Any]:
        optimizer = getattr(self._model, "optimizer", None)
        found: dict[str, Any] = scalars(self.params or {})
        found.pop("verbose", None)
        if optimizer is not None:
            found["optimizer"] = type(optimizer).__name__
            found |= scalars({"learning_rate": getattr(optimizer, "learning_rate", None)})
        return found

    def _observe(self, recorder: Recorder) -> None:
        for name, data in stack.data_of_fit(self._model).items():
            recorder.observe(data, role="validation" if name == "validation_data" else "train")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """See once which version the weights are: only now has every callback restored what it restores."""
        self._epoch = epoch
        recorder = self._recorder
        if recorder is None or self._has_looked:
            return
        self._has_looked = True
        if self.detect and recorder.is_recording:
            known = weights.find(recorder, [recorder.policy.name], weights.digest_of(self.model))
            if known is not None:
                recorder.observe(known, role="checkpoint")

    # --- checkpoints ---

    def _wrap(self) -> None:
        own = vars(self._model)
        if any(hasattr(own.get(name), _OWNER) for name in _SAVES):
            return  # another callback of ours records this fit
        for name in _SAVES:
            self._unwrap.append(_replaced(own, name, self._saver(getattr(self._model, name))))

    def _saver(self, save: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(save)
        def saved(filepath: Any, overwrite: bool = True, **options: Any) -> Any:
            before = None if overwrite else _signature(filepath)
            result = save(filepath, overwrite, **options)
            # Who is asked whether to overwrite a file may say no.
            if before is None or before != _signature(filepath):
                self._saved(filepath)
            return result

        setattr(saved, _OWNER, self)
        return saved

    def _saved(self, path: Any) -> None:
        recorder = self._recorder
        if recorder is None or not recorder.is_recording or not isinstance(path, str | os.PathLike):
            return
        path = cast("str | os.PathLike[str]", path)
        saving = stack.saving(self)
        score, monitor = score_of(saving)
        digest = weights.digest_of(self.model) if self.detect else None
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

    def _see_the_end(self) -> None:
        callbacks = stack.callback_list()
        if callbacks is None:
            return
        self._callbacks = weakref.ref(callbacks)
        # Others may save or restore in their own `on_train_end`; this one comes after all of them.
        self._end_of_fit = _EndOfFit(self)
        callbacks.callbacks.append(self._end_of_fit)

    def on_train_end(self, logs: Any = None) -> None:
        """The fit came to its end; if that can be seen, other callbacks come first."""
        if self._end_of_fit is None:
            self.end_of_fit(logs)

    def end_of_fit(self, logs: Mapping[str, Any] | None) -> None:
        """Record the last metrics, and end what was begun."""
        if self._recorder is not None:
            self._see_removed()
            self._recorder.note(metrics=scalars(logs or {}))
        self._end()

    def end_if_left(self) -> None:
        """End what was begun by a fit that does not run any more, which Keras tells nobody of."""
        callbacks = self._callbacks()
        if callbacks is None or not stack.is_running(callbacks):
            self._end(self._cause())

    def _cause(self) -> BaseException:
        for error in (sys.exception(), getattr(sys, "last_value", None)):
            if isinstance(error, BaseException) and stack.has_passed(error, self._model):
                return error
        return FitLeft("the fit was left before its end; Keras tells no callback why")

    def _end(self, error: BaseException | None = None) -> None:
        recorder, callbacks = self._recorder, self._callbacks()
        if callbacks is not None and self._end_of_fit in callbacks.callbacks:
            callbacks.callbacks.remove(self._end_of_fit)
        for undo in reversed(self._unwrap):
            undo()
        _recording.discard(self)
        self._forget()
        if recorder is not None:
            recorder.finish(error=error)

    def __getstate__(self) -> dict[str, Any]:
        copied = ArtifactCallback(drain_timeout_s=self.drain_timeout_s)
        return {**self.__dict__, **copied.__dict__, **self._options()}

    def _options(self) -> dict[str, Any]:
        names = ("name", "uses", "job", "store", "keep", "detect", "on_error", "drain_timeout_s")
        return {name: getattr(self, name) for name in names}


class _EndOfFit(keras.callbacks.Callback):
    """The last of the callbacks of one fit."""

    def __init__(self, owner: ArtifactCallback) -> None:
        super().__init__()
        self._owner = owner

    def on_train_end(self, logs: Any = None) -> None:
        self._owner.end_of_fit(logs)


def _replaced(own: dict[str, Any], name: str, wrapper: Any) -> Callable[[], None]:
    """Put a wrapper beside the method of one object; calling the result takes it away.

    Into its dict, because Keras and PyTorch look at each attribute that is set on a model.
    """
    before = own.get(name)
    own[name] = wrapper

    def undo() -> None:
        # Whoever wrapped it after us holds on to ours, which does nothing from now on.
        if own.get(name) is not wrapper:
            return
        if before is None:
            del own[name]
        else:
            own[name] = before

    return undo


def _signature(path: Any) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, TypeError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _nothing() -> None:
    return None


_recording: weakref.WeakSet[ArtifactCallback] = weakref.WeakSet()


def end_those_left() -> None:
    """End the runs of fits that were left by an exception, before a new run would become part of them."""
    for each in list(_recording):
        each.end_if_left()
