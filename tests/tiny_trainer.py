"""A model, data and a `transformers.Trainer` so small that a test can train for real."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import begat
from begat.errors import ArtifactNotFound, BegatWarning

ROWS = 8
STEPS_PER_EPOCH = 2


class Net(torch.nn.Module):
    """A model that does `act(number of the forward pass)` in each step of a training."""

    def __init__(self, act: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.act, self.count = act, 0

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.count += 1
            if self.act is not None:
                self.act(self.count)
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def any_net() -> Any:
    return Net()


class Rows(Dataset[Any]):
    def __init__(self, root: Path | None = None) -> None:
        self.root = root

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {"x": torch.full((4,), float(at)), "labels": at % 2}


class Kit:
    """A store, a place for checkpoints, and a training that takes a moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = begat.open_store()

    def arguments(self, **options: Any) -> TrainingArguments:
        defaults = {
            "output_dir": self.folder,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "num_train_epochs": 1,
            "per_device_train_batch_size": ROWS // STEPS_PER_EPOCH,
            "save_strategy": "epoch",
        }
        return TrainingArguments(**{**defaults, **options})

    def trainer(
        self,
        *callbacks: Any,
        model: Any = None,
        scores: tuple[float, ...] = (),
        data: Any = None,
        **options: Any,
    ) -> Trainer:
        """A trainer; with `scores` it evaluates after each epoch and finds these."""
        if scores:
            metric = {"eval_strategy": "epoch", "metric_for_best_model": "score"}
            options = {**metric, "greater_is_better": False, **options}
        left = list(scores)
        return Trainer(
            model or Net(),
            self.arguments(**options),
            train_dataset=data or Rows(),
            eval_dataset=Rows(),
            compute_metrics=(lambda _: {"score": left.pop(0) if left else 0.0}) if scores else None,
            callbacks=list(callbacks),
        )

    def versions(self, name: str = "net") -> list[begat.Version]:
        try:
            return list(self.store.versions(name))
        except ArtifactNotFound:
            return []

    def run(self) -> begat.Run:
        (newest,) = self.store.runs(limit=1)
        return newest


@contextmanager
def begat_warnings() -> Iterator[list[str]]:
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(one.message) for one in caught if issubclass(one.category, BegatWarning)]


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def files_of(version: begat.Version) -> dict[str, bytes]:
    return {entry.path: version.read_bytes(entry.path) for entry in version.files()}


class Boom(Exception):
    """What the training of a test dies of."""


def boom() -> None:
    raise Boom("out of luck")


def at_second_epoch(act: Callable[[], None]) -> Net:
    return Net(act=lambda step: act() if step == STEPS_PER_EPOCH + 1 else None)
