"""The same works by other tools, beside the same floor in the same run, where somebody has installed them.

A tool logs a file or folder in a process of its own, which is timed from its start to its end, begat's too. Python
packages are looked for in the environment that `--peers` names, commands on PATH. What is not there is not measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from measure import Operation
from report import Row, compared
from scene import Scene, remove, run, tree_bytes
from works import large_file, size_name, small_tree

_BEGAT = """
import begat
with begat.open_store("store") as store:
    store.log_artifact("data", source)
"""
_WANDB = """
import wandb
with wandb.init(project="bench", mode="offline", settings=wandb.Settings(console="off")) as run:
    artifact = wandb.Artifact("data", type="dataset")
    artifact.add_dir(source) if os.path.isdir(source) else artifact.add_file(source)
    run.log_artifact(artifact)
"""
_MLFLOW = """
import mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
with mlflow.start_run():
    mlflow.log_artifacts(source) if os.path.isdir(source) else mlflow.log_artifact(source)
"""
# Making the tables takes MLflow seconds, and is done once.
_MLFLOW_DATABASE = """
import mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.search_experiments()
"""


@dataclass(frozen=True)
class Peer:
    """A tool: the program or commands that log `{source}`, in a home of its own that commands before may prepare."""

    name: str
    module: str = ""
    program: str = ""
    commands: tuple[tuple[str, ...], ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def is_here(self, python: Path) -> bool:
        """Whether it can be run."""
        if not self.module:
            return shutil.which(self.commands[0][0]) is not None
        probe = f"import importlib.util as u, sys; sys.exit(u.find_spec({self.module!r}) is None)"
        return subprocess.run([python, "-c", probe], check=False).returncode == 0

    def steps(self, python: Path, source: Path) -> tuple[list[list[str]], list[list[str]]]:
        """The commands that are not timed, and those that are."""
        program = f"import os, sys\nsource = sys.argv[1]\n{self.program}"
        logs = [[str(python), "-c", program, str(source)]] if self.program else []

        def filled(commands: tuple[tuple[str, ...], ...]) -> list[list[str]]:
            return [
                [word.format(python=python, source=source) for word in words] for words in commands
            ]

        return filled(self.before), logs + filled(self.commands)


PEERS = (
    Peer("wandb offline", module="wandb", program=_WANDB, environment={"WANDB_SILENT": "true"}),
    Peer(
        "MLflow, SQLite",
        module="mlflow",
        program=_MLFLOW,
        before=(("{python}", "-c", _MLFLOW_DATABASE),),
    ),
    Peer(
        "DVC",
        module="dvc",
        # It logs what lies in its workspace.
        before=(
            ("{python}", "-m", "dvc", "init", "--no-scm", "-q"),
            ("cp", "-r", "{source}", "data"),
        ),
        commands=(("{python}", "-m", "dvc", "add", "-q", "data"),),
        environment={"DVC_NO_ANALYTICS": "1"},
    ),
    Peer(
        "restic",
        before=(("restic", "init", "-q", "-r", "repo"),),
        commands=(("restic", "backup", "-q", "-r", "repo", "{source}"),),
        environment={"RESTIC_PASSWORD": "bench"},
    ),
    Peer(
        "borg",
        before=(("borg", "init", "-e", "none", "repo"),),
        commands=(("borg", "create", "repo::one", "{source}"),),
    ),
)


# What a caller has set for a server or a repository of theirs.
_SETTINGS = ("MLFLOW_", "WANDB_", "DVC_", "RESTIC_", "BORG_")


def peers(scene: Scene, python: Path) -> Iterator[Row]:
    """A large file and many small files, logged by begat and by each tool that is there."""
    python = Path(os.path.abspath(python))  # not resolved: an environment's interpreter is a link
    here = [peer for peer in PEERS if peer.is_here(python)]
    for peer in PEERS:
        if peer not in here:
            print(f"peers: {peer.name} is not installed, and not measured", file=sys.stderr)
    make = ("{python}", "-c", "import begat; begat.open_store('store').close()")
    ours = Peer("begat", module="begat", program=_BEGAT, before=(make,))
    length = scene.size.large_bytes
    for text, source in (
        (f"a new file of {size_name(length)}", large_file(scene, "structure", length)),
        (f"{scene.size.small_files:,} new files of 20 KiB", small_tree(scene)),
    ):
        operations = {"floor": scene.copying(source)}
        for peer in (ours, *here):
            its_python = Path(sys.executable) if peer is ours else python
            operations[peer.name] = _logging(scene, peer, its_python, source)
        costs = scene.in_turns(operations)
        for peer in (ours, *here):
            name = f"{peer.name}: {text}"
            row = compared("peers", name, "cp -r", costs["floor"], costs[peer.name])
            yield replace(row, anonymous_bytes=None)  # that of the process which started it


def _logging(scene: Scene, peer: Peer, python: Path, source: Path) -> Operation:
    home = scene.root / "home"
    before, logs = peer.steps(python, source)
    environment = {name: v for name, v in os.environ.items() if not name.startswith(_SETTINGS)}
    environment |= {"HOME": str(home), **peer.environment}
    started: list[int] = []  # filled in the child

    def each(commands: list[list[str]]) -> None:
        for command in commands:
            run(*command, env=environment, cwd=home)

    def prepare() -> None:
        remove(home)
        home.mkdir()
        each(before)
        started.append(tree_bytes(home))

    return Operation(
        lambda _: each(logs),
        prepare,
        lambda _: {"stored_bytes": tree_bytes(home) - started[-1]},
    )
