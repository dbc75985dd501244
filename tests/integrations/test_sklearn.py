"""TrackedEstimator on real fits, and what the store holds afterwards."""

# scikit-learn ships no types, and what is guessed from its defaults is wrong.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import copy
import io
import pickle
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier, is_regressor
from sklearn.cluster import KMeans
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

import begat
import begat_sklearn.recording
from begat.errors import ArtifactNotFound, BadReference, BegatWarning, Refused
from begat_sklearn import TrackedEstimator, load_estimator

X, y = make_classification(n_samples=120, n_features=6, random_state=0)


@pytest.fixture
def store() -> Iterator[begat.Store]:
    """The default store, with two versions of a dataset."""
    with begat.open_store() as opened:
        opened.log_artifact("flowers", b"one", type="dataset")
        opened.log_artifact("flowers", b"two", type="dataset")
        yield opened


class Exploding(ClassifierMixin, BaseEstimator):
    """Raises in fit what it is told to."""

    def __init__(self, error: Any = None) -> None:
        self.error = error

    def fit(self, X: Any, y: Any) -> None:
        raise self.error


class Watching(ClassifierMixin, BaseEstimator):
    """Notes which inputs the active run has while it is fitted."""

    seen: list[tuple[str, ...]] = []  # noqa: RUF012 - of the class: fit runs on a clone

    def fit(self, X: Any, y: Any) -> "Watching":
        run = begat.active_run()
        assert run is not None
        self.seen.append(tuple(version.ref for version in run.inputs))
        self.classes_ = np.unique(y)
        return self


def pipeline() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression())


def search(estimator: Any, n_jobs: int, grid: str) -> GridSearchCV:
    return GridSearchCV(estimator, {grid: [0.1, 1.0]}, cv=2, n_jobs=n_jobs)


def models(store: begat.Store) -> list[str]:
    return [
        version.ref
        for artifact in store.artifacts(type="model")
        for version in store.versions(artifact.name)
    ]


# --- what a fit records ---


def test_a_fitted_pipeline_becomes_a_version_made_from_its_data(store: begat.Store) -> None:
    model = TrackedEstimator(pipeline(), name="irises", uses=["flowers:latest"]).fit(X, y)
    assert model.version_ref_ == "irises:v1"
    version = store.get_artifact("irises:v1")
    assert version.type == "model"
    assert [entry.path for entry in version.entries] == ["model.skops"]
    run = version.produced_by
    assert run is not None
    assert (run.job, run.status) == ("fit-irises", "finished")
    assert [used.ref for used in run.inputs] == ["flowers:v2"]
    assert [edge.requested for edge in run.edges if edge.kind == "used"] == ["flowers:latest"]


def test_the_metadata_says_what_was_fitted_and_with_what(store: begat.Store) -> None:
    TrackedEstimator(LogisticRegression(C=0.5), name="irises").fit(X, y)
    metadata = store.get_artifact("irises").metadata
    assert metadata["estimator"] == "sklearn.linear_model._logistic.LogisticRegression"
    assert metadata["params"]["C"] == 0.5
    assert metadata["n_features"] == 6
    assert metadata["classes"] == [0, 1]
    assert set(metadata) >= {"scikit_learn", "skops"}
    params = dict(store.runs()[0].params)
    assert params.pop("begat.data")  # what the fit read, by content
    assert params == metadata["params"]


def test_parameters_that_are_not_json_are_named_by_their_kind(store: begat.Store) -> None:
    def kernel(a: Any, b: Any) -> Any:
        return a @ b.T

    TrackedEstimator(SVC(kernel=kernel, tol=np.float64(0.01)), name="m").fit(X, y)
    params = store.get_artifact("m").metadata["params"]
    assert params["kernel"].endswith("kernel")
    assert "0x" not in params["kernel"]
    assert params["tol"] == 0.01


def test_parameters_without_a_number_are_text(store: begat.Store) -> None:
    TrackedEstimator(SimpleImputer(), name="m").fit(X)
    assert store.get_artifact("m").metadata["params"]["missing_values"] == "nan"


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        (LogisticRegression(), "logistic-regression"),
        (SVC(), "svc"),
        (search(LogisticRegression(), 1, "C"), "grid-search-cv"),
        (KMeans(2, n_init=1), "k-means"),
    ],
)
def test_a_model_without_a_name_is_called_like_its_class(
    store: begat.Store, estimator: Any, name: str
) -> None:
    assert TrackedEstimator(estimator).fit(X, y).version_ref_ == f"{name}:v1"


def test_inputs_are_recorded_before_fitting_begins(store: begat.Store) -> None:
    Watching.seen.clear()
    TrackedEstimator(Watching(), uses=["flowers:v1", "flowers"]).fit(X, y)
    assert Watching.seen == [("flowers:v1", "flowers:v2")]


def test_uses_may_be_one_text(store: begat.Store) -> None:
    TrackedEstimator(LogisticRegression(), name="m", uses="flowers").fit(X, y)
    assert [used.ref for used in store.runs()[0].inputs] == ["flowers:v2"]


def test_a_fit_joins_the_active_run_and_leaves_its_end_to_it(store: begat.Store) -> None:
    with begat.start_run("mine") as run:
        TrackedEstimator(LogisticRegression(), name="m", uses="flowers").fit(X, y)
        assert run.status == "running"
    assert [run.name for run in store.runs()] == ["mine"]
    assert [version.ref for version in run.inputs] == ["flowers:v2"]
    assert [version.ref for version in run.outputs] == ["m:v1"]


def test_a_store_of_its_own_is_used_when_no_run_is_active(
    store: begat.Store, tmp_path: Path
) -> None:
    model = TrackedEstimator(LogisticRegression(), name="m", store=str(tmp_path / "other"))
    model.fit(X, y)
    model.log_predictions(X, y)
    assert models(store) == []
    with begat.open_store(tmp_path / "other") as other:
        assert [one.name for one in other.artifacts()] == ["m", "m-predictions"]
    assert load_estimator("m", store=tmp_path / "other").version_ref_ == "m:v1"


# --- equal fits ---


def test_an_equal_fit_confirms_the_version_that_is_there(store: begat.Store) -> None:
    first = TrackedEstimator(pipeline(), name="m", uses="flowers:v1").fit(X, y)
    again = TrackedEstimator(pipeline(), name="m", uses="flowers:v2").fit(X, y)
    assert first.version_ref_ == again.version_ref_ == "m:v1"
    assert len(store.get_artifact("m").confirmed_by) == 1


def test_another_fit_of_the_same_object_makes_the_next_version(store: begat.Store) -> None:
    model = TrackedEstimator(pipeline(), name="m").fit(X, y)
    assert model.fit(X[:80], y[:80]).version_ref_ == "m:v2"
    assert len(store.runs()) == 2


def test_equal_fits_of_two_processes_give_equal_bytes(store: begat.Store) -> None:
    story = textwrap.dedent("""
        from sklearn.datasets import make_classification
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        import begat
        from begat_sklearn import TrackedEstimator
        X, y = make_classification(n_samples=120, n_features=6, random_state=0)
        trees = RandomForestClassifier(5, random_state=0)
        TrackedEstimator(make_pipeline(StandardScaler(), trees), name="m").fit(X, y)
        print(begat.get_artifact("m:latest").ref)
    """)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("m:v1\n", "")


# --- how a fit can end ---


def test_a_fit_that_fails_is_a_failed_run_without_a_version(store: begat.Store) -> None:
    with pytest.raises(ZeroDivisionError):
        TrackedEstimator(Exploding(ZeroDivisionError("no")), uses="flowers").fit(X, y)
    (run,) = store.runs()
    assert run.status == "failed"
    assert run.error == {"type": "ZeroDivisionError", "message": "no"}
    assert [used.ref for used in run.inputs] == ["flowers:v2"]
    assert models(store) == []
    assert begat.active_run() is None


def test_an_interrupted_fit_is_an_interrupted_run(store: begat.Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        TrackedEstimator(Exploding(KeyboardInterrupt())).fit(X, y)
    assert store.runs()[0].status == "interrupted"
    TrackedEstimator(LogisticRegression(), name="m").fit(X, y)
    assert models(store) == ["m:v1"]


@pytest.mark.parametrize(
    ("ref", "error"),
    [("nothing:latest", ArtifactNotFound), ("flowers:not an alias", BadReference)],
)
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_a_reference_that_is_none_raises_before_fitting(
    store: begat.Store, ref: str, error: type[Exception], on_error: Any
) -> None:
    model = TrackedEstimator(
        Exploding(AssertionError("it was fitted")), uses=[ref], on_error=on_error
    )
    with pytest.raises(error):
        model.fit(X, y)
    assert store.runs() == []


def test_a_store_that_cannot_be_written_costs_the_record_and_not_the_fit(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TrackedEstimator(LogisticRegression(), name="m", store="/proc/no-store-here")
    with pytest.warns(BegatWarning, match="not recorded"):
        model.fit(X, y)
    assert model.version_ref_ is None
    assert model.score(X, y) > 0.5
    with pytest.raises(Refused):
        model.log_predictions(X, y)


def test_on_error_raise_makes_a_failing_store_an_error(store: begat.Store) -> None:
    model = TrackedEstimator(
        LogisticRegression(), name="m", store="/proc/no-store-here", on_error="raise"
    )
    with pytest.raises(begat.BegatError):
        model.fit(X, y)


def test_a_model_that_cannot_be_written_is_fitted_all_the_same(store: begat.Store) -> None:
    store.log_artifact("m", b"x", type="dataset")
    model = TrackedEstimator(LogisticRegression(), name="m")
    with pytest.warns(BegatWarning, match="dataset"):  # the name has another type
        model.fit(X, y)
    assert model.score(X, y) > 0.5
    assert store.runs()[0].status == "failed"
    with pytest.raises(begat.BegatError):
        TrackedEstimator(LogisticRegression(), name="m", on_error="raise").fit(X, y)


# --- searches, clones, workers ---


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_wrapped_from_outside_makes_one_version(store: begat.Store, n_jobs: int) -> None:
    grid = search(pipeline(), n_jobs, "logisticregression__C")
    model = TrackedEstimator(grid, name="m", uses="flowers").fit(X, y)
    assert models(store) == ["m:v1"]
    assert len(store.runs()) == 1
    assert store.get_artifact("m").metadata["best_params"] == model.best_params_


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_search_over_a_tracked_estimator_records_nothing_and_says_so_once(
    store: begat.Store, n_jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begat_sklearn.recording, "_told", set())
    tracked = TrackedEstimator(LogisticRegression(), name="m", uses="flowers")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        search(tracked, n_jobs, "estimator__C").fit(X, y)
    told = [one for one in told if issubclass(one.category, BegatWarning)]
    assert 1 <= len(told) <= n_jobs + 1  # each worker process says it once
    assert "from outside" in str(told[0].message)
    assert models(store) == []
    assert store.runs() == []


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_tracked_parts_of_a_tracked_estimator_make_no_versions_of_their_own(
    store: begat.Store, n_jobs: int
) -> None:
    parts = [("a", TrackedEstimator(LogisticRegression())), ("b", TrackedEstimator(SVC()))]
    TrackedEstimator(VotingClassifier(parts, n_jobs=n_jobs), name="m").fit(X, y)
    assert models(store) == ["m:v1"]


def test_cross_validation_records_nothing(
    store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begat_sklearn.recording, "_told", set())
    with pytest.warns(BegatWarning, match="not recorded"):
        scores = cross_val_score(TrackedEstimator(LogisticRegression()), X, y, cv=2)
    assert len(scores) == 2
    assert store.runs() == []


def test_the_estimator_that_was_given_stays_as_it_was(store: begat.Store) -> None:
    given = LogisticRegression()
    TrackedEstimator(given).fit(X, y)
    assert not hasattr(given, "coef_")


# --- scikit-learn's habits ---


def test_a_clone_has_the_same_parameters_and_is_not_fitted(store: begat.Store) -> None:
    tracked = TrackedEstimator(SVC(C=3), name="m", uses=["flowers"], on_error="raise").fit(X, y)
    twin = clone(tracked)
    mine, its = tracked.get_params(), twin.get_params()
    assert {**its, "estimator": None} == {**mine, "estimator": None}
    assert its["estimator__C"] == 3
    assert not hasattr(twin, "estimator_")
    with pytest.raises(NotFittedError):
        twin.predict(X)


def test_parameters_of_the_estimator_are_set_through_it() -> None:
    assert TrackedEstimator(SVC()).set_params(estimator__C=7).estimator.C == 7


@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy])
def test_a_copy_predicts_the_same_and_knows_its_version(store: begat.Store, copied: Any) -> None:
    tracked = TrackedEstimator(pipeline(), name="m").fit(X, y)
    other = copied(tracked)
    assert other.version_ref_ == "m:v1"
    assert (other.predict(X) == tracked.predict(X)).all()
    assert other.fit(X[:60], y[:60]).version_ref_ == "m:v2"


def test_only_what_the_estimator_can_do_is_offered() -> None:
    assert hasattr(TrackedEstimator(LogisticRegression()), "predict_proba")
    assert not hasattr(TrackedEstimator(LinearRegression()), "predict_proba")
    assert hasattr(TrackedEstimator(StandardScaler()), "transform")
    assert not hasattr(TrackedEstimator(StandardScaler()), "predict")


def test_a_tracked_transformer_works_in_a_pipeline(store: begat.Store) -> None:
    steps = make_pipeline(TrackedEstimator(StandardScaler(), name="scaler"), LogisticRegression())
    assert steps.fit(X, y).score(X, y) > 0.5
    assert models(store) == ["scaler:v1"]


def test_it_is_of_the_kind_that_the_estimator_is(store: begat.Store) -> None:
    assert is_classifier(TrackedEstimator(SVC()))
    assert is_regressor(TrackedEstimator(LinearRegression()))
    fitted = TrackedEstimator(LogisticRegression(), name="m").fit(X, y)
    assert list(fitted.classes_) == [0, 1]
    assert fitted.n_features_in_ == 6
    assert fitted.decision_function(X).shape == (120,)


# --- reading back ---


def test_a_model_that_is_read_back_predicts_the_same(store: begat.Store) -> None:
    fitted = TrackedEstimator(pipeline(), name="m").fit(X, y)
    read = load_estimator("m:latest")
    assert (read.predict_proba(X) == fitted.predict_proba(X)).all()
    assert read.version_ref_ == "m:v1"
    assert isinstance(read.estimator_, Pipeline)


def test_a_run_that_reads_a_model_is_recorded_as_its_user(store: begat.Store) -> None:
    TrackedEstimator(pipeline(), name="m").fit(X, y)
    load_estimator("m:latest")
    assert store.get_artifact("m").consumed_by == ()
    with begat.start_run("reader") as run:
        load_estimator("m:latest")
    assert store.get_artifact("m").consumed_by == (run,)


def test_types_that_may_do_harm_are_loaded_only_when_they_are_listed(store: begat.Store) -> None:
    TrackedEstimator(DecisionTreeClassifier(), name="tree").fit(X, y)
    with pytest.raises(Refused, match=r"sklearn\.tree\._tree\.Tree"):
        load_estimator("tree")
    with pytest.raises(Refused):
        load_estimator("tree", trusted=["something.else"])
    assert load_estimator("tree", trusted=["sklearn.tree._tree.Tree"]).score(X, y) == 1


def test_a_forest_survives_the_renumbering_of_its_file(store: begat.Store) -> None:
    fitted = TrackedEstimator(RandomForestClassifier(7, random_state=1), name="m").fit(X, y)
    read = load_estimator("m", trusted=["sklearn.tree._tree.Tree"])
    assert (read.predict_proba(X) == fitted.predict_proba(X)).all()
    seeds = [tree.random_state for tree in fitted.estimator_.estimators_]
    assert [tree.random_state for tree in read.estimator_.estimators_] == seeds


# --- predictions ---


def table_of(version: begat.Version) -> Any:
    return parquet.read_table(io.BytesIO(version.read_bytes("part-00000.parquet")))


def test_predictions_are_a_table_made_from_model_and_data(store: begat.Store) -> None:
    model = TrackedEstimator(pipeline(), name="m", uses="flowers").fit(X, y)
    version = model.log_predictions(X, y)
    assert (version.ref, version.type) == ("m-predictions:v1", "predictions")
    run = version.produced_by
    assert run is not None
    assert [used.ref for used in run.inputs] == ["flowers:v2", "m:v1"]
    table = table_of(version)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("id", "int64"),
        ("label", "int64"),
        ("pred", "int64"),
        ("prob", "fixed_size_list<element: float>[2]"),
    ]
    assert table["id"].to_pylist() == list(range(120))
    assert table["label"].to_pylist() == y.tolist()
    assert table["pred"].to_pylist() == model.predict(X).tolist()
    prob = np.array(table["prob"].to_pylist())
    assert np.allclose(prob, model.predict_proba(X), atol=1e-6)


def test_predictions_are_compressed_and_in_groups_of_rows(store: begat.Store) -> None:
    model = TrackedEstimator(LinearRegression(), name="m").fit(X, y)
    many = np.tile(X, (600, 1))
    version = model.log_predictions(many, ids=[f"row-{number}" for number in range(len(many))])
    file = parquet.ParquetFile(io.BytesIO(version.read_bytes("part-00000.parquet")))
    assert file.metadata.num_row_groups == 2
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.schema_arrow.names == ["id", "label", "pred"]
    table = file.read()
    assert table["id"][71_999].as_py() == "row-71999"
    assert table["label"].null_count == 72_000


def test_predictions_of_text_classes_and_table_input(store: begat.Store) -> None:
    frame, words = pd.DataFrame(X, columns=list("abcdef")), np.where(y == 1, "yes", "no")
    model = TrackedEstimator(LogisticRegression(), name="m").fit(frame, words)
    version = model.log_predictions(frame, pd.Series(words), name="answers")
    assert version.metadata == {"model": "m:v1", "classes": ["no", "yes"]}
    assert set(table_of(version)["pred"].to_pylist()) == {"yes", "no"}


def test_predictions_of_several_outputs_are_lists(store: begat.Store) -> None:
    model = TrackedEstimator(LinearRegression(), name="m").fit(X, np.column_stack([y, 2 * y]))
    table = table_of(model.log_predictions(X))
    assert str(table["pred"].type) == "fixed_size_list<element: double>[2]"


def test_predictions_in_another_run_use_the_data_named_there(store: begat.Store) -> None:
    TrackedEstimator(pipeline(), name="m", uses="flowers:v1").fit(X, y)
    with begat.start_run("predict") as run:
        load_estimator("m:latest").log_predictions(X, uses="flowers:v2")
    assert [version.ref for version in run.inputs] == ["m:v1", "flowers:v2"]
    assert next(edge.requested for edge in run.edges) == "m:latest"


def test_ids_of_another_length_are_refused_before_anything_is_recorded(store: begat.Store) -> None:
    model = TrackedEstimator(pipeline(), name="m").fit(X, y)
    with pytest.raises(ValueError, match="inconsistent"):
        model.log_predictions(X, ids=[1, 2])
    assert len(store.runs()) == 1


def test_predictions_outside_of_a_recorded_model_are_refused(store: begat.Store) -> None:
    with pytest.raises(NotFittedError):
        TrackedEstimator(pipeline()).log_predictions(X)


# --- without the extra ---


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    story = textwrap.dedent("""
        import sys
        sys.modules["skops"] = None
        from begat.errors import MissingExtra
        try:
            import begat_sklearn
        except MissingExtra as error:
            print(error)
    """)
    done = subprocess.run([sys.executable, "-c", story], capture_output=True, text=True)
    assert 'pip install "begat[sklearn]"' in done.stdout
