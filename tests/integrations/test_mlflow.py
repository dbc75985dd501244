"""MLflow with begat: its own calls, on a real sqlite tracking store, with artifacts below `begat://`."""

# mlflow ships no types that pyright can follow.
# pyright: reportMissingTypeStubs=false, reportPrivateImportUsage=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import begat
import begat_mlflow
from begat import files
from begat.errors import Refused, VersionNotFound
from begat_mlflow.locations import Location, locate

RUN = "0123456789abcdef" * 2
MODEL = f"m-{RUN}"


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One tracking store for all: its first opening makes dozens of tables."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(before)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[begat.Store]:
    monkeypatch.setenv("BEGAT_STORE", str(tmp_path / "store"))
    yield begat.default_store()
    begat.default_store().close()


@pytest.fixture
def experiment(tracking: str, store: begat.Store, request: pytest.FixtureRequest) -> str:
    name = request.node.name
    mlflow.create_experiment(name, artifact_location="begat://team/mlflow")
    mlflow.set_experiment(name)
    return name


def repository(uri: str) -> Any:
    return get_artifact_repository(uri)


# --- where things lie ---


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        (f"team/{RUN}/artifacts", None, Location(f"team/{RUN}", "", RUN)),
        (f"team/{RUN}/artifacts", "a/b", Location(f"team/{RUN}", "a/b", RUN)),
        (f"team/{RUN}/artifacts/a", "b", Location(f"team/{RUN}", "a/b", RUN)),
        (f"{RUN}/artifacts/", "/a", Location(RUN, "a", RUN)),
        ("team", f"7/{RUN}/artifacts/a", Location(f"team/7/{RUN}", "a", RUN)),
        ("team", f"7/{RUN}", Location("team", f"7/{RUN}")),
        (
            f"team/models/{MODEL}/artifacts",
            "MLmodel",
            Location(f"team/models/{MODEL}", "MLmodel", MODEL),
        ),
        ("artifacts/x", f"{RUN}/artifacts/artifacts/a", Location(f"artifacts/x/{RUN}", "artifacts/a", RUN)),
        ("digits:v3", None, Location("digits:v3", "", is_pinned=True)),
        ("digits:v3/a", "b.csv", Location("digits:v3", "a/b.csv", is_pinned=True)),
        ("team/digits@b3:9f31c0", "b", Location("team/digits@b3:9f31c0", "b", is_pinned=True)),
        ("notes", "a/b", Location("notes", "a/b")),
    ],
)  # fmt: skip
def test_every_path_of_mlflow_means_one_place(
    root: str, path: str | None, expected: Location
) -> None:
    assert locate(root, path) == expected


# --- MLflow's own calls ---


def test_everything_that_a_run_logs_is_there_and_is_a_version(
    experiment: str, store: begat.Store, tmp_path: Path
) -> None:
    (tmp_path / "plots" / "deep").mkdir(parents=True)
    (tmp_path / "plots" / "a.png").write_bytes(b"png")
    (tmp_path / "plots" / "deep" / "b.png").write_bytes(b"png 2")
    with mlflow.start_run() as run:
        mlflow.log_text("hello", "notes/a.txt")
        mlflow.log_dict({"rows": 3}, "facts.json")
        mlflow.log_artifacts(str(tmp_path / "plots"), "plots")
        mlflow.log_artifact(str(tmp_path / "plots" / "a.png"))
    id = run.info.run_id
    client = mlflow.MlflowClient()
    listed = [(info.path, info.is_dir, info.file_size) for info in client.list_artifacts(id)]
    assert listed == [
        ("a.png", False, 3),
        ("facts.json", False, 15),
        ("notes", True, None),
        ("plots", True, None),
    ]
    assert [info.path for info in client.list_artifacts(id, "plots")] == [
        "plots/a.png",
        "plots/deep",
    ]
    assert client.list_artifacts(id, "facts.json") == []  # a file has nothing below it
    assert mlflow.artifacts.load_text(f"runs:/{id}/notes/a.txt") == "hello"
    folder = Path(mlflow.artifacts.download_artifacts(run_id=id))
    assert (folder / "plots" / "deep" / "b.png").read_bytes() == b"png 2"
    assert sorted(path.name for path in folder.iterdir()) == [
        "a.png",
        "facts.json",
        "notes",
        "plots",
    ]
    version = store.get_artifact(f"team/mlflow/{id}")
    assert (version.number, version.type, version.metadata) == (4, "mlflow", {"mlflow_id": id})
    assert version.new_bytes < 2_000  # what was there before, and the same picture, is shared


def test_what_is_overwritten_is_in_the_version_before(experiment: str, store: begat.Store) -> None:
    with mlflow.start_run() as run:
        mlflow.log_text("first", "a.txt")
        mlflow.log_text("second", "a.txt")
    name = f"team/mlflow/{run.info.run_id}"
    assert store.get_artifact(name).read_bytes("a.txt") == b"second"
    assert store.get_artifact(f"{name}:v1").read_bytes("a.txt") == b"first"


def test_models_are_logged_registered_and_loaded(experiment: str, store: begat.Store) -> None:
    features, labels = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(features, labels)
    with mlflow.start_run():
        info = mlflow.sklearn.log_model(
            model, name="iris", registered_model_name="iris-of-begat", pip_requirements=[]
        )
    for uri in (info.model_uri, "models:/iris-of-begat/1"):
        loaded = mlflow.pyfunc.load_model(uri)
        assert (loaded.predict(features) == model.predict(features)).all()
    (record,) = store.artifacts(type="model")
    assert record.name.startswith("team/mlflow/models/m-")
    assert "MLmodel" in [entry.path for entry in store.get_artifact(record.name).entries]


def test_deleting_leaves_out_and_deletes(experiment: str, store: begat.Store) -> None:
    with mlflow.start_run() as run:
        mlflow.log_text("1", "a/1.txt")
        mlflow.log_text("2", "a/2.txt")
    name = f"team/mlflow/{run.info.run_id}"
    logged = repository(run.info.artifact_uri)
    logged.delete_artifacts("a/1.txt")
    assert [info.path for info in logged.list_artifacts("a")] == ["a/2.txt"]
    logged.delete_artifacts()
    assert logged.list_artifacts() == []
    with pytest.raises(VersionNotFound):
        store.get_artifact(name)
    assert len(store.versions(name, with_deleted=True)) == 3  # their place in the lineage is kept
    logged.delete_artifacts()  # nothing more to delete


def test_links_inside_are_followed_and_those_that_lead_out_refused(
    experiment: str, store: begat.Store, tmp_path: Path
) -> None:
    (tmp_path / "real").write_text("elsewhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("bytes")
    (tmp_path / "folder" / "link").symlink_to("file")
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(tmp_path / "folder"))
        (tmp_path / "folder" / "out").symlink_to(tmp_path / "real")
        with pytest.raises(MlflowException, match="leads out of"):
            mlflow.log_artifacts(str(tmp_path / "folder"))
    version = store.get_artifact(f"team/mlflow/{run.info.run_id}")
    assert (version.number, version.read_bytes("link")) == (1, b"bytes")


# --- versions as sources ---


def test_a_version_can_be_read_by_its_reference(
    tracking: str, store: begat.Store, tmp_path: Path
) -> None:
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "b.csv").write_text("1,2")
    version = store.log_artifact("digits", tmp_path / "data")
    got = mlflow.artifacts.download_artifacts(artifact_uri="begat://digits:v1/a/b.csv")
    assert Path(got).read_text() == "1,2"
    whole = mlflow.artifacts.download_artifacts(artifact_uri=f"begat://digits@{version.digest}")
    assert (Path(whole) / "a" / "b.csv").read_text() == "1,2"
    with pytest.raises(MlflowException, match="one version, which never changes"):
        repository("begat://digits:v1").log_artifact(str(tmp_path / "data" / "a" / "b.csv"))
    with pytest.raises(MlflowException, match="one version, which never changes"):
        repository("begat://digits:v1").delete_artifacts()
    assert len(store.versions("digits")) == 1


# --- trouble ---


def test_errors_are_mlflow_s_and_say_which_kind(
    tracking: str, store: begat.Store, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("1")
    logged = repository(f"begat://team/{RUN}/artifacts")
    with pytest.raises(MlflowException) as error:
        logged._download_file("a", str(tmp_path / "out"))
    assert error.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    logged.log_artifact(str(tmp_path / "a"))
    with pytest.raises(MlflowException, match="is not in team") as error:
        logged._download_file(remote_file_path="b", local_path=str(tmp_path / "out"))
    assert error.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    with pytest.raises(MlflowException) as error:
        logged.log_artifact(str(tmp_path / "a"), "../../b")
    assert not (tmp_path / "out").exists()
    with pytest.raises(MlflowException):
        logged.log_artifact(str(tmp_path / "no such file"))
    assert [info.path for info in logged.list_artifacts()] == ["a"]


def test_damaged_bytes_are_never_handed_out(
    tracking: str, store: begat.Store, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(os.urandom(3_000_000))
    logged = repository(f"begat://team/{RUN}/artifacts")
    logged.log_artifact(str(tmp_path / "a"))
    objects = [path for path in (store.path / "objects").rglob("*") if path.is_file()]
    largest = max(objects, key=lambda path: path.stat().st_size)
    with files.told_as("damaging"):
        largest.chmod(0o644)
    data = bytearray(largest.read_bytes())
    data[2_500_000] ^= 1
    largest.write_bytes(data)
    (tmp_path / "got").mkdir()
    with pytest.raises(MlflowException):
        logged._download_file("a", str(tmp_path / "got" / "a"))
    assert list((tmp_path / "got").iterdir()) == []  # not even a part of it


def test_threads_that_log_to_one_run_lose_nothing(
    tracking: str, store: begat.Store, tmp_path: Path
) -> None:
    for i in range(16):
        (tmp_path / f"{i}.txt").write_text(str(i))

    def log(i: int) -> None:
        repository(f"begat://team/{RUN}/artifacts").log_artifact(str(tmp_path / f"{i}.txt"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(log, range(16)))
    listed = repository(f"begat://team/{RUN}/artifacts").list_artifacts()
    assert {info.path for info in listed} == {f"{i}.txt" for i in range(16)}


def test_processes_that_log_to_one_run_lose_nothing(store: begat.Store, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from begat_mlflow import BegatArtifactRepository\n"
        f"logged = BegatArtifactRepository('begat://team/{RUN}/artifacts')\n"
        "for path in sys.argv[1:]:\n"
        "    logged.log_artifact(path)\n"
    )
    names = [f"{i}.txt" for i in range(12)]
    for name in names:
        (tmp_path / name).write_text(name)
    processes = [
        subprocess.Popen([sys.executable, "-c", script, *(str(tmp_path / n) for n in names[at::3])])
        for at in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    entries = store.get_artifact(f"team/{RUN}").entries
    assert {entry.path for entry in entries} == set(names)


# --- runs that know each other ---


def test_an_mlflow_run_inside_a_run_of_begat_carries_its_id_and_inputs(
    experiment: str, store: begat.Store
) -> None:
    store.log_artifact("digits", b"1")
    store.log_artifact("labels", b"2")
    with store.start_run("train", uses=["digits"]) as run, mlflow.start_run() as theirs:
        run.use_artifact("labels")
        mlflow.log_text("x", "a.txt")
    tags = mlflow.get_run(theirs.info.run_id).data.tags
    assert tags["begat.run"] == run.id
    assert tags["begat.inputs"] == "digits:v1, labels:v1"
    # What MLflow logged was made by the run of begat.
    assert [version.name for version in run.outputs] == [f"team/mlflow/{theirs.info.run_id}"]
    assert "mlflow.run_id" not in run.params  # it was there first


def test_a_run_of_begat_inside_an_mlflow_run_links_to_it(
    experiment: str, store: begat.Store
) -> None:
    store.log_artifact("digits", b"1")
    with mlflow.start_run() as theirs, store.start_run("train", uses=["digits"]) as run:
        pass
    assert run.params["mlflow.run_id"] == theirs.info.run_id
    assert run.params["mlflow.experiment_id"] == theirs.info.experiment_id
    tags = mlflow.get_run(theirs.info.run_id).data.tags
    assert (tags["begat.run"], tags["begat.inputs"]) == (run.id, "digits:v1")


def test_without_a_run_of_begat_nothing_is_tagged_and_nothing_started(
    experiment: str, store: begat.Store
) -> None:
    with mlflow.start_run() as theirs:
        mlflow.log_text("x", "a.txt")
    assert not any(tag.startswith("begat") for tag in mlflow.get_run(theirs.info.run_id).data.tags)
    assert store.runs() == []
    with store.start_run("train"):
        assert mlflow.active_run() is None


def test_a_tracking_server_that_is_away_does_not_end_a_run(
    experiment: str, store: begat.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: object, **kwargs: object) -> None:
        raise MlflowException("the server is away")

    with mlflow.start_run():
        # Undone by itself: what keeps this test to its own folder stays.
        with monkeypatch.context() as patched:
            patched.setattr(mlflow.MlflowClient, "set_tag", away)
            with pytest.warns(begat.BegatWarning, match="the server is away"):
                with store.start_run("train") as run:
                    pass
    assert run.status == "finished"


def test_an_input_is_recorded_in_both(experiment: str, store: begat.Store) -> None:
    version = store.log_artifact("digits", b"1", type="dataset")
    with store.start_run("train") as run, mlflow.start_run() as theirs:
        assert begat_mlflow.log_input("digits:latest", context="training") == version
    (logged,) = mlflow.get_run(theirs.info.run_id).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.source_type) == ("digits", "begat")
    assert logged.dataset.source == '{"uri": "begat://digits:v1"}'
    tags = {tag.key: tag.value for tag in logged.tags}
    assert tags == {"mlflow.data.context": "training", "begat.digest": version.digest}
    (edge,) = (edge for edge in run.edges if edge.kind == "used")
    assert (edge.role, edge.requested) == ("training", "digits:latest")
    source = mlflow.data.get_source(logged.dataset)
    assert Path(source.load()).is_dir()


def test_an_input_without_an_mlflow_run_is_refused(experiment: str, store: begat.Store) -> None:
    store.log_artifact("digits", b"1")
    with pytest.raises(Refused, match="no MLflow run is active"):
        begat_mlflow.log_input("digits")
    assert mlflow.active_run() is None


def test_autolog_goes_on_beside_it(experiment: str, store: begat.Store) -> None:
    features, labels = load_iris(return_X_y=True)
    mlflow.sklearn.autolog(log_datasets=False, silent=True)
    try:
        with store.start_run("train") as run:
            LogisticRegression(max_iter=500).fit(features, labels)
    finally:
        mlflow.sklearn.autolog(disable=True)
    (theirs,) = mlflow.search_runs(output_format="list")
    assert theirs.data.tags["begat.run"] == run.id
    assert theirs.info.status == "FINISHED"
    assert [version.type for version in run.outputs if version.type == "model"]


def test_the_example_ends_with_one_outdated_model(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent.parent / "examples" / "diabetes_mlflow.py"
    ran = subprocess.run(
        [sys.executable, str(example), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("2 models, 2 datasets\nstale: diabetes/")
    with begat.open_store(tmp_path / "out" / "store") as store:
        for run in store.runs(job="train-diabetes"):
            assert [version.name for version in run.inputs] == ["diabetes"]
            assert [version.type for version in run.outputs] == ["model"]


# --- through MLflow's own server ---


@pytest.mark.slow
def test_a_server_with_several_workers_keeps_its_artifacts_in_begat(
    tracking: str, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "BEGAT_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--workers", "2"]
    command += ["--artifacts-destination", "begat://team"]
    (tmp_path / "many").mkdir()
    for i in range(12):
        (tmp_path / "many" / f"{i}.txt").write_text(str(i))
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
            mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")  # older clients ask only here
            client = mlflow.MlflowClient()
            run = client.create_run(client.create_experiment("served"))
            client.log_artifacts(run.info.run_id, str(tmp_path / "many"), "many")
            listed = client.list_artifacts(run.info.run_id, "many")
            assert {Path(info.path).name for info in listed} == {f"{i}.txt" for i in range(12)}
            got = client.download_artifacts(run.info.run_id, "many/7.txt", str(tmp_path))
            assert Path(got).read_text() == "7"
            with pytest.raises(MlflowException):
                client.download_artifacts(run.info.run_id, "many/99.txt", str(tmp_path))
        finally:
            mlflow.set_tracking_uri(tracking)
            os.killpg(server.pid, 15)
            server.wait(30)
    with begat.open_store(tmp_path / "store") as store:
        (record,) = store.artifacts()
        assert record.name == f"team/{run.info.experiment_id}/{run.info.run_id}"
        assert len(store.get_artifact(record.name).entries) == 12


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    raise AssertionError(f"the server did not answer: {log.read_text()}")
