"""Faults at single system calls, those of SQLite and of other libraries too: strace stops a forked process at each.

    traced(act, folder, below=store)                          every changing call of `act` below a folder
    traced(act, folder, below=store, at=point, fault="EIO")   the same, with a fault at one of them

A killed process is killed before the call is made, and a call that fails with an error number is not made at all.
"""

import ctypes
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from begat.errors import BegatError
from faults.injecting import BROKE, FINISHED, KILL, REFUSED, Outcome, Point

# What can change a file system, apart from memory that is mapped; opening is counted where it may make a file.
_WRITING = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
CHANGING = (
    *_WRITING,
    *("copy_file_range", "sendfile"),
    *("ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "sync_file_range"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "open", "openat", "creat"),
    *("chmod", "fchmod", "fchmodat", "chown", "fchown", "fchownat", "utimensat"),
)
REMOVING = frozenset({"unlink", "unlinkat", "rmdir"})
# What a full disk lets happen all the same.
NEEDING_NO_SPACE = REMOVING | {"ftruncate", "truncate", "chmod", "fchmod", "chown", "fchown"}

_CALL = re.compile(r"(\d+) +(\w+)\((.*)")
# A path in a trace: quoted, or after the number of a descriptor.
_PATH = re.compile(r'(?<=[<"])/[^>"]*')
_RANDOM = re.compile(r"[0-9a-f]{16,}|/objects/[0-9a-f]{2}")
_PR_SET_PTRACER = 0x59616D61
_TRIES = 4
_TELLINGS = 6


class CannotTrace(Exception):
    """System calls cannot be watched here; the message says why and what to do."""


def traced(
    act: Callable[[Callable[[Any], None]], None],
    folder: Path,
    *,
    below: Sequence[Path],
    at: Point | None = None,
    fault: str = KILL,
) -> Outcome:
    """Run `act(acknowledge)` in a forked process under strace, with a fault at one of its calls if `at` is given.

    `points` are the changing calls that name a path in `below`. A point's number is which call of that name it is:
    on that path, or where the path is a new one each time, among all.
    `hit` is the call that really was stopped, None if it was not come to. Raises `CannotTrace`.
    """
    strace = shutil.which("strace")
    if strace is None:
        raise CannotTrace(
            "strace is missing, so no system call can be stopped. Install it (apt-get install strace)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    trace, acks, told = folder / "trace", folder / "acks", folder / "told"
    for path in (trace, acks, told):
        path.unlink(missing_ok=True)
        path.touch()
    go, let_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(let_go)
        _be_traced(act, go, acks, told)
    os.close(go)
    # Never --seccomp-bpf: with strace 6.1 it turns the injection of signals off, and says nothing.
    command = [strace, "-f", "-y", "-p", str(pid), "-o", str(trace), *_injection(at, fault)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    said = ""
    while line := tracer.stderr.readline():
        said += line
        if "attached" in line:
            break
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said += tracer.communicate()[1]
        raise CannotTrace(
            f"strace may not watch another process here ({said.strip()}). In a container: "
            "--cap-add=SYS_PTRACE; elsewhere: sysctl kernel.yama.ptrace_scope=1, or run as root"
        )
    os.write(let_go, b".")
    os.close(let_go)
    _, status = os.waitpid(pid, 0)
    tracer.communicate()
    lines = trace.read_text(errors="replace").splitlines()
    points = tuple(_points(lines, pid, below))
    return Outcome(
        os.waitstatus_to_exitcode(status),
        os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
        points,
        _hit(lines, pid, at, fault),
        tuple(json.loads(line) for line in acks.read_text().splitlines()),
        told.read_text(),
    )


def until_hit(tell: Callable[[], tuple[Outcome, list[str]]]) -> tuple[Outcome, list[str]]:
    """Tell a story again if the call that was to be stopped was not come to.

    Names and times differ from one telling to the next, and so, rarely, does how many pages SQLite writes.
    """
    outcome, problems = tell()
    for _ in range(_TRIES - 1):
        if outcome.hit is not None:
            break
        outcome, again = tell()
        problems += again
    return outcome, problems


def common_points(tell: Callable[[], Sequence[Point]]) -> tuple[Point, ...]:
    """The calls that a story comes to each time it is told.

    Names are random, so a page of SQLite's index is split at one place or another: one telling in eight of a story
    wrote four pages more than the others. A fault at such a write would be waited for in vain, often in every try.
    """
    first, *others = (tell() for _ in range(_TELLINGS))
    met_in_all = set[Any].intersection(*({_identity(p) for p in points} for points in others))
    return tuple(point for point in first if _identity(point) in met_in_all)


def _identity(point: Point) -> tuple[str, str | None, int]:
    return point.operation, lasting_path(point.operation, point.path), point.number


def sampled(points: Sequence[Point], most: int) -> list[Point]:
    """At most about `most` points: every one that is not a write of SQLite's pages, and each k-th of those."""
    pages = [point for point in points if point.operation == "pwrite64"]
    others = len(points) - len(pages)
    step = max(1, -(-len(pages) // max(1, most - others)))
    chosen = {id(point) for point in pages[::step]} | {id(point) for point in pages[-1:]}
    return [p for p in points if p.operation != "pwrite64" or id(p) in chosen]


def spread(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points, evenly spread over all of them, the last one included."""
    count = min(len(points), most)
    return [points[(at + 1) * len(points) // count - 1] for at in range(count)]


def _be_traced(
    act: Callable[[Callable[[Any], None]], None], go: int, acks: Path, told: Path
) -> None:
    """The life of the child: wait for strace, act, and tell what came of it."""
    status = BROKE
    try:
        # Where Yama lets only parents trace: strace is our brother.
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
        acks_fd = os.open(acks, os.O_WRONLY | os.O_APPEND)

        def acknowledge(what: Any) -> None:
            os.write(acks_fd, json.dumps(what).encode() + b"\n")

        if os.read(go, 1):
            act(acknowledge)
            status = FINISHED
    except BegatError as error:
        told.write_text(f"{type(error).__name__}: {error}")
        status = REFUSED
    except BaseException:  # noqa: BLE001 - the child must end here, and tells its parent
        told.write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(status)


def _injection(at: Point | None, fault: str) -> list[str]:
    if at is None:
        return ["-e", f"trace={','.join(f'?{name}' for name in CHANGING)}"]
    what = "signal=KILL" if fault == KILL else f"error={fault}"
    name = at.operation
    path = lasting_path(name, at.path)
    only = ["-P", path] if path else []
    return [*only, "-e", f"trace={name}", "-e", f"inject={name}:{what}:when={at.number}"]


def lasting_path(operation: str, arguments: str) -> str | None:
    """The path that a call is about, if all in it are the same in each telling."""
    if operation in _WRITING:  # what is written may hold a path as well
        arguments = arguments.partition(",")[0]
    paths = _PATH.findall(arguments)
    return None if not paths or any(map(_RANDOM.search, paths)) else paths[-1]


def _points(lines: Iterable[str], pid: int, below: Sequence[Path]) -> Iterable[Point]:
    counts: Counter[tuple[str, str | None]] = Counter()
    for line in lines:
        found = _CALL.match(line)
        if found is None or int(found[1]) != pid:
            continue
        name, arguments = found[2], found[3]
        path = lasting_path(name, arguments)
        counts[name, None] += 1
        if path is not None:
            counts[name, path] += 1
        if name in ("open", "openat") and (path is None or "O_CREAT" not in arguments):
            # New names are made through `begat.files`, whose own sweep stops there; how many folders and modules are
            # opened before one is not the same each time.
            continue
        if any(str(folder) in arguments for folder in below):
            yield Point(counts[name, path], name, arguments)


def _hit(lines: Sequence[str], pid: int, at: Point | None, fault: str) -> Point | None:
    if at is None:
        return None
    calls = [found for line in lines if (found := _CALL.match(line)) and int(found[1]) == pid]
    of_name = [call for call in calls if call[2] == at.operation]
    call = next(itertools.islice(of_name, at.number - 1, None), None)
    if call is None:
        return None
    is_hit = call is of_name[-1] if fault == KILL else "(INJECTED)" in call[3]
    return Point(at.number, at.operation, call[3]) if is_hit else None
