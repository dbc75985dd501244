"""begat_keras keeps the promises that every integration makes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np

from begat.testing import BATCHES, CallbackTests, Training
from begat_keras import ArtifactCallback

NO_HOOK = "Keras calls no hook for it; the run ends at the next fit, or with the process"
NO_REMOVAL = "Keras's own callbacks remove no checkpoint while they save"


class TestKeras(CallbackTests):
    package = "begat_keras"
    needs = ("keras",)
    install = '"begat[keras]"'
    cannot: ClassVar = {
        "test_an_exception_fails_the_run": NO_HOOK,
        "test_ctrl_c_interrupts_the_run": NO_HOOK,
        "test_what_the_framework_removes_is_retired": NO_REMOVAL,
        "test_with_keep_all_nothing_is_retired": NO_REMOVAL,
    }

    def callback(self, name: str, **options: Any) -> Any:
        return ArtifactCallback(name, **options)

    def train(self, training: Training, *callbacks: Any) -> None:
        model: Any = _model()
        if training.resume is not None:
            model = keras.models.load_model(training.resume)
        steps: Any = keras.ops.convert_to_numpy(model.optimizer.iterations)
        model.fit(
            _Memory() if training.data is None else _Rows(training.data),
            epochs=training.epochs,
            initial_epoch=int(steps) // BATCHES,
            verbose=0,
            callbacks=[_User(training), *_savers(training), *callbacks],
        )


def _model() -> Any:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def _savers(training: Training) -> list[Any]:
    def saver(name: str, **options: Any) -> Any:
        return keras.callbacks.ModelCheckpoint(str(training.folder / name), **options)

    options = {"monitor": "score", "mode": "min"}
    kinds = {
        "each": lambda: saver("{epoch}.keras", **options),
        "same": lambda: saver("same.keras", **options),
        "best": lambda: saver("best.keras", save_best_only=True, **options),
    }
    return [kinds[kind]() for kind in training.saves]


class _User(keras.callbacks.Callback):
    """What a user's own callback does: act in each batch, and tell a score."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.training = training

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.training.act(self.epoch, batch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.training.scores:
            logs["score"] = self.training.scores[epoch]


class _Rows(keras.utils.PyDataset):
    """The numbers of `rows.txt` in a folder, in as many batches as an epoch is to have."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> Any:
        numbers = [float(word) / 64 for word in (self.root / "rows.txt").read_text().split()]
        rows = np.array(numbers, dtype="float32").reshape(BATCHES, -1, 2)[index]
        return rows, rows[:, :1]


class _Memory(keras.utils.PyDataset):
    """Rows that nobody knows the origin of."""

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> Any:
        rows = np.arange(8, dtype="float32").reshape(4, 2) / (index + 1)
        return rows, rows[:, :1]
