"""`begat run`: any program as a run, with what it used and made."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from begat.cli.completion import offer_references
from begat.cli.opened import opened
from begat.cli.options import JsonFlag, Misuse, QuietFlag, pairs
from begat.cli.output import note, say_json
from begat.cli.progress import shown
from begat.cli.runs import run_summary
from begat.cli.storing import logged_text

if TYPE_CHECKING:
    from begat.run import Run

NOT_FOUND = 127  # what shells answer
NOT_EXECUTABLE = 126
INTERRUPTED = 128 + signal.SIGINT


@dataclass(frozen=True, slots=True)
class Output:
    """What is logged when the command is done: `--out digits-model:model=out/`."""

    name: str
    type: str | None
    path: Path


def run(
    context: typer.Context,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="The program and its arguments.")
    ],
    name: Annotated[
        str | None, typer.Option(help="The run's name (default: made up).", show_default=False)
    ] = None,
    job: Annotated[
        str | None, typer.Option(help="The kind of work; runs of one job are comparable.")
    ] = None,
    uses: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF", help="A version it reads. Repeatable.", autocompletion=offer_references
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A parameter; a value may be JSON. Repeatable."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag the run. Repeatable.")] = None,
    out: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:TYPE]=PATH", help="Log PATH when it exits with 0. Repeatable."),
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Run any program as a run, with what it uses and makes.

    What it uses is recorded before it starts, its outputs are logged when it exits with 0. The exit code is the
    program's. Programs that use begat, and 'begat log' and 'begat get' in scripts, take part in the same run. With
    --json the program's stdout goes to stderr.

    Examples:
      begat run --uses digits --out model=out/ -- python train.py --lr 0.1
      begat run --job nightly -- ./pipeline.sh
    """
    from begat.starting import start

    outputs = [_output(text) for text in out or ()]
    params = pairs(param, "--param")
    sys.stdout.flush()
    with opened(context, make=True) as store:
        started = start(
            store, name, job=job, uses=uses or (), params=params, tags=tag or (), argv=command
        )
        with started as run:
            if run.id and run.record.pid != os.getpid():
                note(f"begat: takes part in the run {run.name}, which is open around it")
            code = _execute(command, run, store.path, stdout=2 if as_json else None)
            if code == 0:
                with shown(quiet=quiet or as_json):
                    _log_outputs(run, outputs, quiet=quiet)
        if as_json:
            say_json({**run_summary(run), "exit_code": code})
        elif not quiet:
            note(f"begat: the run {run.name} ({run.id}) is {run.status}")
    if code:
        raise typer.Exit(code)


def _output(text: str) -> Output:
    from begat.artifact import Artifact
    from begat.config import without_secrets

    label, equals, path = text.partition("=")
    name, colon, type = label.partition(":")
    if not (name and equals and path) or (colon and not type) or "://" in label:
        raise Misuse(
            f"--out is given as NAME=PATH or NAME:TYPE=PATH, not {without_secrets(text)!r}"
        )
    draft = Artifact(name, type or None)  # refuses bad names before hours of work
    return Output(draft.name, draft.type, Path(path))


def _log_outputs(run: Run, outputs: Sequence[Output], *, quiet: bool) -> None:
    if not run.id:  # one of many processes: the first one logs
        return
    for output in outputs:
        version = run.log_artifact(output.name, output.path, type=output.type)
        if not quiet:
            note(f"begat: {logged_text(version)}")


# --- the program ---


def _execute(command: Sequence[str], run: Run, store: Path, *, stdout: int | None) -> int:
    """The program's exit code as a shell gives it; the run is ended here unless that is 0."""
    environment = {**os.environ, "BEGAT_STORE": str(store)}
    with _passing_signals_on() as passing:
        try:
            child = subprocess.Popen(list(command), env=environment, stdout=stdout)
        except OSError as error:
            note(f"begat: {command[0]}: {error.strerror}")
            run.finish("failed", error=error)
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        passing.to(child)
        code = child.wait()
    if code == 0:
        return 0
    was_interrupted = passing.was_interrupted or code in (-signal.SIGINT, INTERRUPTED)
    run.finish(
        "interrupted" if was_interrupted else "failed",
        error=ChildProcessError(f"{command[0]} {_ending(code)}"),
    )
    return code if code > 0 else 128 - code


def _ending(code: int) -> str:
    """1 -> `exited with 1`, -9 -> `was ended by SIGKILL`."""
    if code > 0:
        return f"exited with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-code}"


class _Passing:
    """Hands signals on to the program; those that come before it is there reach it when it is."""

    def __init__(self) -> None:
        self.was_interrupted = False
        self._child: subprocess.Popen[Any] | None = None
        self._waiting: list[int] = []

    def to(self, child: subprocess.Popen[Any]) -> None:
        self._child = child
        for number in self._waiting:
            child.send_signal(number)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.was_interrupted |= number == signal.SIGINT
        if self._child is None:
            self._waiting.append(number)
        elif number != signal.SIGINT or not _is_told_by_the_terminal():
            self._child.send_signal(number)


@contextlib.contextmanager
def _passing_signals_on() -> Generator[_Passing]:
    passing = _Passing()
    numbers = [
        signal.SIGINT,
        signal.SIGTERM,
        *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []),
    ]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may
    # What is ignored (nohup) stays ignored, for the program too.
    before = {
        number: found
        for number in numbers
        if (found := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in before:
        signal.signal(number, passing)
    try:
        yield passing
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_told_by_the_terminal() -> bool:
    """Whether a Ctrl-C reaches the program without us: a terminal sends it to every process in its foreground."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
