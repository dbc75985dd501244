"""begat_lightning keeps the promises that every integration makes, under both names of the framework."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from begat.testing import BATCHES, CallbackTests, Training


class TestLightning(CallbackTests):
    package = "begat_lightning"
    needs = ("lightning", "pytorch_lightning")
    install = '"begat[lightning]"'
    pl: ClassVar[Any] = lightning.pytorch
    home: ClassVar = "begat_lightning.unified"
    cannot: ClassVar = {
        "test_a_process_of_another_rank_records_nothing": "of one process Lightning makes rank 0, whatever RANK says; "
        "trainings of two processes are in test_lightning_ranks.py",
    }

    def callback(self, name: str, **options: Any) -> Any:
        return importlib.import_module(self.home).ArtifactCallback(name, **options)

    def train(self, training: Training, *callbacks: Any) -> None:
        trainer = self.pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=training.epochs,
            logger=False,
            enable_checkpointing=bool(training.saves),
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*self._savers(training), *callbacks],
        )
        trainer.fit(_model(self.pl, training), _loader(training), ckpt_path=training.resume)

    def _savers(self, training: Training) -> list[Any]:
        # Lightning tells them apart by what they watch and how, so each way has a mode of its own.
        kinds: dict[str, dict[str, Any]] = {
            "each": {"filename": "each-{epoch}", "save_top_k": -1, "mode": "min"},
            "same": {"filename": "same", "mode": "max"},
            "newest": {"filename": "newest-{epoch}"},
            "best": {"filename": "best-{epoch}", "monitor": "score", "mode": "min"},
        }
        saver = self.pl.callbacks.ModelCheckpoint
        return [saver(training.folder, **kinds[kind]) for kind in training.saves]


class TestPytorchLightning(TestLightning):
    pl: ClassVar[Any] = pytorch_lightning
    home: ClassVar = "begat_lightning.pl"


def _model(pl: Any, training: Training) -> Any:
    class Net(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            training.act(self.current_epoch, batch_idx)
            return (self.layer(batch[0]) - 1).square().mean()

        def on_train_epoch_end(self) -> None:
            if training.scores:
                self.log("score", training.scores[self.current_epoch])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Net()


def _loader(training: Training) -> DataLoader[Any]:
    memory = TensorDataset(torch.arange(4.0 * BATCHES).reshape(-1, 2))
    data = memory if training.data is None else _Rows(training.data)
    return DataLoader(data, batch_size=len(data) // BATCHES)


class _Rows(Dataset[Any]):
    """The numbers of `rows.txt` in a folder, two in a row."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __len__(self) -> int:
        return len((self.root / "rows.txt").read_text().split()) // 2

    def __getitem__(self, index: int) -> Any:
        numbers = [float(word) / 64 for word in (self.root / "rows.txt").read_text().split()]
        return (torch.tensor(numbers[2 * index : 2 * index + 2]),)
