"""What a callback costs a training, each figure beside its floor, measured in one run: `make bench-callbacks`.

    saves       how long a save blocks the training, beside a plain copy of the checkpoint
    drain       how long the end of the fit waits for what is still to be stored, beside copy and fsync
    overhead    a fit of 1,000 steps with the callback, beside the same fit with a callback of the framework's own that
                does nothing, which the framework calls in each step as well, and beside a fit with none
    memory      anonymous memory after 100 and after 1,000 checkpoints

Checkpoints and store lie in the folder that `--folder` names, by default on a memory file system where there is one.
Only ratios are comparable between machines.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import begat

MEMORY = Path("/dev/shm")
CHECKPOINT_BYTES = 300_000_000
STEPS = 1_000
BATCH = 32


def say(work: str, floor: str, floor_s: float, ours_s: float, bar: str) -> None:
    """One line of the table."""
    ratio = ours_s / floor_s
    print(
        f"{work:58} {floor:>22} {floor_s * 1e3:10.1f} {ours_s * 1e3:10.1f} {ratio:8.2f}x {bar:>16}",
        flush=True,
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- a save, and the drain ---


def saves(folder: Path, turns: int) -> None:
    """A checkpoint of 300 MB: how long `saved` takes in the save hook, and `finish` after it."""
    path = folder / "checkpoint.ckpt"
    copy = folder / "copy.ckpt"
    with begat.open_store(folder / "store") as store:
        for is_replaced_whole in (False, True):
            blocked: list[float] = []
            drained: list[float] = []
            floors: list[float] = []
            synced: list[float] = []
            for _ in range(turns):
                path.unlink(missing_ok=True)
                path.write_bytes(os.urandom(CHECKPOINT_BYTES))
                floors.append(seconds(lambda: shutil.copyfile(path, copy)))
                synced.append(floors[-1] + seconds(lambda: _sync(copy)))
                copy.unlink()
                recorder = begat.Recorder.attach(store=store, name="net", job="bench")
                blocked.append(
                    seconds(
                        lambda: recorder.saved(path, step=1, is_replaced_whole=is_replaced_whole)  # noqa: B023
                    )
                )
                drained.append(seconds(recorder.finish))
            how = (
                "replaced whole (a link is safe)"
                if is_replaced_whole
                else "written in place (copied)"
            )
            bar = "< 20 ms" if is_replaced_whole else "<= 1.2x"
            say(f"a save of 300 MB, {how}", "plain copy", *_medians(floors, blocked), bar)
            say(
                "  and the end of the fit right after it",
                "copy and fsync",
                *_medians(synced, drained),
                "-",
            )


def keras_save(folder: Path, turns: int) -> None:
    """What a save of Keras's own waits for on top of itself: the copy, and the digest of the weights."""
    import keras
    from keras.callbacks import LambdaCallback

    from begat_keras import ArtifactCallback

    path, copy = folder / "net.weights.h5", folder / "copy.h5"
    units = int((CHECKPOINT_BYTES / 4) ** 0.5)
    model: Any = keras.Sequential([keras.Input((units,)), keras.layers.Dense(units)])
    model.compile("sgd", "mse")
    inputs = keras.random.normal((1, units))
    took: list[float] = []
    save = LambdaCallback(
        on_epoch_end=lambda *_: took.append(seconds(lambda: model.save_weights(path)))
    )

    def fit(*callbacks: Any) -> float:
        model.fit(inputs, inputs, verbose=0, callbacks=[*callbacks, save])
        return took[-1]

    fit()
    floors: list[float] = []
    ours: list[float] = []
    for _ in range(turns):
        without = fit()
        floors.append(seconds(lambda: shutil.copyfile(path, copy)))
        copy.unlink()
        path.unlink()
        ours.append(fit(ArtifactCallback("net", store=folder / "store-keras-save")) - without)
        path.unlink()
    say(
        "a save of 300 MB by Keras, more than without",
        "plain copy",
        *_medians(floors, ours),
        "<= 1.2x",
    )


def _medians(floor: list[float], ours: list[float]) -> tuple[float, float]:
    return statistics.median(floor), statistics.median(ours)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# --- 1,000 steps ---


def lightning_fit(callbacks: list[Any]) -> float:
    """Seconds of a fit."""
    import logging

    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.demos.boring_classes import BoringModel

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows: Any = torch.randn(STEPS * BATCH, 32)
    data = torch.utils.data.DataLoader(rows, batch_size=BATCH)
    model = BoringModel()
    trainer = pl.Trainer(
        max_steps=STEPS,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )
    return seconds(lambda: trainer.fit(model, data))


def keras_fit(callbacks: list[Any]) -> float:
    """Seconds of a fit."""
    import keras
    import numpy

    inputs = numpy.random.default_rng(0).standard_normal((STEPS * BATCH, 32)).astype("float32")
    model: Any = keras.Sequential([keras.Input((32,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    targets = inputs[:, :2]
    return seconds(
        lambda: model.fit(inputs, targets, batch_size=BATCH, verbose=0, callbacks=callbacks)
    )


def transformers_fit(callbacks: list[Any]) -> float:
    """Seconds of a fit."""
    import torch
    import transformers

    class Net(torch.nn.Module):
        """A layer whose loss is its output's mean square."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(32, 2)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": self.layer(x).square().mean()}

    data = [{"x": row} for row in torch.randn(STEPS * 8, 32)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=8,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = transformers.Trainer(
            Net(),
            arguments,
            train_dataset=data,  # type: ignore[arg-type]
            callbacks=callbacks,
        )
        return seconds(trainer.train)


def overhead(folder: Path, turns: int) -> None:
    """What is left when nothing is saved: the beginning and the end of a run, and nothing per step."""
    import keras.callbacks
    import lightning.pytorch
    import transformers

    import begat_keras
    import begat_lightning
    import begat_transformers

    for name, fit, nothing, callback in (
        ("Lightning", lightning_fit, lightning.pytorch.Callback, begat_lightning.ArtifactCallback),
        ("Keras", keras_fit, keras.callbacks.Callback, begat_keras.ArtifactCallback),
        (
            "transformers",
            transformers_fit,
            transformers.TrainerCallback,
            begat_transformers.ArtifactCallback,
        ),
    ):
        store = str(folder / f"store-{name}")
        fits: list[Callable[[], float]] = [
            lambda fit=fit: fit([]),
            lambda fit=fit, nothing=nothing: fit([nothing()]),
            lambda fit=fit, callback=callback, store=store: fit([callback("net", store=store)]),
        ]
        for each in fits:  # imports, and the making of the store
            each()
        none, empty, ours = zip(*([each() for each in fits] for _ in range(turns)), strict=True)
        what = f"{STEPS} steps of {name}"
        _say_more(f"{what} with an empty callback", "without it", none, empty, "-")
        _say_more(f"{what}, nothing saved", "an empty callback", empty, ours, "<= 1.01x + run")
        _say_more(f"{what}, nothing saved", "without the callback", none, ours, "-")
        print(
            f"  begin and end of an empty run alone: {_empty_run(store) * 1e3:.1f} ms", flush=True
        )


def _say_more(
    work: str, floor: str, floors: Sequence[float], ours: Sequence[float], bar: str
) -> None:
    """A line of the table, and how much longer it takes: by the median of the turns, which see the same machine."""
    more = statistics.median(b - a for a, b in zip(floors, ours, strict=True))
    floor_s = statistics.median(floors)
    say(work, floor, floor_s, floor_s + more, bar)
    print(f"  more than {floor}: {more * 1e3:.1f} ms", flush=True)


def _empty_run(store: str) -> float:
    def run() -> None:
        begat.Recorder.attach(store=store, name="net", job="empty").finish()

    return statistics.median(seconds(run) for _ in range(5))


# --- memory ---


def memory(folder: Path) -> None:
    """1,000 checkpoints of one training, of which a framework would keep the last three."""
    with begat.open_store(folder / "store-memory") as store:
        recorder = begat.Recorder.attach(store=store, name="net", job="bench")
        early = 0
        for step in range(1, 1_001):
            path = folder / f"step-{step}.ckpt"
            path.write_bytes(os.urandom(100_000))
            recorder.saved(path, step=step, score=1 / step, monitor="loss", aliases=["best"])
            old = folder / f"step-{step - 3}.ckpt"
            if old.exists():
                old.unlink()
                recorder.removed(old)
            if step == 100:
                recorder.drain()
                early = _anonymous_bytes()
        recorder.drain()
        late = _anonymous_bytes()
        recorder.finish()
        count = len(store.versions("net"))
    print(
        f"{count} checkpoints: {early / 1e6:.1f} MB of anonymous memory after 100, {late / 1e6:.1f} MB after 1,000"
    )


def _anonymous_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=MEMORY if MEMORY.is_dir() else None)
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    warnings.simplefilter(
        "ignore"
    )  # what frameworks say of tiny trainings; ours would be seen in the figures
    warnings.simplefilter("error", begat.BegatWarning)
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="begat-bench-") as name:
        folder = Path(name)
        print(f"{sys.platform}, {os.cpu_count()} cores, below {folder.parent}")
        print(
            f"{'work':58} {'floor':>22} {'floor ms':>10} {'begat ms':>10} {'ratio':>9} {'bar':>16}"
        )
        saves(folder, asked.turns)
        keras_save(folder, asked.turns)
        overhead(folder, asked.turns)
        memory(folder)


if __name__ == "__main__":
    main()
