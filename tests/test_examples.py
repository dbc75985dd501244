"""Each example runs as a user would run it, and what it says and leaves behind is true."""

import os
import re
import resource
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

import begat
from begat_sklearn import load_estimator

ROOT = Path(__file__).parent.parent
PREDICTIONS = "digits-predictions"


class Demo:
    """One run of examples/digits.py: what it printed, and the folder it wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.run = subprocess.run(
            [sys.executable, str(ROOT / "examples" / "digits.py"), str(folder)],
            capture_output=True,
            text=True,
            cwd=folder.parent,
            env={**environment(folder), "PYTHONWARNINGS": "error::UserWarning"},
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Of processors, not of the clock: other tests run beside this one.
        self.busy_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.text = self.run.stdout

    def section(self, number: int) -> str:
        """What was printed below the title of one step."""
        found = re.search(rf"^{number}  .*?(?=^\d  |\Z)", self.text, re.MULTILINE | re.DOTALL)
        assert found, self.text
        return found.group()


def environment(folder: Path) -> dict[str, str]:
    paths = os.pathsep.join(str(ROOT / name) for name in ("core", "integrations"))
    places = {"HOME": str(folder.parent), "BEGAT_CACHE": str(folder.parent / "cache")}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BEGAT_")}
    return {**kept, **places, "PYTHONPATH": paths}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo") / "out")


@pytest.fixture
def store(demo: Demo) -> begat.Store:
    return begat.open_store(demo.folder / "store")


def test_the_demo_ends_well_and_says_nothing_on_stderr(demo: Demo) -> None:
    assert (demo.run.returncode, demo.run.stderr) == (0, "")


def test_the_demo_is_less_than_half_a_minute_of_work(demo: Demo) -> None:
    assert demo.busy_s < 30


def test_the_demo_makes_two_versions_of_dataset_model_and_predictions(store: begat.Store) -> None:
    made = {one.name: (one.type, one.version_count) for one in store.artifacts()}
    assert made == {
        "digits": ("dataset", 2),
        "digits-model": ("model", 2),
        PREDICTIONS: ("predictions", 2),
    }


def test_each_step_of_the_demo_names_what_it_made(demo: Demo) -> None:
    assert "digits:v1" in demo.section(1)
    assert "digits-model:v1" in demo.section(2)
    assert f"{PREDICTIONS}:v1" in demo.section(3)
    assert "digits:v2" in demo.section(4)
    assert "digits-model:v2" in demo.section(6)
    assert f"{PREDICTIONS}:v2" in demo.section(6)


def test_the_lineage_of_the_demo_is_what_it_did(store: begat.Store) -> None:
    def inputs(ref: str) -> list[str]:
        run = store.get_artifact(ref).produced_by
        assert run is not None
        assert run.status == "finished"
        return sorted(version.ref for version in run.inputs)

    assert inputs("digits:v1") == []
    assert inputs("digits-model:v1") == ["digits:v1"]
    assert inputs(f"{PREDICTIONS}:v1") == ["digits-model:v1", "digits:v1"]
    assert inputs("digits:v2") == ["digits:v1"]
    assert inputs("digits-model:v2") == ["digits:v2"]
    assert inputs(f"{PREDICTIONS}:v2") == ["digits-model:v2", "digits:v2"]


def test_the_new_dataset_shares_its_old_files(demo: Demo, store: begat.Store) -> None:
    old, new = store.get_artifact("digits:v1"), store.get_artifact("digits:v2")
    assert old.diff(new).unchanged_count == 4
    assert new.file_count == 6
    assert "4 of 6 files are shared with digits:v1" in demo.section(4)
    assert new.new_bytes < new.size_bytes / 2


def test_model_and_predictions_are_stale_until_they_are_made_again(
    demo: Demo, store: begat.Store
) -> None:
    for name in ("digits-model:v1", f"{PREDICTIONS}:v1"):
        reason = f"{name} was made from digits:v1; digits:latest is now digits:v2"
        assert reason in demo.section(5)
    assert "nothing is stale" not in demo.section(5)
    assert "nothing is stale" in demo.section(6)
    assert store.stale() == []


def test_the_best_model_of_the_demo_is_the_second(store: begat.Store) -> None:
    best = store.get_artifact("digits-model:best")
    assert best.ref == "digits-model:v2"
    assert best.produced_by is not None
    assert best.produced_by.metrics["accuracy"] > 0.88
    assert load_estimator(best).version_ref_ == "digits-model:v2"


def test_the_bytes_that_the_demo_counts_are_those_of_its_versions(
    demo: Demo, store: begat.Store
) -> None:
    versions = [one for artifact in store.artifacts() for one in store.versions(artifact.name)]
    logical = sum(version.size_bytes for version in versions)
    new = sum(version.new_bytes for version in versions)
    assert f"6 versions: {logical:,} logical bytes, {new:,} new" in demo.text
    assert new < logical


def test_the_picture_of_the_demo_is_an_svg_with_every_version(demo: Demo) -> None:
    picture = ElementTree.parse(demo.folder / "lineage.svg").getroot()
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(picture.itertext())
    assert "6 versions" in text
    assert all(name in text for name in ("digits", "digits-model", PREDICTIONS))


def test_the_picture_in_the_readme_is_the_one_of_the_demo(demo: Demo) -> None:
    def words(path: Path) -> list[str]:
        drawn = ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text")
        texts = ["".join(text.itertext()) for text in drawn]
        return [re.sub(r"[\d.]+ k?B|^[0-9a-f]{6}$", "", text) for text in texts]  # sizes, ids

    assert words(ROOT / "docs/images/lineage.svg") == words(demo.folder / "lineage.svg"), (
        "run make demo, and copy examples/out/digits/lineage.svg to docs/images/"
    )


def test_the_store_of_the_demo_is_whole(store: begat.Store) -> None:
    assert store.verify().damaged == ()


def test_the_demo_can_be_run_again_in_the_same_folder(demo: Demo) -> None:
    again = Demo(demo.folder)
    assert again.run.returncode == 0
    assert "digits:v1" in again.section(1)
    with begat.open_store(demo.folder / "store") as store:
        assert [one.version_count for one in store.artifacts()] == [2, 2, 2]


# --- the search over a pipeline ---


@pytest.mark.skipif(
    find_spec("sklearn.callback") is None, reason="the example says that it needs scikit-learn 1.9"
)
def test_the_search_is_one_record_with_its_data_model_and_predictions(tmp_path: Path) -> None:
    example = ROOT / "examples" / "breast_cancer_sklearn.py"
    done = subprocess.run(
        [sys.executable, str(example), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONWARNINGS": "error::UserWarning"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "tumour-model-predictions:v1 made from tumour-model:v1 and tumours:v1" in done.stdout
    with begat.open_store(tmp_path / "out" / "store") as store:
        predicting, training, collecting = store.runs()
        assert [one.ref for one in collecting.outputs] == ["tumours:v1"]
        assert [one.ref for one in training.inputs] == ["tumours:v1"]
        assert [one.ref for one in training.outputs] == ["tumour-model:v1"]
        assert training.metrics["accuracy"] > 0.95
        assert training.metrics["tumour-model.best_params"] == {"logisticregression__C": 0.1}
        assert [one.ref for one in predicting.outputs] == ["tumour-model-predictions:v1"]


def test_the_examples_need_few_lines_of_begat() -> None:
    words = r"begat|Artifact|load_estimator|log_|store|start_run"
    text = (ROOT / "examples" / "breast_cancer_sklearn.py").read_text("utf-8")
    code = text.partition("import shutil")[2].splitlines()
    assert 10 < len([line for line in code if re.search(words, line)]) <= 20
