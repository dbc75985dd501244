"""The command `begat`, called in this process: its exit code and all that it printed."""

import contextlib
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from begat.cli import main

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Told:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def begat(*arguments: object) -> Told:
    """Run one command to its end."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return Told(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Told:
    """Run one command that must succeed."""
    told = begat(*arguments)
    assert told.code == 0, told.err
    return told


COMMAND = (sys.executable, "-m", "begat")


def environment() -> dict[str, str]:
    """For child processes: this checkout is what they import, installed or not."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "core")}
