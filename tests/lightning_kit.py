"""Small trainings under both names of Lightning, for the tests of what begat_lightning makes of them."""

from __future__ import annotations

import contextlib
import importlib
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import begat
from begat.errors import ArtifactNotFound, BegatWarning

NAMESPACES = {
    "lightning.pytorch": "begat_lightning.unified",
    "pytorch_lightning": "begat_lightning.pl",
}
SAMPLES = 8


class Kit:
    """One of Lightning's names with our callback for it, and a training that takes a moment."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.pl: Any = importlib.import_module(namespace)
        self.callback: Any = importlib.import_module(NAMESPACES[namespace]).ArtifactCallback
        self.folder = folder
        self.store = begat.open_store()

    def model(self, *, scores: tuple[float, ...] = (), act: Any = None) -> Any:
        """A model that reports these scores, one an epoch, and does `act(model, batch number)` in each step."""
        return _model_class(self.pl)(scores, act)

    def checkpoints(self, **options: Any) -> Any:
        return self.pl.callbacks.ModelCheckpoint(**{"dirpath": self.folder, **options})

    def trainer(self, *callbacks: Any, **options: Any) -> Any:
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": self.folder,
        }
        return self.pl.Trainer(**{**defaults, **options}, callbacks=list(callbacks))

    def fit(self, model: Any, *callbacks: Any, ckpt_path: Any = None, **options: Any) -> Any:
        trainer = self.trainer(*callbacks, **options)
        trainer.fit(model, loader(), ckpt_path=ckpt_path)
        return trainer

    def versions(self, name: str = "net") -> list[begat.Version]:
        try:
            return list(self.store.versions(name))
        except ArtifactNotFound:
            return []

    def run(self) -> begat.Run:
        (newest,) = self.store.runs(limit=1)
        return newest


_classes: dict[str, Any] = {}


def _model_class(pl: ModuleType) -> Any:
    if pl.__name__ not in _classes:

        class Net(pl.LightningModule):
            def __init__(self, scores: tuple[float, ...], act: Any) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(4, 2)
                self.scores, self.act = scores, act

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                if self.act is not None:
                    self.act(self, batch_idx)
                return self.layer(batch[0]).square().mean()

            def on_train_epoch_end(self) -> None:
                if self.scores:
                    self.log("score", self.scores[self.current_epoch])

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.01)

        _classes[pl.__name__] = Net
    return _classes[pl.__name__]


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.ones(SAMPLES, 4)), batch_size=4)


def kits(namespace: str, tmp_path: Path) -> Iterator[Kit]:
    """The kit for a test, as a fixture gives it."""
    at_interrupt = signal.getsignal(signal.SIGINT)
    yield Kit(namespace, tmp_path / "checkpoints")
    signal.signal(
        signal.SIGINT, at_interrupt
    )  # Lightning ignores it for good after the first Ctrl-C


class Boom(Exception):
    """What the training of a test dies of."""


def at_second_epoch(act: Any) -> Any:
    return lambda model, batch: act() if model.current_epoch == 1 else None


def boom() -> None:
    raise Boom("out of luck")


@contextlib.contextmanager
def begat_warnings() -> Iterator[list[str]]:
    """What begat has to say, once the block has ended; what the frameworks say of themselves is left out."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += [str(one.message) for one in caught if issubclass(one.category, BegatWarning)]
