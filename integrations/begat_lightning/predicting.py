"""The hooks of `trainer.predict`, as calls on `begat.Recorder` and `begat.PredictionWriter`.

Every rank writes its own part of the table while it predicts; rank 0 makes one version of all parts at the end. Row
ids are known only to a `BasePredictionWriter`, which is what the callbacks of both namespaces are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

from begat import Predictions, PredictionWriter, Recorder, Version
from begat.errors import StoreUnavailable, warn
from begat_lightning.checkpoints import uid_in, without_loggers
from begat_lightning.picking import Pick, Reading, picked
from begat_lightning.ranks import from_rank_zero, joined
from begat_lightning.weights import note_version, version_of

_DOING = "recording the predictions"


class Predicting:
    """What `trainer.predict` gives becomes a version: a table as parquet, with a row for each sample.

    `name` is the artifact (default: `<class of the LightningModule>-predictions`), its type `predictions`. Its inputs
    are the data (`uses`, references; and what the loaders are known to read) and the model: `model` if it is given,
    else the checkpoint that `ckpt_path` loaded, else the one that the weights were saved as in this process. The run
    is the active one, or one of its own with `job` as its job.

    A tensor, an array or a list that `predict_step` returns is `pred`; a tuple is `pred`, `prob`, `label`, as far as
    it goes; a dict has them as keys. `pred`, `prob`, `label` and `id` say it otherwise, each a key, a number in a
    tuple, or a function of (outputs, batch). `reads_as="logits"` or `"probabilities"` is for values of all classes:
    `prob` is made of them, and `pred` is the number of the highest. `classes` are the names of the classes.

    `id` is the row's number in the dataset, or only in the table where Lightning knows no other. With
    `return_predictions=False` nothing is kept in memory. `on_error="warn"` lets predicting go on whatever happens to
    its tracking, `"raise"` does not.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        uses: Iterable[str | Version] = (),
        model: str | Version | None = None,
        pred: Pick | None = None,
        prob: Pick | None = None,
        label: Pick | None = None,
        id: Pick | None = None,
        reads_as: Reading = "values",
        classes: Sequence[str] | None = None,
        job: str | None = None,
        store: str | os.PathLike[str] | None = None,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        if reads_as not in ("values", "logits", "probabilities"):
            raise TypeError(f"reads_as is 'values', 'logits' or 'probabilities', not {reads_as!r}")
        self.name = name
        self.uses = [uses] if isinstance(uses, str | Version) else list(uses)
        self.model = model
        self.picks = {"pred": pred, "prob": prob, "label": label, "id": id}
        self.reads_as: Reading = reads_as
        self.classes = classes
        self.job = job
        self.store = store
        self.on_error: Literal["warn", "raise"] = on_error
        self._forget()

    def _forget(self) -> None:
        self._recorder: Recorder | None = None
        self._writer: PredictionWriter | None = None
        self._made: Predictions | None = None  # on rank 0, which makes one version of all parts
        self._loaded: str | None = None
        self._numbers: Any = None
        self._rows = 0
        self._known: dict[str, Any] = {}

    # --- the beginning ---

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Start or join a run and commit what it uses, before anything is loaded."""
        cast("Any", super()).setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        if self._recorder is not None:  # left in a way that Lightning tells nobody of
            self._recorder.left()
        self._forget()
        recorder = self._attached(pl_module, is_main=False)

        def begin() -> str | None:
            nonlocal recorder
            recorder = self._attached(pl_module, is_main=True)
            return recorder.run.id if recorder.run else None

        leave = joined(from_rank_zero(trainer, begin))
        recorder.at_end(leave)
        self._recorder = recorder
        load = trainer.strategy.load_checkpoint

        def load_checkpoint(*args: Any, **options: Any) -> Any:
            checkpoint = load(*args, **options)
            self._loaded = uid_in(checkpoint)
            return checkpoint

        recorder.replace(trainer.strategy, "load_checkpoint", load_checkpoint)

    def _attached(self, pl_module: Any, *, is_main: bool) -> Recorder:
        name = self.name or f"{type(pl_module).__name__}-predictions"
        recorder = Recorder.attach(
            store=self.store,
            name=name,
            type="predictions",
            job=self.job or f"predict-{name}",
            uses=self.uses,
            on_error=self.on_error,
            is_main=is_main,
        )
        with recorder.beginning():
            models = recorder.consume([] if self.model is None else [self.model], role="model")
        self._known = {
            "model": models[0].ref if models else None,
            "datasets": [version.ref for version in recorder.declared],
        }
        return recorder

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        """Find out which version the model is, and begin a part of the table on every rank."""
        recorder = self._recorder
        if recorder is None:
            return
        if self._loaded is not None:
            note_version(pl_module, self._loaded)

        def begin() -> tuple[str, dict[str, Any]] | None:
            if not recorder.is_recording or recorder.run is None:
                return None
            known = self._known
            known["model"] = known["model"] or self._model_of(recorder, trainer, pl_module)
            found = recorder.observe(trainer.predict_dataloaders, role="predict")
            known["datasets"] += [ref for ref in found if ref not in known["datasets"]]
            self._made = recorder.predictions(
                **known,
                classes=self.classes,
                names_run=True,
                # Several machines share what the trainer writes to; one has a folder for what is soon removed.
                above=None if trainer.num_nodes == 1 else trainer.default_root_dir,
            )
            folder = self._made.folder
            return None if folder is None else (str(folder), self._made.facts)

        told = from_rank_zero(trainer, begin)
        if told is None:
            return
        folder, facts = told
        with recorder.guarded(_DOING):
            if not os.path.isdir(folder):
                raise StoreUnavailable(
                    f"rank {trainer.global_rank} does not see {folder}, which rank 0 made. "
                    "Give the Trainer a default_root_dir that all machines share"
                )
            self._writer = PredictionWriter(folder, part=trainer.global_rank, **facts)
            recorder.at_end(self._writer.abort)

    def _model_of(self, recorder: Recorder, trainer: Any, pl_module: Any) -> str | None:
        uid = version_of(pl_module)
        if uid is not None:
            version = recorder.resumed_from(uid, role="model")
            return version.ref if version is not None else None
        for ref in recorder.observe(trainer.ckpt_path, role="model") if trainer.ckpt_path else ():
            return ref
        warn(
            "begat does not know which version the model that predicts is, so these predictions have none as an input. "
            "It knows a checkpoint that ArtifactCallback recorded, given as ckpt_path= or saved last in this process; "
            "or say it: PredictionCallback(model=...)"
        )
        return None

    # --- batches ---

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Add what was predicted to this rank's part of the table."""
        writer, self._writer = self._writer, None  # a part that lacks a batch is worth nothing
        if writer is None:
            return
        # Where a loader does not tell them, Lightning leaves those of the batch before.
        numbers = None if batch_indices is self._numbers else batch_indices
        self._numbers = batch_indices
        with cast("Recorder", self._recorder).guarded(_DOING):
            columns = picked(prediction, batch, self.picks, reads_as=self.reads_as)
            if columns["id"] is None:
                columns["id"] = (
                    list(numbers) if numbers else self._numbered(trainer, columns["pred"])
                )
            several = len(trainer.num_predict_batches) > 1
            writer.write(**columns, dataloader=dataloader_idx if several else None)
            self._writer = writer
            return
        writer.abort()

    def _numbered(self, trainer: Any, rows: Any) -> list[int]:
        """Numbers that no other row of the table has, for rows that nobody tells the number of."""
        first, self._rows = self._rows, self._rows + len(rows)
        return [at * trainer.world_size + trainer.global_rank for at in range(first, self._rows)]

    # --- every way out ---

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        """Make one version of all parts, if every rank has a whole one."""
        recorder, writer = self._recorder, self._writer
        if recorder is None:
            return
        is_whole = False
        if writer is not None:
            with recorder.guarded(_DOING):
                writer.close()
                is_whole = True
        is_whole = trainer.strategy.reduce_boolean_decision(is_whole, all=True)
        if self._made is not None and is_whole:
            self._made.store(recorder.policy.name)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """What was not predicted to the end is no version."""
        self._end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Predicting came to its end."""
        self._end()

    def _end(self, error: BaseException | None = None) -> None:
        recorder = self._recorder
        self._forget()
        if recorder is not None:
            recorder.finish(error=error)

    def __getstate__(self) -> dict[str, Any]:
        # Processes that are spawned get a copy from before `setup`; each begins for itself.
        state = without_loggers(self.__dict__)
        return {key: value for key, value in state.items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._forget()
