"""begat_transformers keeps the promises that every integration makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from begat.testing import BATCHES, CallbackTests, Training
from begat_transformers import ArtifactCallback

NO_HOOK = "the Trainer calls no hook for it; the run ends at the next training, or with the process"
OWN_FOLDERS = "the Trainer writes each checkpoint of a training to a folder of its own"
ROWS_PER_BATCH = 2


class TestTransformers(CallbackTests):
    package = "begat_transformers"
    needs = ("transformers",)
    install = '"begat[transformers]"'
    cannot: ClassVar = {
        "test_an_exception_fails_the_run": NO_HOOK,
        "test_ctrl_c_interrupts_the_run": NO_HOOK,
        "test_a_path_that_is_overwritten_is_a_version_each_time": OWN_FOLDERS,
        "test_two_that_save_at_once_are_kept_apart": "a Trainer saves in one way at a time",
    }

    def callback(self, name: str, **options: Any) -> Any:
        return ArtifactCallback(name, **options)

    def train(self, training: Training, *callbacks: Any) -> None:
        scores = list(training.scores)
        trainer = Trainer(
            _Line(),
            _arguments(training),
            train_dataset=_Rows(training.data),
            eval_dataset=_Rows(None),
            compute_metrics=lambda _: {"score": scores.pop(0)},
            callbacks=[_User(training), *callbacks],
        )
        trainer.train(resume_from_checkpoint=str(training.resume) if training.resume else None)


def _arguments(training: Training) -> TrainingArguments:
    (how,) = training.saves or ("",)
    options: dict[str, Any] = {"save_strategy": "epoch" if how else "no"}
    if how in ("newest", "best"):
        options["save_total_limit"] = 1
    if how == "best":
        options |= {"save_strategy": "best", "metric_for_best_model": "score"}
        options |= {"greater_is_better": False}
    if training.scores:
        options["eval_strategy"] = "epoch"
    return TrainingArguments(
        output_dir=str(training.folder),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=ROWS_PER_BATCH,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **options,
    )


class _User(TrainerCallback):
    """What a user's own callback does: act in each step."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.training.act(*divmod(state.global_step, BATCHES))


class _Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.layer(x)
        return {"loss": torch.nn.functional.mse_loss(found, labels), "logits": found}


class _Rows(Dataset[Any]):
    """The numbers of `rows.txt` in a folder, or any; as many as the batches of an epoch take."""

    def __init__(self, root: Path | None) -> None:
        self.root = root

    def __len__(self) -> int:
        return BATCHES * ROWS_PER_BATCH

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        text = "" if self.root is None else (self.root / "rows.txt").read_text()
        number = torch.tensor([float(text.split()[at]) if text else float(at)]) / 64
        return {"x": number, "labels": 2 * number}
