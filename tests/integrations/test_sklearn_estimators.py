"""What TrackedEstimator passes on to the estimator inside, and how a model is written and read."""

# scikit-learn ships no types, and what is guessed from its defaults is wrong.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import io
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
import skops.io
from sklearn.base import BaseEstimator
from sklearn.cluster import DBSCAN, KMeans
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.manifold import TSNE
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import OneClassSVM

import begat
import begat_sklearn.recording
from begat.errors import ArtifactNotFound, BadInput, BegatWarning, NotFound, Refused
from begat_sklearn import TrackedEstimator, load_estimator

X, y = load_diabetes(return_X_y=True)


@pytest.fixture
def store() -> Iterator[begat.Store]:
    """The default store, with two versions of a dataset."""
    with begat.open_store() as opened:
        opened.log_artifact("diabetes", X[:300].tobytes(), type="dataset")
        opened.log_artifact("diabetes", X.tobytes(), type="dataset")
        yield opened


class Foreign:
    """An estimator that is not scikit-learn's: no BaseEstimator, no tags."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"shift": self.shift}

    def set_params(self, **params: Any) -> "Foreign":
        self.__dict__.update(params)
        return self

    def fit(self, X: Any, y: Any, *, weight: float = 1.0) -> None:
        self.mean_ = float(np.mean(y)) * weight

    def predict(self, X: Any) -> Any:
        return np.full(len(X), self.mean_ + self.shift)


class Odd(BaseEstimator):
    """An estimator with something that skops cannot write."""

    def fit(self, X: Any, y: Any = None) -> "Odd":
        self.rows_ = (row for row in range(3))
        return self


class Meeting(BaseEstimator):
    """Of two, both are fitted at the same time, and the second ends after the first is stored."""

    both: threading.Barrier

    def __init__(self, number: int = 1) -> None:
        self.number = number

    def fit(self, X: Any, y: Any = None) -> "Meeting":
        self.both.wait()
        with begat.open_store() as store:
            while self.number == 2 and not any(run.outputs for run in store.runs()):
                time.sleep(0.01)
        return self


# --- methods that fit ---


def test_fit_transform_is_a_recorded_fit(store: begat.Store) -> None:
    scaler = TrackedEstimator(StandardScaler(), name="scaler", uses="diabetes")
    scaled = scaler.fit_transform(X)
    assert np.allclose(scaled, StandardScaler().fit_transform(X))
    assert scaler.version_ref_ == "scaler:v1"
    assert np.allclose(scaler.inverse_transform(scaled), X)


def test_a_transformer_that_can_only_fit_transform_is_recorded(store: begat.Store) -> None:
    tracked = TrackedEstimator(TSNE(2, perplexity=5, init="pca", random_state=0), name="map")
    assert tracked.fit_transform(X[:30]).shape == (30, 2)
    assert tracked.version_ref_ == "map:v1"
    assert not hasattr(tracked, "transform")


def test_fit_predict_is_a_recorded_fit(store: begat.Store) -> None:
    tracked = TrackedEstimator(DBSCAN(eps=0.1), name="groups")
    assert len(tracked.fit_predict(X)) == len(X)
    assert tracked.version_ref_ == "groups:v1"
    assert not hasattr(TrackedEstimator(Ridge()), "fit_predict")


def test_what_only_some_estimators_do_is_passed_on(store: begat.Store) -> None:
    one_class = TrackedEstimator(OneClassSVM(), name="m").fit(X)
    assert one_class.score_samples(X).shape == (len(X),)
    pixels, digits = load_digits(return_X_y=True)
    model = TrackedEstimator(LogisticRegression(max_iter=2_000), name="n").fit(pixels, digits)
    assert np.allclose(np.exp(model.predict_log_proba(pixels)), model.predict_proba(pixels))


def test_an_estimator_of_another_library_is_recorded(store: begat.Store) -> None:
    tracked = TrackedEstimator(Foreign(shift=2.0), name="m", serializer="joblib")
    tracked.fit(X, y, weight=0.5)
    assert tracked.predict(X[:2]).tolist() == [y.mean() / 2 + 2] * 2
    assert store.get_artifact("m:v1").metadata["params"] == {"shift": 2.0}


# --- piece by piece ---


def test_pieces_are_trained_without_a_record_and_the_model_is_logged_at_the_end(
    store: begat.Store,
) -> None:
    pixels, digits = load_digits(return_X_y=True)
    model = TrackedEstimator(SGDClassifier(random_state=0), name="m", uses="diabetes")
    for start in range(0, 600, 200):
        piece = slice(start, start + 200)
        model.partial_fit(pixels[piece], digits[piece], classes=range(10))
        store.log_artifact("diabetes", str(start).encode())  # latest moves on
    assert list(store.runs()) == []
    assert model.version_ref_ is None
    assert model.log_model().ref == model.version_ref_ == "m:v1"
    (run,) = store.runs()
    assert (run.job, run.status) == ("fit-m", "finished")
    assert [used.ref for used in run.inputs] == ["diabetes:v2"]
    assert (load_estimator("m").predict(pixels) == model.predict(pixels)).all()
    model.partial_fit(pixels, digits)
    assert model.version_ref_ is None
    assert model.log_model().ref == "m:v2"


def test_pieces_within_a_run_tag_it_before_the_first(store: begat.Store) -> None:
    model = TrackedEstimator(StandardScaler(), name="m", uses=["diabetes:latest"])
    with begat.start_run("mine") as run:
        model.partial_fit(X)
        assert [used.ref for used in run.inputs] == ["diabetes:v2"]
        model.log_model()
    assert [made.ref for made in run.outputs] == ["m:v1"]
    assert [edge.requested for edge in run.edges if edge.kind == "used"] == ["diabetes:latest"]


def test_a_reference_that_is_none_raises_before_the_first_piece(store: begat.Store) -> None:
    model = TrackedEstimator(StandardScaler(), uses=["diabetis"])
    with pytest.raises(ArtifactNotFound, match="diabetes"):
        model.partial_fit(X)
    assert not hasattr(model, "estimator_")


def test_a_store_that_fails_does_not_stop_the_pieces(store: begat.Store) -> None:
    model = TrackedEstimator(StandardScaler(), uses="diabetes", store="/proc/no-store-here")
    with pytest.warns(BegatWarning, match="not known"):
        model.partial_fit(X)
    with pytest.raises(begat.BegatError):
        model.log_model()


def test_only_what_trains_in_pieces_offers_it() -> None:
    assert not hasattr(TrackedEstimator(Ridge()), "partial_fit")


# --- names, containers, metadata ---


def test_names_of_columns_go_in_and_out(store: begat.Store) -> None:
    table = load_diabetes(as_frame=True).data
    scaler = TrackedEstimator(StandardScaler(), name="m").set_output(transform="pandas")
    made = scaler.fit_transform(table)
    assert isinstance(made, pd.DataFrame)
    assert list(made) == list(scaler.feature_names_in_) == list(table)
    assert list(scaler.get_feature_names_out()) == list(table)
    assert store.get_artifact("m").metadata["feature_names"] == list(table)
    scaler.set_output(transform="default")
    assert isinstance(scaler.transform(table), np.ndarray)


def test_a_tracked_step_keeps_names_in_a_pipeline(store: begat.Store) -> None:
    table = load_diabetes(as_frame=True).data
    union = FeatureUnion([("scaled", TrackedEstimator(StandardScaler(), name="scaler"))])
    steps: Any = make_pipeline(union, PCA(2)).set_output(transform="pandas")
    assert list(steps.fit_transform(table)) == ["pca0", "pca1"]
    assert steps[0].get_feature_names_out()[0] == "scaled__age"


def test_sample_weights_reach_the_estimator(store: begat.Store) -> None:
    weights = np.linspace(0, 1, len(y))
    plain = Ridge().fit(X, y, sample_weight=weights)
    tracked = TrackedEstimator(Ridge(), name="m").fit(X, y, sample_weight=weights)
    assert np.allclose(plain.coef_, tracked.coef_)
    assert tracked.score(X, y, sample_weight=weights) == plain.score(X, y, sample_weight=weights)


def test_metadata_is_routed_to_what_asks_for_it(store: begat.Store) -> None:
    weights = np.linspace(0, 1, len(y))
    plain = make_pipeline(StandardScaler(), Ridge()).fit(X, y, ridge__sample_weight=weights)
    with sklearn.config_context(enable_metadata_routing=True):
        ridge = Ridge().set_fit_request(sample_weight=True)
        ridge.set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        outside = TrackedEstimator(make_pipeline(scaler, ridge), name="m")
        outside.fit(X, y, sample_weight=weights)
        inside = make_pipeline(scaler, TrackedEstimator(ridge, name="n"))
        inside.fit(X, y, sample_weight=weights)
        for fitted in (outside, inside):
            assert np.allclose(fitted.predict(X), plain.predict(X))
            assert fitted.score(X, y, sample_weight=weights) < 1
        requests = load_estimator("m").estimator_[-1].get_metadata_routing().fit.requests
        assert requests == {"sample_weight": True}
        kept = outside.estimator_[-1]._metadata_request.owner  # as it was before it was stored
        assert type(kept) is type(ridge._metadata_request.owner)
        with pytest.raises(TypeError, match="groups"):
            outside.fit(X, y, groups=weights)


def test_a_search_inside_is_fitted_by_its_own_parameters(store: begat.Store) -> None:
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 10.0]}, cv=3)
    tracked = TrackedEstimator(search, name="m").set_params(estimator__cv=2).fit(X, y)
    assert (tracked.n_splits_, search.cv) == (2, 2)
    (run,) = store.runs()
    assert run.metrics == {"best_score": tracked.best_score_, "best_params": tracked.best_params_}


@pytest.mark.parametrize("uses", [3, [3], [X], {1: 2}])
def test_uses_that_are_no_references_are_misuse(store: begat.Store, uses: Any) -> None:
    with pytest.raises(TypeError):
        TrackedEstimator(Ridge(), uses=uses).fit(X, y)
    assert list(store.runs()) == []


def test_uses_may_be_versions(store: begat.Store) -> None:
    version = store.get_artifact("diabetes:v1")
    TrackedEstimator(Ridge(), name="m", uses=version).fit(X, y)
    TrackedEstimator(Ridge(), name="m", uses=[version, "diabetes:v2"]).fit(X, y)
    assert [[used.ref for used in run.inputs] for run in store.runs()] == [
        ["diabetes:v1", "diabetes:v2"],
        ["diabetes:v1"],
    ]


def test_data_that_begat_handed_out_is_found(store: begat.Store) -> None:
    table = store.get_artifact("diabetes:v1")
    with begat.start_run("mine") as run:
        TrackedEstimator(FunctionTransformer(), name="m").fit([str(table.path)])
    assert [(edge.is_declared, edge.is_detected) for edge in run.edges if edge.kind == "used"] == [
        (False, True)
    ]


def test_data_is_recognized_by_its_content(store: begat.Store) -> None:
    data: Any = load_diabetes(as_frame=True)
    store.get_artifact("diabetes:v1").recognize(data.data)
    TrackedEstimator(Ridge(), name="m").fit(data.data.copy(), data.target)
    changed = data.data.copy()
    changed.iloc[-1, -1] += 1
    TrackedEstimator(Ridge(), name="m").fit(changed, data.target)
    after, before = store.runs()
    assert [used.ref for used in before.inputs] == ["diabetes:v1"]
    assert after.inputs == ()


# --- files ---


def test_a_model_can_be_written_by_joblib_and_is_read_only_by_those_who_say_so(
    store: begat.Store,
) -> None:
    fitted = TrackedEstimator(KMeans(2, n_init=1, random_state=0), name="m", serializer="joblib")
    fitted.fit(X)
    version = store.get_artifact("m")
    assert [entry.path for entry in version.entries] == ["model.joblib"]
    assert version.metadata["joblib"] == joblib.__version__
    with pytest.raises(Refused, match=r"pickle.*allow_pickle=True"):
        load_estimator("m")
    with pytest.raises(Refused):
        load_estimator("m", trusted=["sklearn.cluster._kmeans.KMeans"])
    read = load_estimator("m", allow_pickle=True)
    assert (read.predict(X) == fitted.predict(X)).all()
    assert read.serializer == "joblib"


def test_a_refused_pickle_has_not_run(store: begat.Store, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    joblib.dump(Trap(), tmp_path / "model.joblib")
    store.log_artifact("m", tmp_path / "model.joblib", type="model")
    with pytest.raises(Refused):
        load_estimator("m")
    assert not (tmp_path / "sprung").exists()
    load_estimator("m", allow_pickle=True)
    assert (tmp_path / "sprung").exists()


def test_a_call_that_a_skops_file_hides_among_its_values_is_refused(
    store: begat.Store, tmp_path: Path
) -> None:
    honest = zipfile.ZipFile(io.BytesIO(skops.io.dumps(np.random.default_rng(0))))
    with zipfile.ZipFile(tmp_path / "model.skops", "w") as forged:
        for name in honest.namelist():
            forged.writestr(name, honest.read(name).replace(b"PCG64", b"seed"))
    store.log_artifact("m", tmp_path / "model.skops", type="model")
    before = np.random.get_state(legacy=False)
    with pytest.raises(Refused, match=r"numpy\.random\.seed"):
        load_estimator("m")
    assert str(np.random.get_state(legacy=False)) == str(before)


def test_equal_fits_written_by_joblib_are_one_version(store: begat.Store) -> None:
    for _ in range(2):
        tracked = TrackedEstimator(Ridge(), name="m", serializer="joblib").fit(X, y)
        assert tracked.version_ref_ == "m:v1"


def test_what_skops_cannot_write_is_fitted_and_said_with_what_to_do(store: begat.Store) -> None:
    tracked = TrackedEstimator(Odd(), name="odd")
    with pytest.warns(BegatWarning, match="serializer='joblib'"):
        tracked.fit(X)
    assert "serializer='joblib'" in str(store.runs()[0].params["begat.not_logged"])
    assert (tracked.version_ref_, store.runs()[0].status) == (None, "failed")
    with pytest.raises(BadInput, match="generator"):
        TrackedEstimator(Odd(), name="odd", on_error="raise").fit(X)
    assert begat.active_run() is None


def test_a_lambda_that_could_not_be_loaded_is_said_when_the_model_is_stored(
    store: begat.Store,
) -> None:
    tracked = TrackedEstimator(FunctionTransformer(lambda rows: rows), name="odd")
    with pytest.warns(BegatWarning, match="holds a lambda") as said:
        tracked.fit(X)
    assert "joblib" not in str(said[0].message)
    assert (tracked.version_ref_, store.runs()[0].status) == (None, "failed")
    assert np.array_equal(tracked.transform(X), X)


def test_a_class_in_the_place_of_an_estimator_is_misuse(store: begat.Store) -> None:
    with pytest.raises(TypeError, match=r"TrackedEstimator\(Ridge\(\)\)"):
        TrackedEstimator(Ridge).fit(X, y)
    assert list(store.runs()) == []


def test_a_version_that_holds_no_model_is_not_found(store: begat.Store) -> None:
    with pytest.raises(NotFound, match=r"model\.skops"):
        load_estimator("diabetes")


def test_another_serializer_is_misuse(store: begat.Store) -> None:
    with pytest.raises(TypeError, match="joblib"):
        TrackedEstimator(Ridge(), serializer="dill").fit(X, y)
    assert list(store.runs()) == []


# --- copies and processes ---


def test_a_pickled_wrapper_holds_no_handles_and_goes_on_elsewhere(
    store: begat.Store, tmp_path: Path
) -> None:
    tracked = TrackedEstimator(Ridge(), name="m", uses="diabetes").fit(X, y)
    names = {name for name in pickle.dumps(tracked).decode("latin1").split() if "begat" in name}
    assert "begat.recording.recorder" not in " ".join(names)
    joblib.dump(tracked, tmp_path / "model.joblib")
    story = textwrap.dedent(f"""
        import joblib
        from sklearn.datasets import load_diabetes
        X, y = load_diabetes(return_X_y=True)
        model = joblib.load({str(tmp_path / "model.joblib")!r})
        print(model.version_ref_, model.fit(X[:99], y[:99]).version_ref_)
    """)
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("m:v1 m:v2\n", "")


def test_fits_in_worker_processes_are_not_recorded(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begat_sklearn.recording, "_told", set[str]())
    tracked = TrackedEstimator(Ridge(), name="m")
    fitted: Any = joblib.Parallel(2)(joblib.delayed(tracked.fit)(X, y) for _ in range(2))
    assert [one.version_ref_ for one in fitted] == [None, None]
    assert list(store.runs()) == []


def test_fits_in_threads_are_all_kept_and_their_runs_end_after_them(store: begat.Store) -> None:
    Meeting.both = threading.Barrier(2, timeout=60)

    def fit(number: int) -> str | None:
        tracked = TrackedEstimator(Meeting(number), name=f"m{number}", on_error="raise")
        return tracked.fit(X).version_ref_

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(fit, (1, 2))) == ["m1:v1", "m2:v1"]
    assert {run.status for run in store.runs()} == {"finished"}
    assert begat.active_run() is None


def test_real_classes_are_told_apart(store: begat.Store) -> None:
    rows, labels = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    tracked = TrackedEstimator(model, name="cancer").fit(rows[:400], labels[:400])
    assert load_estimator("cancer").score(rows[400:], labels[400:]) > 0.95
    assert tracked.classes_.tolist() == store.get_artifact("cancer").metadata["classes"] == [0, 1]
