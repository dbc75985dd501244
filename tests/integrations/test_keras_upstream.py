"""Keras's own tests of its callbacks pass with our callback in every list of callbacks, and it has recorded them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras

import begat

HERE = Path(__file__).parent
THEIRS = Path(str(keras.__file__)).parent / "src" / "callbacks"
FILES = ("model_checkpoint", "backup_and_restore", "callback", "early_stopping")


@pytest.mark.slow
def test_tests_of_keras_pass_with_our_callback(isolated: Path) -> None:
    files = [THEIRS / f"{name}_test.py" for name in FILES]
    options = ["-q", "-c", os.devnull, "-p", "keras_with_begat", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=isolated,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    store = begat.open_store()
    assert len(store.versions("upstream")) > 20
    assert not any("begat.not_logged" in run.params for run in store.runs())
    assert {run.status for run in store.runs()} <= {"finished", "failed", "interrupted"}
