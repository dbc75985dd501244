"""A training in a process of its own, which ends in the middle of it: `python -m begat.testing.child`."""

from __future__ import annotations

import importlib.util
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from begat.testing.scene import NAME, Boom
from begat.testing.training import Training

# In the third of four epochs, so that there is something to lose.
EPOCHS, AT = 4, 2


def run(tests: object, how: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Train as these tests do, in another process that ends by this: `raise`, `interrupt` or `kill`.

    With `handle` it raises too, and its code has an answer to that and goes on.
    """
    kind = type(tests)
    file = inspect.getfile(kind)
    paths = [str(Path(file).parent), *(path for path in sys.path if path)]
    return subprocess.run(
        [sys.executable, "-m", __name__, file, kind.__qualname__, how, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


def _main(file: str, kind: str, how: str, folder: str) -> None:
    # By the name that it would have at the top of its folder, where its classes can be found again.
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    tests: Any = module
    for name in kind.split("."):
        tests = getattr(tests, name)
    tests = tests()
    training = Training(
        folder=Path(folder),
        epochs=EPOCHS,
        saves=("each",),
        act=lambda epoch, batch: _end(how) if (epoch, batch) == (AT, 1) else None,
    )
    try:
        tests.train(training, tests.callback(NAME))
    except Boom:
        if how != "handle":
            raise


def _end(how: str) -> None:
    if how in ("raise", "handle"):
        raise Boom("out of luck")
    os.kill(os.getpid(), {"interrupt": signal.SIGINT, "kill": signal.SIGKILL}[how])


if __name__ == "__main__":
    # Whoever started us may ignore it, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _main(*sys.argv[1:])
