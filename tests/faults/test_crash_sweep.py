"""Every operation of log, alias, delete, gc and download is killed and failed; nothing published ever breaks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from begat import locks
from faults.injecting import ERRORS, KILL, SQLITE_ERRORS, STATEMENT, Point
from faults.stories import STORIES
from faults.sweeping import (
    Sweep,
    changing,
    in_memory,
    of_files,
    of_statements,
    order_problems,
    swept,
)
from faults.sweeping import prepared as made_ready

_ready: dict[str, tuple[Sweep, tuple[Point, ...]]] = {}


@pytest.fixture(scope="module")
def workshop() -> Iterator[Path]:
    with in_memory() as folder:
        yield folder
    _ready.clear()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process waits here, so gc need not leave the gate open between its steps."""
    monkeypatch.setattr(locks, "_OPEN_AT_LEAST_S", 0.0)


def prepared(name: str, workshop: Path) -> tuple[Sweep, tuple[Point, ...]]:
    """A story with its points, made ready once in this process."""
    if name not in _ready:
        _ready[name] = made_ready(name, workshop)
    return _ready[name]


# gc ends well where it has no room for packs that it would write anew, and warns.
pytestmark = pytest.mark.filterwarnings("ignore:the disk is too full:begat.errors.BegatWarning")

FILE_STORIES = [name for name in STORIES if name not in ("alias", "delete")]


def test_the_sweep_is_not_empty(workshop: Path) -> None:
    counts = {name: prepared(name, workshop)[1] for name in STORIES}
    kills = {name: len(changing(points)) for name, points in counts.items()}
    errors = {name: len(of_files(points)) for name, points in counts.items()}
    # Of alias and delete only SQLite changes files: `test_strace_sweep` stops them at each of its calls.
    assert min(kills.values()) > 6
    assert min(kills[name] for name in FILE_STORIES) > 24
    assert min(kills[name] + len(ERRORS) * errors[name] for name in FILE_STORIES) > 100
    assert sum(errors[name] for name in FILE_STORIES if name not in ("gc", "download")) > 80
    assert sum(errors.values()) > 140
    assert {point.operation for points in counts.values() for point in points} >= {
        *("create", "write", "fsync", "rename", "fsync-directory", "mkdir", "copy", "remove"),
        *("open-lock", "symlink", "chmod", STATEMENT),
    }


@pytest.mark.parametrize("name", STORIES)
def test_nothing_published_breaks_when_the_process_is_killed_at_any_step(
    name: str, workshop: Path
) -> None:
    sweep, points = prepared(name, workshop)
    assert swept(sweep, changing(points), KILL) == []


@pytest.mark.parametrize("fault", ERRORS)
@pytest.mark.parametrize("name", FILE_STORIES)
def test_nothing_published_breaks_and_nothing_is_left_when_any_step_fails(
    name: str, fault: str, workshop: Path
) -> None:
    sweep, points = prepared(name, workshop)
    assert swept(sweep, of_files(points), fault) == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, "SQLITE_AUTH") for name in ("second version", "log in a run", "alias", "delete", "gc")),
        *((name, "SQLITE_READONLY") for name in ("second version", "alias", "delete")),
    ],
)  # fmt: skip
def test_nothing_published_breaks_when_any_change_of_the_catalog_is_refused(
    name: str, fault: str, workshop: Path
) -> None:
    assert fault in SQLITE_ERRORS
    sweep, points = prepared(name, workshop)
    assert swept(sweep, of_statements(points), fault) == []


@pytest.mark.parametrize("name", FILE_STORIES)
def test_nothing_published_breaks_when_a_disk_fills_and_stays_full(
    name: str, workshop: Path
) -> None:
    sweep, points = prepared(name, workshop)
    assert swept(sweep, of_files(points)[::2], "ENOSPC", lasting=True) == []


@pytest.mark.parametrize("name", FILE_STORIES)
def test_bytes_are_durable_before_their_name_and_names_before_the_commit(
    name: str, workshop: Path
) -> None:
    sweep, points = prepared(name, workshop)
    assert order_problems(points, str(sweep.folder / "told")) == []
