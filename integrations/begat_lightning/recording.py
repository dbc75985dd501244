"""The hooks of Lightning, as calls on `begat.Recorder`. Both of Lightning's namespaces call the same ones.

Paths of checkpoints are known only to `strategy.save_checkpoint` and `remove_checkpoint`: `ModelCheckpoint` is called
after every other callback and tells nobody what it removes. So both are wrapped on the instance while a fit runs.
`teardown` is not called after an exception, and `ModelCheckpoint` may save after our `on_exception`; what is called
last then is `strategy.teardown`, which is wrapped as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, cast

from begat import Recorder, Version
from begat_lightning.checkpoints import (
    KEY,
    Pointers,
    is_replaced_whole,
    is_same_path,
    is_temporary,
    scalars,
    score_of,
    uid_in,
    without_loggers,
)
from begat_lightning.ranks import from_rank_zero, joined
from begat_lightning.weights import note_version
from begat_lightning.writing import Writing


class Recording:
    """Every checkpoint becomes a version; the run that made it is recorded with what it used.

    `name` is the artifact (default: the name of the LightningModule's class). `uses` are references, committed before
    the first batch; one that does not exist raises there. The run is the active one, or one of its own per fit, with
    `job` as its job. The alias `best` follows `best_model_path` of the first `ModelCheckpoint` that monitors anything
    (several also move `best-<monitor>`), `last` follows `last_model_path`. A checkpoint that Lightning removes or
    overwrites is retired (`keep="mirror"`) or not (`"all"`). `on_error="warn"` lets a training go on whatever happens
    to its tracking, `"raise"` does not. The end waits `drain_timeout_s` at most for what is still to be stored.
    """

    state_key: str = ""  # instead of the property that Lightning has

    def __init__(
        self,
        name: str | None = None,
        *,
        uses: Iterable[str | Version] = (),
        job: str | None = None,
        store: str | os.PathLike[str] | None = None,
        keep: Literal["mirror", "all"] = "mirror",
        on_error: Literal["warn", "raise"] = "warn",
        drain_timeout_s: float = 300.0,
        is_automatic: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.job = name, job
        self.uses = [uses] if isinstance(uses, str | Version) else list(uses)
        self._attach = partial(
            Recorder.attach,
            store=store,
            keep=keep,
            on_error=on_error,
            drain_timeout_s=drain_timeout_s,
        )
        self._inputs: list[str] = []
        self._forget()
        # Lightning added it because the environment says so, perhaps to one that the user gave.
        self.is_automatic = is_automatic
        # Where Lightning keeps its state in a checkpoint. It asks at every hook, in each batch.
        automatic = ", 'is_automatic': True" if is_automatic else ""
        self.state_key = f"{type(self).__qualname__}{{'name': {name!r}{automatic}}}"

    def _forget(self) -> None:
        self._recorder: Recorder | None = None
        self._error: BaseException | None = None
        self._pointers = Pointers()
        self._writing = Writing()
        self._temporary: set[str] = set()

    # --- the beginning ---

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start or join a run and commit what it uses, before anything is loaded."""
        if stage == "fit" and self._is_wanted(trainer):
            if self._recorder is not None:  # left in a way that Lightning tells nobody of
                self._recorder.left()
                self._forget()
            self._wrap(trainer, self._begin(trainer, pl_module, self.uses))

    def _is_wanted(self, trainer: Any) -> bool:
        others = (each for each in trainer.callbacks if isinstance(each, Recording))
        return not self.is_automatic or all(each is self for each in others)

    def _begin(self, trainer: Any, pl_module: Any, uses: Iterable[str | Version]) -> Recorder:
        recorder = Recorder.attach(is_main=False)  # of the ranks that only watch

        def begin() -> str | None:
            nonlocal recorder
            recorder = self._attached(pl_module, uses)
            return recorder.run.id if recorder.run else None

        leave = joined(from_rank_zero(trainer, begin))
        recorder.at_end(leave)
        self._recorder = recorder
        return recorder

    def _attached(self, pl_module: Any, uses: Iterable[str | Version]) -> Recorder:
        name = self.name or type(pl_module).__name__
        recorder = self._attach(name=name, job=self.job or f"train-{name}", uses=uses, is_main=True)
        self._inputs = [version.ref for version in recorder.declared]
        with recorder.beginning():
            recorder.note(params=scalars(getattr(pl_module, "hparams_initial", None) or {}))
        return recorder

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """The fit goes on from a checkpoint: its version is an input of this run."""
        uid, recorder = uid_in(checkpoint), self._recorder
        # Testing loads checkpoints too, and goes on from nothing; a search for the learning rate goes back to where
        # this same fit began.
        if recorder is None or uid is None or trainer.state.fn != "fit":
            return
        if uid not in self._temporary:
            recorder.resumed_from(uid)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know what the earlier fit saved where, so that what is removed now can be retired."""
        if self._recorder is not None:
            self._recorder.restore(state_dict)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record where the data really is, the last chance before the first batch: only now are the loaders there."""
        # What a datamodule tells may be of other data too, so it is asked only where the loaders tell nothing.
        if self._recorder is not None and not self._recorder.observe(trainer.train_dataloader):
            self._recorder.observe(trainer.datamodule)

    # --- checkpoints ---

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Name the version before the file is written, inside the file."""
        if self._recorder is None and self._is_wanted(trainer):
            # The user saves after the fit: what was used is known, and there is a run to be part of or to make.
            recorder = self._begin(trainer, pl_module, self._inputs or self.uses)
            self._wrap(trainer, recorder, is_for_one=True)
        if self._recorder is not None and self._recorder.run is not None:
            uid = self._recorder.reserve()
            checkpoint[KEY] = {"uid": uid, "run_id": self._recorder.run.id}

    def state_dict(self) -> dict[str, Any]:
        """Which version is at which path."""
        return self._recorder.state() if self._recorder is not None else {}

    def _wrap(self, trainer: Any, recorder: Recorder, *, is_for_one: bool = False) -> None:
        strategy = trainer.strategy
        save, remove, teardown = (
            strategy.save_checkpoint,
            strategy.remove_checkpoint,
            strategy.teardown,
        )

        def save_checkpoint(
            checkpoint: dict[str, Any], filepath: Any, *args: Any, **options: Any
        ) -> None:
            try:
                save(checkpoint, filepath, *args, **options)
                self._saved(trainer, checkpoint, filepath)
                if is_for_one:
                    self._writing.wait_for(filepath)
                    self._end()
            except BaseException as error:
                if is_for_one:
                    self._end(error)
                raise

        def remove_checkpoint(filepath: Any) -> None:
            self._writing.wait_for(filepath)
            remove(filepath)
            if self._recorder is not None:
                self._recorder.removed(filepath)

        def end() -> None:
            try:
                teardown()  # raises what `AsyncCheckpointIO` could not write
            finally:
                if self._error is not None:
                    self._end(self._error)

        recorder.replace(strategy, "save_checkpoint", save_checkpoint)
        recorder.replace(strategy, "remove_checkpoint", remove_checkpoint)
        recorder.replace(strategy, "teardown", end)

    def _saved(self, trainer: Any, checkpoint: Mapping[str, Any], filepath: Any) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        if is_temporary(filepath):
            self._temporary.add(uid_in(checkpoint) or "")
            return
        if trainer.world_size > 1:
            # Each rank may have written a part of it. Lightning's own barrier follows, so all ranks come here.
            trainer.strategy.barrier("begat: a checkpoint was written")
        if not recorder.is_recording:
            return
        uid = uid_in(checkpoint) or recorder.reserve()
        score, monitor = score_of(trainer, str(filepath))
        moved = self._pointers.moved(trainer, saved=filepath)
        take_in = partial(
            recorder.saved,
            filepath,
            uid=uid,
            step=checkpoint.get("global_step", trainer.global_step),
            epoch=checkpoint.get("epoch", trainer.current_epoch),
            score=score,
            monitor=monitor,
            aliases=[alias for alias, path in moved if is_same_path(path, filepath)],
            is_replaced_whole=is_replaced_whole(trainer, filepath),
        )
        self._writing.then(trainer, filepath, take_in)
        note_version(trainer.lightning_module, uid)
        self._point(trainer, [each for each in moved if not is_same_path(each[1], filepath)])

    def _point(self, trainer: Any, moved: Iterable[tuple[str, str]]) -> None:
        recorder = cast("Recorder", self._recorder)
        for alias, path in moved:
            self._writing.then(trainer, path, partial(recorder.alias, path, alias))

    def _follow(self, trainer: Any) -> None:
        """Move aliases where `ModelCheckpoint` points now: to an older checkpoint, or through a link that it made."""
        if self._recorder is not None and self._recorder.is_recording:
            self._point(trainer, self._pointers.moved(trainer))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """See where `ModelCheckpoint` has pointed since its last save."""
        self._follow(trainer)

    # --- every way out ---

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Remember why; `ModelCheckpoint` may still save, and `strategy.teardown` comes last."""
        if self._recorder is not None:
            self._error = exception
            self._follow(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The fit came to its end."""
        if self._recorder is not None:
            self._follow(trainer)
            self._recorder.note(metrics=scalars(trainer.callback_metrics))
            self._end()

    def _end(self, error: BaseException | None = None) -> None:
        recorder, writing = self._recorder, self._writing
        self._forget()
        if recorder is None:
            return
        recorder.finish(error=error)
        if error is None:
            writing.wait_for_all()  # done by now; with on_error="raise" it may have failed

    def __getstate__(self) -> dict[str, Any]:
        # Processes that are spawned get a copy from before `setup`; each attaches for itself.
        nothing: dict[str, Any] = {"_recorder": None, "_error": None, "_temporary": set()}
        nothing |= {"_pointers": Pointers(), "_writing": Writing()}
        return {**without_loggers(self.__dict__), **nothing}
