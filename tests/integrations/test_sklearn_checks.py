"""scikit-learn's own checks of an estimator, on a TrackedEstimator."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from typing import Any

import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import begat
from begat_sklearn import TrackedEstimator

# What the checks provoke on purpose is warned of, by scikit-learn and by begat of the clones that they fit.
pytestmark = pytest.mark.filterwarnings("ignore")

# By the name of a check, why it fails. None does. Checks that a check skips by itself are not failures: those of the
# array API, which wants packages that begat does not need, and those of sample weights, which look for the literal
# argument `sample_weight` and find `**fit_params`.
EXPECTED: dict[str, str] = {}


def failed_checks(estimator: Any) -> list[str]:
    results = check_estimator(
        TrackedEstimator(estimator, name="m"),
        expected_failed_checks=EXPECTED,
        on_fail=None,
        on_skip=None,
    )
    assert sum(result["status"] == "passed" for result in results) > 40
    return [
        f"{result['check_name']}: {result['exception']}"
        for result in results
        if result["status"] == "failed"
    ]


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        Ridge(),
        StandardScaler(),
        RandomForestClassifier(5, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_a_tracked_estimator_passes_the_checks(estimator: Any) -> None:
    assert failed_checks(estimator) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [Ridge(), StandardScaler()], ids=lambda estimator: type(estimator).__name__
)
def test_it_passes_them_when_every_fit_is_recorded(
    estimator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The checks fit clones, of which none is recorded; here each is.
    monkeypatch.delattr(TrackedEstimator, "__sklearn_clone__")
    assert failed_checks(estimator) == []
    with begat.open_store() as store:
        assert len(list(store.runs())) > 50
        assert len(list(store.versions("m"))) > 10
