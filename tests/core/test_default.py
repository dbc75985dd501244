"""`begat.start_run()` and its kind: the default store and the active run."""

import os
import threading
from pathlib import Path

import pytest

import begat
from begat.default import default_store
from begat.errors import ArtifactNotFound


def test_the_default_store_is_opened_once_and_found_by_all(isolated: Path) -> None:
    found: list[begat.Store] = []
    threads = [threading.Thread(target=lambda: found.append(default_store())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(store) for store in found}) == 1
    assert found[0].path == isolated / "store"


def test_another_default_is_another_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begat.log_artifact("x", b"1")
    monkeypatch.setenv("BEGAT_STORE", str(tmp_path / "other"))
    with pytest.raises(ArtifactNotFound):
        begat.get_artifact("x")


def test_a_default_store_that_was_closed_is_opened_again() -> None:
    begat.log_artifact("x", b"1")
    default_store().close()
    assert begat.get_artifact("x").read_bytes("x") == b"1"


def test_the_short_forms_act_on_the_active_run() -> None:
    begat.log_artifact("data", b"1")
    with begat.start_run("train", uses=["data"], params={"lr": 1}) as run:
        assert begat.active_run() == run
        assert begat.use_artifact("data", role="test").number == 1
        version = begat.log_artifact(
            "model", b"w", type="model", aliases=["best"], metadata={"acc": 1}
        )
    assert begat.active_run() is None
    assert (version.produced_by, run.inputs[0].ref, version.aliases) == (
        run,
        "data:v1",
        ("best", "latest"),
    )
    assert begat.get_artifact("model:best") == version


def test_a_run_in_another_store_is_the_active_one_all_the_same(tmp_path: Path) -> None:
    with begat.open_store(tmp_path / "other") as other:
        with begat.start_run("train", store=other):
            begat.log_artifact("x", b"1")
        assert other.get_artifact("x").produced_by is not None
        with pytest.raises(ArtifactNotFound):
            begat.get_artifact("x")


def test_the_run_that_the_environment_names_is_active() -> None:
    run = begat.start_run("parent")
    try:
        pid = os.fork()
        if pid == 0:
            found = begat.active_run()
            os._exit(0 if found is not None and found.id == run.id else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        run.finish()
