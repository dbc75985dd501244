"""scikit-learn with begat: fits that record what they used and keep what they made.

model = TrackedEstimator(LogisticRegression(), name="digits-model", uses=["digits:latest"]).fit(X, y)
model.log_predictions(X_test, y_test)
again = load_estimator("digits-model:latest")

pipeline.set_callbacks(ArtifactFitCallback("digits-model", uses=["digits:latest"]))  # scikit-learn 1.9
"""

from begat.errors import MissingExtra

try:
    from begat_sklearn.callback import ArtifactFitCallback
    from begat_sklearn.loading import load_estimator
    from begat_sklearn.tracked import TrackedEstimator
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {
        "joblib",
        "numpy",
        "pyarrow",
        "sklearn",
        "skops",
    }:
        raise
    raise MissingExtra(
        f'begat_sklearn needs {error.name}, which is not installed: pip install "begat[sklearn]"'
    ) from error

__all__ = ["ArtifactFitCallback", "TrackedEstimator", "load_estimator"]
