"""The transformers example runs as a user would run it, and what it says and leaves behind is true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from pyarrow import parquet

import begat

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


class Demo:
    """One run of the example: how it ended, what it printed, and the store it made."""

    def __init__(self, folder: Path) -> None:
        paths = os.pathsep.join(str(ROOT / name) for name in ("core", "integrations"))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("BEGAT_")}
        places = {"HOME": str(folder), "BEGAT_CACHE": str(folder / "cache")}
        self.folder = folder / "out"
        self.run = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "digits_transformers.py"), str(self.folder)],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**kept, **places, "PYTHONPATH": paths},
            check=False,
        )
        assert self.run.returncode == 0, self.run.stderr
        self.text = self.run.stdout
        self.store = begat.open_store(self.folder / "store")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"))


def test_the_demo_warns_of_nothing(demo: Demo) -> None:
    assert "BegatWarning" not in demo.run.stderr
    assert "Traceback" not in demo.run.stderr


def test_every_checkpoint_of_the_demo_is_a_version_of_a_finished_run(demo: Demo) -> None:
    trainings = demo.store.runs(job="train-digits-model")
    assert [run.status for run in trainings] == ["finished", "finished"]
    assert [len(run.outputs) for run in trainings] == [6, 6]
    assert [[v.ref for v in run.inputs] for run in trainings] == [["digits:v2"], ["digits:v1"]]


def test_the_data_of_the_demo_is_detected_and_not_only_declared(demo: Demo) -> None:
    for run in demo.store.runs(job="train-digits-model"):
        (used,) = [edge for edge in run.edges if edge.kind == "used"]
        assert (used.is_declared, used.is_detected, used.mismatch) == (True, True, None)


def test_the_demo_keeps_the_checkpoints_that_the_trainer_kept(demo: Demo) -> None:
    for number, run in enumerate(reversed(demo.store.runs(job="train-digits-model")), start=1):
        kept = {path.name for path in (demo.folder / f"checkpoints-{number}").iterdir()}
        live = {
            Path(version.metadata["path"]).name
            for version in run.outputs
            if version.state == "live"
        }
        assert live == kept
        assert len(kept) == 2


def test_the_predictions_of_the_demo_come_from_the_best_checkpoint_and_the_data(demo: Demo) -> None:
    best = demo.store.get_artifact("digits-model:best")
    predictions = demo.store.get_artifact("digits-predictions:latest")
    assert predictions.produced_by is not None
    assert {used.ref for used in predictions.produced_by.inputs} == {best.ref, "digits:v2"}
    rows = parquet.read_table(predictions.path).to_pydict()
    assert rows["id"] == list(range(1500, 1797))
    right = sum(pred == label for pred, label in zip(rows["pred"], rows["label"], strict=True))
    assert right / len(rows["id"]) == pytest.approx(best.metadata["score"])
    assert best.metadata["score"] > 0.8


def test_what_the_demo_calls_stale_is_made_again(demo: Demo) -> None:
    assert "digits-predictions:v1 was made from digits:v1" in demo.text
    assert demo.text.count("nothing is stale") == 1
    assert demo.store.stale() == []


def test_the_demo_writes_its_lineage_as_a_picture(demo: Demo) -> None:
    picture = ElementTree.parse(demo.folder / "lineage.svg").getroot()
    assert "digits-predictions" in " ".join(picture.itertext())
