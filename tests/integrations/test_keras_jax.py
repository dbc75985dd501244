"""All tests of begat_keras once more with the JAX backend: a process has one backend, so they run in another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import pytest

HERE = Path(__file__).parent
FILES = ["test_keras.py", "test_keras_predictions.py", "test_keras_conformance.py"]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_the_same_holds_with_jax(file: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file],
        cwd=HERE,
        env={**os.environ, "KERAS_BACKEND": "jax", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_the_backend_of_this_process_is_another_one() -> None:
    assert keras.config.backend() == "torch"
