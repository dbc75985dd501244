"""A Keras model on real data: its checkpoints, predictions and data are versions, and a second fit goes on from one.

    KERAS_BACKEND=jax python examples/digits_keras.py [FOLDER]

Any backend; without KERAS_BACKEND it is torch. Makes a store below FOLDER (examples/out/digits_keras), anew each time.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras.callbacks import EarlyStopping, ModelCheckpoint
from sklearn.datasets import load_digits

import begat
from begat_keras import ArtifactCallback, EvaluationTable

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/out/digits_keras")
PIXELS, LABELS = load_digits(return_X_y=True)  # 1,797 pictures, 8 x 8; they come with scikit-learn


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    os.environ["BEGAT_STORE"] = str(OUT / "store")
    np.savez(OUT / "digits.npz", pixels=PIXELS / 16, labels=LABELS)
    begat.log_artifact("digits", OUT / "digits.npz", type="dataset")

    fit(network(), epochs=8)
    best = begat.get_artifact("digits-model:best")
    show(best, f"accuracy {best.metadata['score']:.1%} in epoch {best.metadata['epoch']}")
    again: Any = keras.models.load_model(best.file)
    fit(again, epochs=12, initial_epoch=int(best.metadata["epoch"]) + 1)
    show(begat.get_artifact("digits-model:best"), "went on from the best checkpoint")
    show(begat.get_artifact("digits-model-predictions:latest"), "of held-out rows")


def fit(model: Any, **options: int) -> None:
    data = np.load(begat.get_artifact("digits:latest").file)
    train, test = slice(0, 1500), slice(1500, None)
    model.fit(
        data["pixels"][train],
        data["labels"][train],
        validation_data=(data["pixels"][test], data["labels"][test]),
        verbose=0,
        callbacks=[
            ModelCheckpoint(
                OUT / "best.keras", monitor="val_accuracy", mode="max", save_best_only=True
            ),
            EarlyStopping("val_accuracy", mode="max", patience=3, restore_best_weights=True),
            ArtifactCallback("digits-model", uses=["digits:latest"]),
            EvaluationTable(data["pixels"][test], data["labels"][test], reads_as="probabilities"),
        ],
        **options,
    )


def network() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def show(version: begat.Version, note: str) -> None:
    used = version.produced_by.inputs if version.produced_by else ()
    print(f"{version.ref}, made from {' and '.join(one.ref for one in used)}: {note}")


if __name__ == "__main__":
    main()
