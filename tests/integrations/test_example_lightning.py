"""The Lightning example runs as a user would run it, and what it says and leaves behind is true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

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
            [sys.executable, str(ROOT / "examples" / "digits_lightning.py"), str(self.folder)],
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


def test_the_demo_says_nothing_on_stderr(demo: Demo) -> None:
    assert demo.run.stderr == ""


def test_every_checkpoint_of_the_demo_is_a_version_of_a_finished_run(demo: Demo) -> None:
    trainings = demo.store.runs(job="train-digits-model")
    assert [run.status for run in trainings] == ["finished", "finished"]
    assert [len(run.outputs) for run in trainings] == [6, 6]
    assert [[v.ref for v in run.inputs] for run in trainings] == [["digits:v2"], ["digits:v1"]]


def test_the_demo_keeps_the_checkpoints_that_lightning_kept(demo: Demo) -> None:
    for number, run in enumerate(reversed(demo.store.runs(job="train-digits-model")), start=1):
        kept = {path.name for path in (demo.folder / f"checkpoints-{number}").iterdir()}
        live = {version.entries[0].path for version in run.outputs if version.state == "live"}
        assert live == kept
        assert len(kept) == 2


def test_the_predictions_of_the_demo_come_from_the_best_checkpoint(demo: Demo) -> None:
    best = demo.store.get_artifact("digits-model:best")
    made_by = demo.store.get_artifact("digits-predictions:latest").produced_by
    assert made_by is not None
    assert best in made_by.inputs
    assert best.metadata["score"] > 0.8
    scores = [version.metadata["score"] for version in demo.store.runs(job=None)[1].outputs]
    assert best.metadata["score"] == max(scores)


def test_what_the_demo_calls_stale_is_made_again(demo: Demo) -> None:
    assert "digits-predictions:v1 was made from digits:v1" in demo.text
    assert demo.text.count("nothing is stale") == 1
    assert demo.store.stale() == []


def test_the_demo_writes_its_lineage_as_a_picture(demo: Demo) -> None:
    picture = ElementTree.parse(demo.folder / "lineage.svg").getroot()
    assert "digits-predictions" in " ".join(picture.itertext())


def test_the_store_of_the_demo_is_whole_and_nothing_is_left_in_staging(demo: Demo) -> None:
    assert demo.store.verify().damaged == ()
    assert not list((demo.store.path / "staging").iterdir())
