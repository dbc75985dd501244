"""A search over a pipeline, recorded by scikit-learn's own callbacks: data, best parameters, model and predictions.

    python examples/breast_cancer_sklearn.py [FOLDER]

Makes a store below FOLDER (examples/out/breast_cancer), anew each time. Needs scikit-learn 1.9 and no network; with an
older one, wrap the search instead of setting a callback: TrackedEstimator(search, name=..., uses=...).
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import begat
from begat_sklearn import ArtifactFitCallback, load_estimator

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/out/breast_cancer")
# What a search holds beside estimators: how it scored and how it split. Such types skops asks about.
TRUSTED = [
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.model_selection._split.StratifiedKFold",
]


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    store = begat.open_store(OUT / "store")
    data: Any = load_breast_cancer(as_frame=True)  # 569 tumours; they come with scikit-learn
    table = data.frame
    table.to_parquet(OUT / "tumours.parquet")
    with begat.start_run("collect", store=store) as run:
        run.log_artifact("tumours", OUT / "tumours.parquet", type="dataset")

    train, test = table[:400], table[400:]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.01, 0.1, 1.0]}, n_jobs=2)
    with begat.start_run("train", job="train-tumours", store=store) as run:
        search.set_callbacks(ArtifactFitCallback("tumour-model", uses=["tumours:latest"]))
        search.fit(train[data.feature_names], train["target"])  # 16 fits, and one record
        accuracy = search.score(test[data.feature_names], test["target"])
        run.log_metrics({"accuracy": accuracy})

    with begat.start_run("predict", job="predict-tumours", store=store):
        model = load_estimator("tumour-model:latest", trusted=TRUSTED)
        rows = test[data.feature_names]
        model.log_predictions(rows, test["target"], ids=rows.index, uses=["tumours:latest"])

    for artifact in store.artifacts():
        version = store.get_artifact(artifact.name)
        used = [one.ref for one in version.produced_by.inputs] if version.produced_by else []
        print(f"{version.ref:<27} made from {' and '.join(used) or 'nothing older'}")
    print(f"accuracy {accuracy:.1%}, found with {search.best_params_}")


if __name__ == "__main__":
    main()
