"""A catalog with a long history, written straight into its tables: running 100,000 runs would take hours."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from sqlalchemy import Integer, Table

import begat
from begat import tables

ARTIFACTS = 100
NEWEST = "newest"
_DIGEST = "b3:" + "0" * 64
# Inputs come mostly from what was made lately, as in a project that goes on.
_LATELY = 2_000


def make(path: Path, runs: int) -> None:
    """A store with so many runs: each used two versions that were there and made one."""
    begat.open_store(path).close()
    with contextlib.closing(sqlite3.connect(path / "catalog.sqlite")) as connection, connection:
        for table, rows in (
            (tables.artifacts, _artifacts(runs)),
            (tables.runs, _runs(runs)),
            (tables.versions, _versions(runs)),
            (tables.edges, _edges(runs)),
        ):
            marks = ", ".join("?" * len(table.columns))
            connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", rows)


def _row(table: Table, **given: str | int) -> tuple[object, ...]:
    """The columns of a table in order; those not given are empty."""
    return tuple(
        given.get(
            column.name, None if column.nullable else 0 if isinstance(column.type, Integer) else ""
        )
        for column in table.columns
    )


def _name(version: int, runs: int) -> str:
    return NEWEST if version == runs - 1 else f"artifact-{version % ARTIFACTS}"


def _artifacts(runs: int) -> Iterator[tuple[object, ...]]:
    numbers: dict[str, int] = {}
    for version in range(runs):
        name = _name(version, runs)
        numbers[name] = numbers.get(name, 0) + 1
    for name, last in numbers.items():
        yield _row(
            tables.artifacts,
            uid=f"a-{name}",
            name=name,
            type="model",
            last_number=last,
            latest_number=last,
        )


def _runs(runs: int) -> Iterator[tuple[object, ...]]:
    for run in range(runs):
        yield _row(
            tables.runs,
            uid=f"r-{run:07}",
            name=f"train-{run}",
            status="finished",
            started_at=run,
            ended_at=run,
            params='{"lr":0.1}',
            metrics='{"accuracy":0.9}',
            git="{}",
            command="{}",
            environment="{}",
        )


def _versions(runs: int) -> Iterator[tuple[object, ...]]:
    numbers: dict[str, int] = {}
    for version in range(runs):
        name = _name(version, runs)
        numbers[name] = numbers.get(name, 0) + 1
        yield _row(
            tables.versions,
            uid=f"v-{version:07}",
            artifact_uid=f"a-{name}",
            number=numbers[name],
            digest=_DIGEST,
            root=_DIGEST,
            metadata="{}",
            state="live",
            run_uid=f"r-{version:07}",
            token=f"t-{version}",
            created_at=version,
        )


def _edges(runs: int) -> Iterable[tuple[object, ...]]:
    dice = random.Random(3)
    for run in range(runs):
        used = {dice.randrange(max(0, run - _LATELY), run) for _ in range(2)} if run else set[int]()
        for position, version in enumerate([*sorted(used), run]):
            yield _row(
                tables.edges,
                run_uid=f"r-{run:07}",
                version_uid=f"v-{version:07}",
                kind="made" if version == run else "used",
                position=position,
                at=run,
                is_declared=1,
            )
