"""ArtifactFitCallback on real fits: what the store holds afterwards, and what scikit-learn does around it."""

# scikit-learn ships no types, and what is guessed from its defaults is wrong.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import importlib.util
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import begat
import begat_sklearn.callback
import begat_sklearn.recording
from begat.errors import ArtifactNotFound, BegatWarning, MissingExtra, TypeMismatch
from begat_sklearn import ArtifactFitCallback, TrackedEstimator, load_estimator

X, y = (part[:240] for part in load_breast_cancer(return_X_y=True))

HAS_CALLBACKS = importlib.util.find_spec("sklearn.callback") is not None
needs_callbacks = pytest.mark.skipif(
    not HAS_CALLBACKS, reason="scikit-learn before 1.9 has no callbacks; what it says is tested"
)


@pytest.fixture
def store() -> Iterator[begat.Store]:
    """The default store, with the dataset."""
    with begat.open_store() as opened:
        opened.log_artifact("cancer", X.tobytes() + y.tobytes(), type="dataset")
        yield opened


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is warned of once in a process was not warned of by another test."""
    monkeypatch.setattr(begat_sklearn.recording, "_told", set[str]())


class Failing(ClassifierMixin, BaseEstimator):
    """A last step that fails as it is told to."""

    def __init__(self, error: Any = None) -> None:
        self.error = error

    def fit(self, X: Any, y: Any) -> "Failing":
        if self.error is not None:
            raise self.error
        self.classes_ = np.unique(y)
        return self


def pipeline() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression())


def search(n_jobs: int = 1, **kwargs: Any) -> GridSearchCV:
    grid = {"logisticregression__C": [0.1, 1.0]}
    return GridSearchCV(pipeline(), grid, cv=2, n_jobs=n_jobs, **kwargs)


def outcomes(store: begat.Store) -> list[tuple[str, list[str], list[str]]]:
    """Of each run, oldest first: status, inputs and outputs."""
    return [
        (run.status, [used.ref for used in run.inputs], [made.ref for made in run.outputs])
        for run in reversed(list(store.runs()))
    ]


# --- what a fit records ---


@needs_callbacks
def test_a_fit_becomes_a_version_made_from_its_data(store: begat.Store) -> None:
    callback = ArtifactFitCallback("m", uses=["cancer:latest"])
    model = pipeline().set_callbacks(callback)
    assert model.fit(X, y) is model
    assert callback.version_ref == "m:v1"
    assert outcomes(store) == [("finished", ["cancer:v1"], ["m:v1"])]
    assert store.runs()[0].job == "fit-m"
    assert (load_estimator("m:v1").predict(X) == model.predict(X)).all()


@needs_callbacks
@pytest.mark.parametrize("estimator", [LogisticRegression(max_iter=5_000), StandardScaler()])
def test_callback_and_wrapper_record_the_same(store: begat.Store, estimator: Any) -> None:
    TrackedEstimator(estimator, name="m", uses="cancer").fit(X, y)
    callback = ArtifactFitCallback("m", uses="cancer")
    clone(estimator).set_callbacks(callback).fit(X, y)
    assert callback.version_ref == "m:v1"
    assert len(store.get_artifact("m:v1").confirmed_by) == 1
    second, first = store.runs()
    assert (first.job, first.params, first.metrics) == (second.job, second.params, second.metrics)


@needs_callbacks
def test_the_callbacks_of_an_estimator_are_no_part_of_the_model(store: begat.Store) -> None:
    inner = StandardScaler().set_callbacks(ArtifactFitCallback("inner"))
    callback = ArtifactFitCallback("m")
    model = make_pipeline(inner, LogisticRegression()).set_callbacks(callback).fit(X, y)
    assert load_estimator("m").score(X, y) == model.score(X, y)
    assert not hasattr(load_estimator("m").estimator_, "_skl_callbacks")
    assert model._skl_callbacks == [callback]
    assert model[0]._skl_callbacks[0].name == "inner"


@needs_callbacks
def test_without_a_name_the_model_is_called_like_the_estimator(store: begat.Store) -> None:
    StandardScaler().set_callbacks(ArtifactFitCallback()).fit(X)
    assert [one.name for one in store.artifacts(type="model")] == ["standard-scaler"]


@needs_callbacks
def test_a_second_fit_is_a_record_of_its_own(store: begat.Store) -> None:
    model = pipeline().set_callbacks(ArtifactFitCallback("m"))
    model.fit(X, y)
    model.fit(X[:100], y[:100])
    assert outcomes(store) == [("finished", [], ["m:v1"]), ("finished", [], ["m:v2"])]


@needs_callbacks
def test_a_fit_joins_the_active_run(store: begat.Store) -> None:
    with begat.start_run("mine", params={"C": "mine"}) as run:
        LogisticRegression(max_iter=5_000).set_callbacks(
            ArtifactFitCallback("m", uses="cancer")
        ).fit(X, y)
        assert run.status == "running"
    assert outcomes(store) == [("finished", ["cancer:v1"], ["m:v1"])]
    assert (run.params["C"], run.params["m.C"]) == ("mine", 1.0)


# --- one record for each outermost fit ---


@needs_callbacks
def test_of_two_callbacks_the_first_records_and_the_user_is_told(store: begat.Store) -> None:
    first, second = ArtifactFitCallback("one"), ArtifactFitCallback("two")
    model = pipeline().set_callbacks(first, second)
    with pytest.warns(BegatWarning, match="by one ArtifactFitCallback") as said:
        model.fit(X, y)
    assert len(said) == 1
    assert (first.version_ref, second.version_ref) == ("one:v1", None)
    assert outcomes(store) == [("finished", [], ["one:v1"])]
    assert begat_sklearn.callback._recorded == set()


@needs_callbacks
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_is_one_record(store: begat.Store, n_jobs: int) -> None:
    callback = ArtifactFitCallback("m", uses="cancer")
    model = search(n_jobs).set_callbacks(callback).fit(X, y)
    assert outcomes(store) == [("finished", ["cancer:v1"], ["m:v1"])]
    metrics = store.runs()[0].metrics
    assert metrics["best_score"] == model.best_score_
    assert metrics["best_params"] == model.best_params_


@needs_callbacks
@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_parts_of_larger_fits_are_not_recorded_and_said_once(
    store: begat.Store, n_jobs: int, backend: str
) -> None:
    scaled = StandardScaler().fit_transform(X)
    part = LogisticRegression().set_callbacks(ArtifactFitCallback("part"))

    def fit_all() -> None:
        make_pipeline(StandardScaler(), part).fit(X, y)
        cross_val_score(part, scaled, y, cv=2, n_jobs=n_jobs)
        VotingClassifier([("a", part), ("b", part)], n_jobs=n_jobs).fit(scaled, y)
        GridSearchCV(part, {"C": [1, 2]}, cv=2, n_jobs=n_jobs).fit(scaled, y)

    with joblib.parallel_config(backend), pytest.warns(BegatWarning, match="outermost") as told:
        fit_all()
    assert len([one for one in told if issubclass(one.category, BegatWarning)]) == 1
    assert told[0].filename == __file__
    assert list(store.runs()) == []


@needs_callbacks
def test_what_is_inside_of_a_recorded_fit_is_part_of_it(store: begat.Store) -> None:
    part = LogisticRegression().set_callbacks(ArtifactFitCallback("part"))
    TrackedEstimator(make_pipeline(StandardScaler(), part), name="m").fit(X, y)
    outer = make_pipeline(TrackedEstimator(StandardScaler()), LogisticRegression())
    outer.set_callbacks(ArtifactFitCallback("n")).fit(X, y)
    assert [made for _, _, made in outcomes(store)] == [["m:v1"], ["n:v1"]]


@needs_callbacks
def test_copies_in_worker_processes_record_nothing(store: begat.Store) -> None:
    model = pipeline().set_callbacks(ArtifactFitCallback("m"))
    fitted: Any = joblib.Parallel(2)(joblib.delayed(model.fit)(X, y) for _ in range(2))
    assert fitted[0].score(X, y) > 0.9
    assert list(store.runs()) == []


@needs_callbacks
def test_a_clone_shares_the_callback_and_is_recorded(store: begat.Store) -> None:
    callback = ArtifactFitCallback("m")
    clone(pipeline().set_callbacks(callback)).fit(X, y)
    assert callback.version_ref == "m:v1"


# --- how a fit can end ---


@needs_callbacks
@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError("no"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_fit_that_is_cut_short_says_so(store: begat.Store, error: Any, status: str) -> None:
    callback = ArtifactFitCallback("m", uses="cancer")
    model = make_pipeline(StandardScaler(), Failing(error)).set_callbacks(callback)
    with pytest.raises(type(error)):
        model.fit(X, y)
    assert outcomes(store) == [(status, ["cancer:v1"], [])]
    assert callback.version_ref is None
    assert begat.active_run() is None
    model.set_params(failing__error=None).fit(X, y)
    assert [end for end, _, _ in outcomes(store)] == [status, "finished"]


@needs_callbacks
def test_data_that_cannot_be_fitted_is_a_failed_run(store: begat.Store) -> None:
    spoiled = X.copy()
    spoiled[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        pipeline().set_callbacks(ArtifactFitCallback("m")).fit(spoiled, y)
    assert [end for end, _, _ in outcomes(store)] == ["failed"]


@needs_callbacks
def test_a_fit_that_goes_well_while_another_error_is_handled_is_finished(
    store: begat.Store,
) -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        pipeline().set_callbacks(ArtifactFitCallback("m")).fit(X, y)
    assert outcomes(store) == [("finished", [], ["m:v1"])]


@needs_callbacks
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_reference_that_is_none_raises_before_fitting(store: begat.Store, on_error: Any) -> None:
    callback = ArtifactFitCallback("m", uses=["canser"], on_error=on_error)
    model = make_pipeline(Failing(AssertionError("it was fitted"))).set_callbacks(callback)
    with pytest.raises(ArtifactNotFound, match="cancer"):
        model.fit(X, y)
    assert outcomes(store) == []
    assert begat.active_run() is None


@needs_callbacks
def test_a_store_that_fails_costs_the_record_and_not_the_fit(store: begat.Store) -> None:
    gone = ArtifactFitCallback("m", store="/proc/no-store-here")
    with pytest.warns(BegatWarning, match="not recorded"):
        assert pipeline().set_callbacks(gone).fit(X, y).score(X, y) > 0.9
    assert gone.version_ref is None
    mistaken = ArtifactFitCallback("cancer")  # a name of another type
    with pytest.warns(BegatWarning, match="dataset"):
        pipeline().set_callbacks(mistaken).fit(X, y)
    assert outcomes(store) == [("failed", [], [])]


@needs_callbacks
def test_on_error_raise_makes_a_failing_store_an_error(store: begat.Store) -> None:
    for callback, error in (
        (ArtifactFitCallback("m", store="/proc/no-store-here", on_error="raise"), begat.BegatError),
        (ArtifactFitCallback("cancer", on_error="raise"), TypeMismatch),
    ):
        with pytest.raises(error):
            pipeline().set_callbacks(callback).fit(X, y)
    assert begat.active_run() is None


# --- copies ---


@needs_callbacks
def test_a_fitted_estimator_with_its_callback_survives_pickling(
    store: begat.Store, tmp_path: Path
) -> None:
    model = pipeline().set_callbacks(ArtifactFitCallback("m", uses="cancer")).fit(X, y)
    joblib.dump(model, tmp_path / "model.joblib")
    for copied in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
        assert copied._skl_callbacks[0].version_ref == "m:v1"
        copied.fit(X[:100], y[:100])
        assert copied._skl_callbacks[0].version_ref == "m:v2"
    story = textwrap.dedent(f"""
        import joblib
        from sklearn.datasets import load_breast_cancer
        X, y = load_breast_cancer(return_X_y=True)
        model = joblib.load({str(tmp_path / "model.joblib")!r})
        print(model.fit(X, y)._skl_callbacks[0].version_ref)
    """)
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("m:v3\n", "")


@needs_callbacks
def test_it_stands_beside_other_callbacks(store: begat.Store) -> None:
    from sklearn.callback import ScoringMonitor

    monitor, callback = ScoringMonitor(scoring="accuracy"), ArtifactFitCallback("digits-model")
    pixels, digits = (part[:300] for part in load_digits(return_X_y=True))
    model = LogisticRegression(max_iter=40).set_callbacks(monitor, callback)
    with pytest.warns(match="converge"):
        model.fit(pixels, digits)
    assert callback.version_ref == "digits-model:v1"
    assert len(monitor.get_logs(select="all")) == 1


# --- misuse ---


def test_a_missing_callback_api_is_told_of_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"1\.9.*TrackedEstimator"):
        ArtifactFitCallback("m")


@needs_callbacks
def test_an_estimator_that_takes_no_callbacks_is_told_of_with_what_to_do() -> None:
    callback = ArtifactFitCallback("m")
    with pytest.raises(TypeError, match=r"TrackedEstimator\(RandomForestClassifier"):
        callback.set_on(RandomForestClassifier())
    model = LogisticRegression()
    assert callback.set_on(model) is model
    assert model._skl_callbacks == [callback]


@needs_callbacks
@pytest.mark.parametrize("options", [{"uses": X}, {"uses": 3}, {"serializer": "dill"}])
def test_options_that_are_none_are_misuse(options: Any) -> None:
    with pytest.raises(TypeError):
        ArtifactFitCallback("m", **options)
