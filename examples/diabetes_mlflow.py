"""MLflow code as it is, with begat as the place where its artifacts lie: real data, two fits, one model outdated.

python examples/diabetes_mlflow.py [FOLDER]       (needs: pip install "begat[mlflow,sklearn]")
"""

# mlflow and scikit-learn ship no types that pyright can follow.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

import os
import sys
from pathlib import Path

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "examples/out/diabetes-mlflow").resolve()
folder.mkdir(parents=True, exist_ok=True)
os.environ["BEGAT_STORE"] = str(folder / "store")
os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"

import mlflow  # noqa: E402
from sklearn.datasets import load_diabetes  # noqa: E402
from sklearn.linear_model import Ridge  # noqa: E402

import begat  # noqa: E402
from begat_mlflow import log_input  # noqa: E402

if mlflow.get_experiment_by_name("diabetes") is None:
    mlflow.create_experiment("diabetes", artifact_location="begat://diabetes/mlflow")
mlflow.set_experiment("diabetes")


def train(rows: int) -> None:
    """One training as MLflow users write it; the `begat` lines say what it reads."""
    features, target = load_diabetes(return_X_y=True)
    begat.log_artifact("diabetes", features[:rows].tobytes(), type="dataset")
    with begat.start_run("train", job="train-diabetes"), mlflow.start_run():
        log_input("diabetes:latest", context="training")
        model = Ridge(alpha=0.1).fit(features[:rows], target[:rows])
        mlflow.log_metric("r2", float(model.score(features[:rows], target[:rows])))
        mlflow.sklearn.log_model(model, name="ridge", pip_requirements=["scikit-learn"])


train(rows=300)
train(rows=442)

store = begat.default_store()
print(f"{len(store.artifacts(type='model'))} models, {len(store.versions('diabetes'))} datasets")
for outdated in store.stale():
    print("stale:", outdated.reason.replace("/mlflow/models/", "/.../"))
