"""The main job with transformers: one callback on a Trainer, and its checkpoints are versions that know their dataset.

    python examples/digits_transformers.py [FOLDER]

Trains a small perceptron on pictures that come with scikit-learn. Makes a store and a picture of its lineage below
FOLDER (examples/out/digits_transformers), anew each time. Needs no network.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainingArguments, set_seed

import begat
from begat_transformers import ArtifactCallback, log_predictions

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/out/digits_transformers")
PIXELS, LABELS = load_digits(return_X_y=True)  # 1,797 pictures, 8 x 8
TEST_ROWS = slice(1500, 1797)
console = Console(highlight=False)


class Digits(Dataset[Any]):
    """The rows of one file of the dataset."""

    def __init__(self, path: Path) -> None:
        self.path = path  # begat sees by it which version is read
        rows = np.load(path)
        self.pixels = torch.tensor(rows["pixels"], dtype=torch.float32) / 16
        self.labels = torch.tensor(rows["labels"])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"pixels": self.pixels[at], "labels": self.labels[at]}


class DigitsNet(torch.nn.Module):
    """A small perceptron, in the form that a `Trainer` expects."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(pixels)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    os.environ["BEGAT_STORE"] = str(OUT / "store")
    step(
        1,
        "A Trainer with one callback uses a dataset, and its predictions are logged",
    )
    collect(rows=900)
    train_and_predict()
    step(2, "The dataset grows. What is outdated now, and why?")
    collect(rows=1500)
    command("stale")
    step(3, "Train and predict again")
    train_and_predict()
    command("stale")
    command("lineage", "digits-predictions:latest", "--up")
    picture = begat.open_store().lineage("digits:v1", "downstream").svg()
    (OUT / "lineage.svg").write_text(picture, "utf-8")


def collect(*, rows: int) -> None:
    folder = OUT / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "train.npz", pixels=PIXELS[:rows], labels=LABELS[:rows])
    np.savez(folder / "test.npz", pixels=PIXELS[TEST_ROWS], labels=LABELS[TEST_ROWS])
    with begat.start_run("collect", job="collect-digits") as run:
        console.print(f"   {run.log_artifact('digits', folder, type='dataset').ref}")


def train_and_predict() -> None:
    digits = begat.get_artifact("digits:latest")
    test = Digits(digits.path / "test.npz")
    set_seed(0)
    trainer = Trainer(
        DigitsNet(),
        TrainingArguments(
            str(OUT / f"checkpoints-{digits.number}"),
            num_train_epochs=6,
            learning_rate=5e-3,
            per_device_train_batch_size=64,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            metric_for_best_model="accuracy",
            load_best_model_at_end=True,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=Digits(digits.path / "train.npz"),
        eval_dataset=test,
        compute_metrics=accuracy,
        callbacks=[ArtifactCallback("digits-model", uses=["digits:latest"])],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    output = trainer.predict(test)
    predictions = log_predictions(output, ids=range(1500, 1797), name="digits-predictions")
    best = begat.get_artifact("digits-model:best")
    made = best.produced_by.outputs if best.produced_by else ()
    retired = sum(version.state == "retired" for version in made)
    console.print(
        f"   {best.ref}, accuracy {best.metadata['score']:.1%} in epoch {best.metadata['epoch']}"
    )
    console.print(f"   {len(made)} checkpoints logged; the Trainer removed {retired}, now retired")
    console.print(f"   {predictions.ref if predictions else None}, made from {best.ref}")


def accuracy(output: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((np.argmax(output.predictions, axis=1) == output.label_ids).mean())}


# --- what is printed ---


def step(number: int, title: str) -> None:
    console.print(f"\n[bold cyan]{number}[/]  [bold]{title}[/]")


def command(*words: str) -> None:
    console.print(f"[bold]$ begat {' '.join(words)}[/]")
    done = subprocess.run([sys.executable, "-m", "begat", *words], capture_output=True, text=True)
    console.out((done.stdout + done.stderr).rstrip())


if __name__ == "__main__":
    torch.set_num_threads(1)  # in a net this small, threads wait more than they work
    main()
