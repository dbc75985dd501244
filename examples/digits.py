"""The main job on real data: versions of a dataset, a model and predictions, and what a new dataset makes stale.

    python examples/digits.py [FOLDER]

Makes a store and a picture of its lineage below FOLDER (examples/out/digits), anew each time. Needs no network.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import begat
from begat_sklearn import TrackedEstimator, load_estimator

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/out/digits")
PIXELS, LABELS = load_digits(return_X_y=True)  # 1,797 pictures, 8 x 8; they come with scikit-learn
TEST_ROWS = range(1500, 1797)
console = Console(highlight=False)


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    store = begat.open_store(OUT / "store")
    step(1, "A run logs the dataset")
    collect(store, rows=range(900))
    step(2, "A training run uses it, and logs the model")
    train(store)
    step(3, "A run uses the best model, and logs its predictions")
    predict(store)
    step(4, "The dataset grows; files that did not change are stored once")
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
    with begat.start_run("train", job="train-digits", store=store) as run:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
        model = TrackedEstimator(classifier, name="digits-model", uses=["digits:latest"])
        # In one run `digits:latest` means one version: what is read here is what the fit records.
        digits = run.use_artifact("digits:latest")
        model.fit(*read(digits, "train-*.parquet")[:2])
        accuracy = model.score(*read(digits, "test.parquet")[:2])
        run.log_metrics({"accuracy": accuracy})
        version = store.get_artifact("digits-model:latest")
        version.add_aliases("best")
        show(version, f"accuracy {accuracy:.1%}")


def predict(store: begat.Store) -> None:
    with begat.start_run("predict", job="predict-digits", store=store) as run:
        model = load_estimator("digits-model:best")
        X, y, ids = read(run.use_artifact("digits:latest"), "test.parquet")
        show(model.log_predictions(X, y, ids=ids, name="digits-predictions"))


def write_part(path: str, rows: range) -> None:
    columns = {"pixels": list(PIXELS[rows]), "label": LABELS[rows], "id": list(rows)}
    parquet.write_table(pa.table(columns), path)


def read(digits: begat.Version, glob: str) -> list[np.ndarray]:
    """Pixels, labels and ids of the files that fit the glob."""
    parts = [parquet.read_table(digits.path / entry.path) for entry in digits.files(glob)]
    return [np.array(column.to_pylist()) for column in pa.concat_tables(parts).columns]


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
    for older in used:
        if older.name == version.name:
            same = older.diff(version).unchanged_count
            console.print(f"   {same} of {version.file_count} files are shared with {older.ref}")


def show_store(store: begat.Store) -> None:
    """The store as the command line shows it, the bytes it holds, and a picture."""
    console.print()
    command(store, "ls")
    command(store, "lineage", "digits:v1", "--down")
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
    main()
