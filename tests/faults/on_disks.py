"""Running a proof on file systems that are really mounted: what is printed, and the exit code, of such a script."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

PASSED, FAILED, NOT_RUN = 0, 1, 77


class NotPossible(Exception):
    """This machine does not allow it; the message says what is missing."""


def prove(kinds: Iterable[str], tried: Callable[[str, Path], list[str]], proved: str) -> int:
    """The exit code, after `tried(kind, folder)` has said of each kind of file system what does not work there."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        print("NOT RUN: only root on Linux may mount; run it with sudo")
        return NOT_RUN
    worst = PASSED
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="begat-disk-") as name:
            try:
                found = tried(kind, Path(name))
            except NotPossible as reason:
                print(f"{kind}: NOT RUN: {reason}")
                worst = worst or NOT_RUN
                continue
        for problem in found:
            print(f"{kind}: {problem}")
        print(f"{kind}: {'FAILED' if found else proved}")
        worst = FAILED if found else worst
    return worst
