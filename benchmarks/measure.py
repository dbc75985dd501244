"""What an operation costs: each runs in a process of its own, which is watched from outside.

The process is a fork of this one, which has begat loaded and holds no store, no thread and no data. So the memory of
one operation is not that of another, and what is measured is the work and not the imports.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SAMPLE_S = 0.005
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Operation:
    """Something to be measured: `prepare` sets the scene, `work` is timed, `after` tells what came of it."""

    work: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    after: Callable[[Any], Mapping[str, Any]] = lambda _scene: {}


@dataclass(frozen=True)
class Cost:
    """What one operation took: time, CPU of the process and its children, the most anonymous memory it held."""

    seconds: float
    cpu_seconds: float
    anonymous_bytes: int
    told: Mapping[str, Any] = field(default_factory=dict[str, Any])


def cost_of(operation: Operation) -> Cost:
    """Run an operation in a child, and watch its anonymous memory (RssAnon) from here every 5 ms."""
    ours, theirs = _FORK.Pipe()
    child = _FORK.Process(target=_run, args=(operation, theirs))
    child.start()
    theirs.close()
    most = 0
    try:
        while not ours.poll(SAMPLE_S):
            most = max(most, anonymous_bytes(child.pid))
        seconds, cpu_seconds, at_end, told = ours.recv()
    except EOFError:
        child.join()
        raise SystemExit("an operation failed; its traceback is above") from None
    child.join()
    return Cost(seconds, cpu_seconds, max(most, at_end), told)


def apart(work: Callable[[], object]) -> None:
    """Do something in a process of its own, so that what it loads and holds stays there."""
    cost_of(Operation(lambda _scene: work()))


def in_turns(operations: Mapping[str, Operation], turns: int) -> dict[str, list[Cost]]:
    """The costs of several operations, done in turns so that all see the same machine."""
    costs: dict[str, list[Cost]] = {name: [] for name in operations}
    for _ in range(turns):
        for name, operation in operations.items():
            costs[name].append(cost_of(operation))
    return costs


def anonymous_bytes(pid: int | None = None) -> int:
    """The anonymous memory of a process now: what it allocated, without what is only mapped from files."""
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text()
    except OSError:  # it has just ended, or there is no /proc
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def _run(operation: Operation, answer: Connection) -> None:
    scene = operation.prepare()
    cpu, start = _cpu_seconds(), time.perf_counter()
    operation.work(scene)
    seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    at_end = anonymous_bytes()
    answer.send((seconds, cpu, at_end, dict(operation.after(scene))))


def _cpu_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
