"""The conformance suite can be followed by its own documentation, and notices what it is for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "integrations" / "README.md"
FILE = re.compile(r"`(\w+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def example() -> dict[str, str]:
    """The files of the example in the documentation, by name."""
    return dict(FILE.findall(README.read_text("utf-8")))


def run(folder: Path, files: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of an integration as a third party would, in a folder of its own."""
    for name, text in files.items():
        (folder / name).write_text(text)
    paths = [str(folder), str(ROOT / "core")]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_example_of_the_documentation_passes_every_scenario(tmp_path: Path) -> None:
    files = example()
    assert set(files) == {"tiny.py", "begat_tiny.py", "test_tiny.py"}
    done = run(tmp_path, files)
    assert done.returncode == 0, done.stdout
    count = int(re.findall(r"(\d+) passed in", done.stdout)[0])
    assert f"{count} scenarios" in README.read_text("utf-8")


# What may be wrong with an integration: what of the example is changed to what, and the scenarios that must notice.
CLEARED = "recorder, self.recorder = self.recorder, None"
DEFECTS: dict[str, tuple[dict[str, str], str]] = {
    "inputs are not recorded": (
        {"uses=self.uses, ": ""},
        "committed_before_the_first_batch or does_not_exist",
    ),
    "data is not looked at": (
        {"        self.recorder.observe(trainer.data)\n": ""},
        "is_what_was_declared or is_not_what_was_declared",
    ),
    "each batch is a call": (
        {
            "                    self.state": '                    self.tell("step")\n                    self.state',
            "    def before_save": "    def step(self, trainer):\n        pass\n\n    def before_save",
        },
        "a_batch_costs_no_call",
    ),
    "checkpoints are found by their paths": (
        {
            "        self.recorder.saved(": "        if str(path) in self.recorder.state()['saved']:\n"
            "            return\n        self.recorder.saved("
        },
        "overwritten or saves_at_once or two_that_save",
    ),
    "a typo leaves a run behind": (
        {
            "uses=self.uses, ": "",
            "        self.recorder.observe(": "        self.recorder.consume(self.uses)\n"
            "        self.recorder.observe(",
        },
        "does_not_exist",
    ),
    "removals are not told": ({"self.recorder.removed(path)": "pass"}, "removes_is_retired"),
    "the best is not told": ({'["best"] if is_best else []': "[]"}, "best_follows"),
    "scores are not told": ({"score=score": "score=None"}, "how_good_it_is or best_follows"),
    "exceptions are not told": (
        {"finish(error=error)": "finish()"},
        "an_exception_fails_the_run and not around or test_ctrl_c_interrupts_the_run",
    ),
    "a fit does not end": (
        {"recorder.finish(error=error)": "pass"},
        "each_checkpoint_is_a_version or after_an_exception",
    ),
    "a resume is not told": (
        {'self.recorder.resumed_from(trainer.state["begat"])': "pass"},
        "goes_on_from_a_checkpoint",
    ),
    "a second fit is the first": (
        {
            CLEARED: "recorder = self.recorder",
            "Recorder.attach": "self.recorder or Recorder.attach",
        },
        "second_training",
    ),
    "it cannot be pickled": ({"self.recorder = None": "self.recorder = lambda: None"}, "pickled"),
    "each rank records": ({"attach(": "attach(is_main=True, "}, "another_rank"),
    "options are not passed on": (
        {", **self.options": ""},
        "raises_where_that_is_wanted or keep_all or longer_than_it_may",
    ),
    "errors are swallowed": (
        {
            "        self.recorder.saved(": "        import contextlib\n"
            "        with contextlib.suppress(Exception): self.recorder.saved("
        },
        "written_raises",
    ),
    "tracking ends a training": (
        {"uses=self.uses, **": 'uses=self.uses, on_error="raise", **'},
        "one_warning_and_the_run_says or before_it_is_taken_in or while_it_is_taken_in",
    ),
    "it does not say what to install": ({"needs tiny: pip": "needs tiny: npm"}, "what_to_install"),
    "what is declared impossible is no scenario": (
        {'    install = "tiny"': '    install = "tiny"\n    cannot = {"test_nothing": "why"}'},
        "declared_impossible",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_noticed(defect: str, tmp_path: Path) -> None:
    changes, scenarios = DEFECTS[defect]
    files = example()
    for old, new in changes.items():
        assert sum(old in text for text in files.values()) == 1, f"{old!r} is not in one file"
        files = {name: text.replace(old, new) for name, text in files.items()}
    done = run(tmp_path, files, "-k", scenarios)
    assert done.returncode == 1, done.stdout
    assert "passed" not in done.stdout.splitlines()[-1], done.stdout


def test_what_cannot_be_is_reported_with_its_reason(tmp_path: Path) -> None:
    files = example()
    declared = '    cannot = {"test_best_follows_the_framework": "tiny has no taste"}\n'
    files["test_tiny.py"] = files["test_tiny.py"].replace(
        '    install = "tiny"\n', f'    install = "tiny"\n{declared}'
    )
    done = run(tmp_path, files, "-k", "best_follows")
    assert done.returncode == 0
    assert "declared of begat_tiny: tiny has no taste" in done.stdout


def test_without_pytest_the_suite_says_what_to_install() -> None:
    code = """
import sys; sys.modules["pytest"] = None
import begat, begat.testing
try:
    begat.testing.CallbackTests
except begat.errors.MissingExtra as error:
    print(error)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "core")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert "pip install pytest" in done.stdout
