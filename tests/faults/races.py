"""Many processes on one store, each in a fork of its own; what they did comes back as lines of JSON."""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from begat import files
from begat.artifact import Artifact
from begat.errors import BegatError, CatalogBusy, NotFound
from begat.opening import open_store
from begat.store import Store

Tell: TypeAlias = Callable[[Any], None]
Work: TypeAlias = Callable[[Store, Tell], None]


@dataclass(frozen=True, slots=True)
class Worker:
    """A process at work; `told` is the file of what it did."""

    name: str
    pid: int
    told: Path

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.told.read_text().splitlines()]

    def is_running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> int:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


def start(name: str, root: Path, work: Work, folder: Path) -> Worker:
    """A process that opens the store and works; an error of it is told as `["error", text]`."""
    told = folder / f"{name}.told"
    told.touch()
    pid = os.fork()
    if pid:
        return Worker(name, pid, told)
    status = 1
    try:
        fd = os.open(told, os.O_WRONLY | os.O_APPEND)

        def tell(what: Any) -> None:
            os.write(fd, json.dumps(what).encode() + b"\n")

        random.seed(name)
        try:
            work(open_store(root), tell)
            status = 0
        except BaseException:  # noqa: BLE001 - the child ends here, and its parent is told
            tell(["error", traceback.format_exc()])
    finally:
        sys.stdout.flush()
        os._exit(status)


def finished(workers: list[Worker]) -> tuple[list[Any], list[str]]:
    """All that the workers told, after they ended, and what went wrong with them."""
    problems = [
        f"{worker.name} ended with {status}"
        for worker, status in [(worker, worker.wait()) for worker in workers]
        if status
    ]
    lines = [(worker.name, line) for worker in workers for line in worker.lines()]
    problems += [f"{name}: {line[1]}" for name, line in lines if line[0] == "error"]
    return [line for _, line in lines if line[0] != "error"], problems


# --- one name, many writers ---


def content_of(writer: int, number: int) -> bytes:
    return f"version {number} of writer {writer}".encode()


def writer_of(writer: int, count: int) -> Work:
    def work(store: Store, tell: Tell) -> None:
        for number in range(count):
            version = store.log_artifact("one", content_of(writer, number))
            tell([version.number, writer, number, version.is_new])

    return work


def numbering_problems(root: Path, folder: Path, *, writers: int, versions: int) -> list[str]:
    """What is wrong after several processes logged versions of one name at the same time."""
    open_store(root).close()
    workers = [start(f"w{n}", root, writer_of(n, versions), folder) for n in range(writers)]
    rows, problems = finished(workers)
    numbers = sorted(row[0] for row in rows)
    if numbers != list(range(1, writers * versions + 1)):
        problems.append(f"{len(numbers)} versions were acknowledged, {len(set(numbers))} distinct")
    store = open_store(root)
    try:
        for number, writer, count, is_new in rows:
            found = store.get_artifact(f"one:v{number}").read_bytes("one")
            if found != content_of(writer, count) or not is_new:
                problems.append(f"one:v{number} holds {found!r}")
        if rows and store.get_artifact("one").number != numbers[-1]:
            problems.append("latest is not the highest number")
    finally:
        store.close()
    return problems


# --- gc against writers ---


def slowly(pause_s: float) -> None:
    """Let each operation on files of this process take a while."""
    files.fault = lambda operation, path: time.sleep(pause_s)


def churn(name: str, seconds: float, *, pause_s: float = 0.0) -> Work:
    """Log again and again, some content of one's own and some that others have; delete what is two versions old."""

    def work(store: Store, tell: Tell) -> None:
        if pause_s:
            slowly(pause_s)
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end:
            count += 1
            own, shared = f"{name} {count}".encode() * 30, f"shared {count % 5}".encode() * 40
            draft = Artifact(name).add(own, "own").add(shared, "shared")
            version = store.log_artifact(draft)
            tell(["made", version.ref, own.decode(), shared.decode()])
            if version.number > 2:
                ref = f"{name}:v{version.number - 2}"
                store.delete(ref)
                tell(["deleted", ref])

    return work


def collect(seconds: float) -> Work:
    """Collect garbage again and again."""

    def work(store: Store, tell: Tell) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                report = store.gc(dry_run=False, wait=20)
                tell(["freed", report.freed_bytes])
            except CatalogBusy as error:
                tell(["busy", str(error)])

    return work


def read_all(seconds: float) -> Work:
    """Read whatever is there, with a handle that stays and with readers that are new each time."""

    def work(store: Store, tell: Tell) -> None:
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end:
            for artifact in store.artifacts():
                for version in store.versions(artifact.name):
                    try:
                        data = {e.path: version.read_bytes(e.path) for e in version.entries}
                        count += len(data)
                    except (NotFound, BegatError):
                        # Deleted, and collected, while it was read: anything else is a finding.
                        if version.state != "deleted":
                            raise
        tell(["read", count])

    return work


def race_problems(rows: list[Any], root: Path) -> list[str]:
    """What is wrong with what the writers made, and was not deleted."""
    store = open_store(root)
    try:
        problems = [f"verify: {each.place}: {each.problem}" for each in store.verify().damaged]
        deleted = {row[1] for row in rows if row[0] == "deleted"}
        for row in rows:
            if row[0] != "made" or row[1] in deleted:
                continue
            version = store.get_artifact(row[1])
            for path, text in (("own", row[2]), ("shared", row[3])):
                try:
                    if version.read_bytes(path) != text.encode():
                        problems.append(f"{row[1]}/{path} reads wrong")
                except BegatError as error:
                    problems.append(f"{row[1]}/{path}: {type(error).__name__}: {error}")
        return problems
    finally:
        store.close()


# --- gc at a chosen moment of a log ---


def paused_at(number: int, folder: Path, name: str, data: bytes) -> Work:
    """Log, and wait in the operation with this number until the file `go` is there."""

    def work(store: Store, tell: Tell) -> None:
        count = 0

        def pause(operation: str, path: str) -> None:
            nonlocal count
            count += 1
            if count - 1 != number:
                return
            (folder / "paused").touch()
            while not (folder / "go").exists():
                time.sleep(0.001)

        files.fault = pause
        version = store.log_artifact(name, data)
        tell(["made", version.ref, count])

    return work


def gc_during_a_log(root: Path, folder: Path, data: bytes) -> list[str]:
    """What is wrong when gc comes at each operation of a log, in another process; the store stays the same one."""
    problems: list[str] = []
    store = open_store(root)
    try:
        at, count = 0, 1
        while at < count:
            content = data + str(at).encode()
            for name in ("paused", "go"):
                (folder / name).unlink(missing_ok=True)
            worker = start(f"log-{at}", root, paused_at(at, folder, "logged", content), folder)
            while not (folder / "paused").exists() and worker.is_running():
                time.sleep(0.001)
            try:
                store.gc(dry_run=False, wait=0.05)
            except CatalogBusy:
                pass  # so it must be from where the writer holds its lock
            (folder / "go").touch()
            rows, wrong = finished([worker])
            problems += [f"gc at operation {at}: {each}" for each in wrong]
            for _, ref, operations in rows:
                count = operations
                try:
                    if store.get_artifact(ref).read_bytes("logged") != content:
                        problems.append(f"gc at operation {at}: {ref} reads wrong")
                except BegatError as error:
                    problems.append(f"gc at operation {at}: {ref}: {error}")
            at += 1
            if not rows:
                break
        problems += [f"verify: {each.place}: {each.problem}" for each in store.verify().damaged]
        if at < 8:
            problems.append(f"only {at} operations were seen")
        return problems
    finally:
        store.close()
