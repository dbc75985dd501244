"""Checkpoint folders of a `Trainer`: which one was just written, which are gone, and which version each one is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

# Written into each checkpoint that is recorded, so that the folder says which version it is.
MARK_FILE = "begat.json"
# The Trainer writes it last.
_STATE_FILE = "trainer_state.json"


class Folders:
    """The checkpoint folders below an output folder, and when each was written as far as was looked.

    The hooks of `Trainer` are not told which folder they are about. In a hyperparameter search it is in a folder of the
    trial, elsewhere in the output folder itself; what is new since the last look tells.
    """

    def __init__(self, output_dir: str, trial_name: str | None) -> None:
        self._parents = [Path(output_dir)]
        if trial_name:  # it may have several levels
            self._parents.append(Path(output_dir, trial_name))
        self._written = {folder: _written_at(folder) for folder in self._found("checkpoint-*")}

    def __iter__(self) -> Iterator[str]:
        return iter(self._written)

    def take_new(self, step: int, best: str | None) -> str | None:
        """The folder that was just written for a step: the newest of those that have changed; None if none has."""
        name = f"checkpoint-{step}"
        beside = [_real(Path(best).parent / name)] if best else []
        new = self._take([*self._found(name), *beside])
        return new[-1] if new else None

    def take_all_new(self) -> list[str]:
        """What was written in the output folder without a hook being called, oldest first."""
        return self._take(_real(path) for path in self._parents[0].glob("checkpoint-*"))

    def take_gone(self) -> list[str]:
        """Those that were there and are no longer."""
        gone = [folder for folder in self._written if not os.path.isdir(folder)]
        for folder in gone:
            del self._written[folder]
        return gone

    def _found(self, name: str) -> list[str]:
        children = [path for parent in self._parents for path in parent.glob(name)]
        return [_real(path) for path in (*children, *self._parents[0].glob(f"*/{name}"))]

    def _take(self, folders: Iterable[str]) -> list[str]:
        times = {folder: _written_at(folder) for folder in folders}
        new = {
            folder: at
            for folder, at in times.items()
            if at is not None and at != self._written.get(folder)
        }
        self._written.update(new)
        return sorted(new, key=lambda folder: new[folder])


def step_of(folder: str) -> int | None:
    """The step in the name of a checkpoint folder."""
    digits = os.path.basename(folder).rpartition("-")[2]
    return int(digits) if digits.isdecimal() else None


def mark(folder: str, *, uid: str, run_id: str, name: str) -> None:
    """Write into a checkpoint folder which version of which artifact it will be."""
    facts = {"schema": 1, "artifact": name, "uid": uid, "run_id": run_id, "path": folder}
    Path(folder, MARK_FILE).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def marked(folder: str) -> str | None:
    """The id of the version that a checkpoint folder is, also if it was copied or downloaded; None if it says none."""
    uid = _facts_of(folder).get("uid")
    return uid if isinstance(uid, str) else None


def marked_in_place(folders: Iterable[str]) -> dict[str, str]:
    """Of folders that are where they were recorded, the ids of their versions: a copy is not what was saved."""
    found = {folder: _facts_of(folder) for folder in folders}
    return {
        folder: str(facts["uid"])
        for folder, facts in found.items()
        if facts.get("path") == folder and isinstance(facts.get("uid"), str)
    }


def _facts_of(folder: str) -> dict[str, Any]:
    # Anybody may have written it, so anything may be in it.
    with contextlib.suppress(OSError, ValueError):
        facts = json.loads(Path(folder, MARK_FILE).read_bytes())
        if isinstance(facts, dict):
            return cast("dict[str, Any]", facts)
    return {}


def _written_at(folder: str) -> int | None:
    with contextlib.suppress(OSError):
        return os.stat(os.path.join(folder, _STATE_FILE)).st_mtime_ns
    return None


def _real(path: Path) -> str:
    return os.path.realpath(path)
