"""Hugging Face datasets as versions: real data, two trainings, and what the second one read is known by its content.

python examples/digits_huggingface.py [FOLDER]       (needs: pip install "begat[huggingface,sklearn]", no network)
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/out/digits-huggingface").resolve()
shutil.rmtree(folder, ignore_errors=True)
os.environ["BEGAT_STORE"] = str(folder / "store")

import datasets  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

import begat  # noqa: E402
from begat_huggingface import load_dataset, save_dataset  # noqa: E402

datasets.disable_progress_bars()
PIXELS, LABELS = load_digits(return_X_y=True)  # 1,797 pictures, 8 x 8; they come with scikit-learn


def digits(count: int) -> datasets.DatasetDict:
    """The first pictures, and always the same ones to test with."""
    columns = {"pixels": PIXELS.tolist(), "label": LABELS.tolist()}
    names = [str(digit) for digit in range(10)]
    rows = datasets.Dataset.from_dict(columns).cast_column(
        "label", datasets.ClassLabel(names=names)
    )
    splits = {"train": rows.select(range(count)), "test": rows.select(range(1500, 1797))}
    return datasets.DatasetDict({**splits})


def accuracy(rows: Any) -> float:
    """How well a model does that was fitted to the one split, on the other."""
    train, test = rows["train"].with_format("numpy")[:], rows["test"].with_format("numpy")[:]
    model = LogisticRegression(max_iter=2_000).fit(train["pixels"], train["label"])
    return float(model.score(test["pixels"], test["label"]))


with begat.start_run("collect"):
    print("saved", save_dataset(digits(500), "digits").ref)

with begat.start_run("train", job="train-digits") as run:
    score = accuracy(load_dataset("digits:latest"))  # recorded as an input, now
    run.log_artifact("digits-score", f"{score:.3f}".encode(), metadata={"accuracy": score})
print("trained on", [version.ref for version in run.inputs], f"{score:.2f}")

with begat.start_run("collect"):
    grown = digits(1500)
    print("saved", save_dataset(grown, "digits").ref)
print("stale:", begat.default_store().stale()[0].reason)

with begat.start_run("train", job="train-digits") as run:
    recorder = begat.Recorder.attach(run)
    recorder.observe(grown["train"])  # not loaded from begat, and known all the same
    score = accuracy(grown)
print("detected", [version.ref for version in run.inputs], f"{score:.2f}")
