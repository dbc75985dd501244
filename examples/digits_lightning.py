"""The main job with Lightning: one callback on a Trainer, and its checkpoints are versions that know their dataset.

    python examples/digits_lightning.py [FOLDER]

Makes a store and a picture of its lineage below FOLDER (examples/out/digits_lightning), anew each time. Needs no
network.
"""

import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pyarrow as pa
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from pyarrow import parquet
from rich.console import Console
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

import begat
from begat_lightning import ArtifactCallback

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/out/digits_lightning")
PIXELS, LABELS = load_digits(return_X_y=True)  # 1,797 pictures, 8 x 8; they come with scikit-learn
TEST_ROWS = range(1500, 1797)
console = Console(highlight=False)


class DigitsNet(pl.LightningModule):
    """A small perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.005)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    store = begat.open_store(OUT / "store")
    step(1, "A run logs the dataset")
    collect(store, rows=range(900))
    step(2, "A Trainer with one callback uses it; its checkpoints become versions")
    train(store)
    step(3, "A run uses the best checkpoint, and logs its predictions")
    predict(store)
    step(4, "The dataset grows")
    collect(store, rows=range(900, 1500))
    step(5, "What is outdated now, and why?")
    command(store, "stale")
    step(6, "Train and predict again")
    train(store)
    predict(store)
    command(store, "stale")
    show_store(store)


def collect(store: begat.Store, *, rows: range) -> None:
    """The next version of the dataset: what the last one has, and these rows in parts of 300."""
    with (
        begat.start_run("collect", job="collect-digits", store=store) as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        if rows.start == 0:
            digits = begat.Artifact("digits", "dataset", description="Handwritten digits, 8 x 8")
            write_part(f"{folder}/test.parquet", TEST_ROWS)
        else:
            digits = run.use_artifact("digits:latest").draft()
        for start in rows[::300]:
            write_part(f"{folder}/train-{start:04}.parquet", range(start, start + 300))
        show(run.log_artifact(digits.add(folder)))


def train(store: begat.Store) -> None:
    pl.seed_everything(0, verbose=False)
    digits = store.get_artifact("digits:latest")
    checkpoints = ModelCheckpoint(
        OUT / f"checkpoints-{digits.number}",
        monitor="accuracy",
        mode="max",
        save_top_k=2,
        filename="{epoch}-{accuracy:.3f}",
    )
    trainer = pl.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            checkpoints,
            ArtifactCallback("digits-model", uses=["digits:latest"], store=store.path),
        ],
    )
    training = DataLoader(read(digits, "train-*.parquet"), batch_size=64, shuffle=True)
    trainer.fit(DigitsNet(), training, DataLoader(read(digits, "test.parquet"), batch_size=300))
    best = store.get_artifact("digits-model:best")
    show(best, f"accuracy {best.metadata['score']:.1%} in epoch {best.metadata['epoch']}")
    made = best.produced_by.outputs if best.produced_by else ()
    retired = sum(version.state == "retired" for version in made)
    console.print(f"   {len(made)} checkpoints logged; Lightning removed {retired}, now retired")


def predict(store: begat.Store) -> None:
    with (
        begat.start_run("predict", job="predict-digits", store=store) as run,
        tempfile.TemporaryDirectory() as folder,
    ):
        checkpoint = run.use_artifact("digits-model:best").file
        pixels, labels = read(run.use_artifact("digits:latest"), "test.parquet").tensors
        model = DigitsNet.load_from_checkpoint(checkpoint, map_location="cpu").eval()
        with torch.no_grad():
            probabilities = model(pixels).softmax(1)
        columns = {
            "id": list(TEST_ROWS),
            "label": labels.numpy(),
            "pred": probabilities.argmax(1).numpy(),
            "prob": probabilities.tolist(),
        }
        parquet.write_table(pa.table(columns), f"{folder}/predictions.parquet")
        show(run.log_artifact("digits-predictions", folder, type="predictions"))


def write_part(path: str, rows: range) -> None:
    columns = {"pixels": list(PIXELS[rows]), "label": LABELS[rows], "id": list(rows)}
    parquet.write_table(pa.table(columns), path)


def read(digits: begat.Version, glob: str) -> TensorDataset:
    """Pixels and labels of the files that fit the glob."""
    parts = [parquet.read_table(digits.path / entry.path) for entry in digits.files(glob)]
    pixels, labels, _ = pa.concat_tables(parts).columns
    return TensorDataset(
        torch.tensor(np.array(pixels.to_pylist()), dtype=torch.float32) / 16,
        torch.tensor(labels.to_pylist()),
    )


# --- what is printed ---


def step(number: int, title: str) -> None:
    console.print(f"\n[bold cyan]{number}[/]  [bold]{title}[/]")


def show(version: begat.Version, note: str = "") -> None:
    run = version.produced_by
    used = run.inputs if run else ()
    origin = " and ".join(one.ref for one in used) or "nothing older"
    console.print(f"   [green]{version.ref}[/], made from {origin}  [bold]{note}[/]")
    sizes = f"{version.size_bytes:,} logical bytes, {version.new_bytes:,} new"
    console.print(f"   [dim]{version.file_count} files; {sizes}[/]")


def show_store(store: begat.Store) -> None:
    """The store as the command line shows it, the bytes it holds, and a picture."""
    console.print()
    command(store, "ls")
    command(store, "lineage", "digits-predictions:latest", "--up")
    (OUT / "lineage.svg").write_text(store.lineage("digits:v1", "downstream").svg(), "utf-8")
    versions = [version for one in store.artifacts() for version in store.versions(one.name)]
    logical = sum(version.size_bytes for version in versions)
    new = sum(version.new_bytes for version in versions)
    console.print(f"{len(versions)} versions: {logical:,} logical bytes, {new:,} new")
    console.print(f"The lineage as a picture: {OUT / 'lineage.svg'}")


def command(store: begat.Store, *words: str) -> None:
    console.print(f"[bold]$ begat {' '.join(words)}[/]")
    begat_command = [sys.executable, "-m", "begat", "--store", str(store.path)]
    done = subprocess.run([*begat_command, *words], capture_output=True, text=True)
    console.out((done.stdout + done.stderr).rstrip())


if __name__ == "__main__":
    # Lightning's notes on the machine, and its advice about a training that is tiny on purpose.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch)\.")
    torch.set_num_threads(1)  # in a net this small, threads wait more than they work
    main()
