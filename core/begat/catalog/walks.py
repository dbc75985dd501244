"""Walks through the lineage: which versions, runs and edges lie upstream or downstream.

The rule of ancestry: a version made by a run at position p has as inputs exactly what that run had used at positions
below p. Uses come after the commit they use, and edges never move, so ancestry has no cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import Connection, Executable, and_, select

from begat.catalog.rows import EDGES, edge_record, is_among
from begat.catalog.statements import chunks
from begat.model import Edge
from begat.tables import edges

Way = Literal["upstream", "downstream"]

_near = edges.alias("near")  # towards where the walk came from
_far = edges.alias("far")
_KINDS: dict[Way, tuple[str, str]] = {"upstream": ("made", "used"), "downstream": ("used", "made")}
_OF_VERSIONS = EDGES.where(
    is_among(edges.c.version_uid, "versions"), is_among(edges.c.kind, "kinds")
)
_OF_RUNS = EDGES.where(is_among(edges.c.run_uid, "runs"), is_among(edges.c.kind, "kinds"))


@dataclass(slots=True)
class Found:
    """What a walk has met: uids of versions and runs, and edges."""

    versions: set[str] = field(default_factory=set[str])
    runs: set[str] = field(default_factory=set[str])
    edges: set[Edge] = field(default_factory=set[Edge])

    def add(self, edge: Edge) -> None:
        """Keep an edge and the run at its end."""
        self.edges.add(edge)
        self.runs.add(edge.run_uid)


def reached(
    connection: Connection, starts: Iterable[str], way: Way, *, through_confirmed: bool = False
) -> set[str]:
    """The uids of all versions upstream or downstream of some, those included."""
    found: set[str] = set()
    for chunk in chunks(starts):
        found.update(chunk)
        statement = _recursive(way, through_confirmed=through_confirmed)
        found.update(row[0] for row in connection.execute(statement, {"starts": chunk}))
    return found


def _recursive(way: Way, *, through_confirmed: bool) -> Executable:
    near_kinds, far_kinds = _kinds(way, through_confirmed=through_confirmed)
    seed = select(edges.c.version_uid.label("uid")).where(is_among(edges.c.version_uid, "starts"))
    walk = seed.cte("walk", recursive=True)
    is_in_order = (
        _far.c.position < _near.c.position
        if way == "upstream"
        else _far.c.position > _near.c.position
    )
    near = and_(_near.c.version_uid == walk.c.uid, _near.c.kind.in_(near_kinds))
    far = and_(_far.c.run_uid == _near.c.run_uid, _far.c.kind.in_(far_kinds), is_in_order)
    # UNION, not UNION ALL: a version that is met again is not walked again.
    walk = walk.union(
        select(_far.c.version_uid).select_from(walk.join(_near, near).join(_far, far))
    )
    return select(walk.c.uid)


def _kinds(way: Way, *, through_confirmed: bool) -> tuple[Sequence[str], Sequence[str]]:
    near, far = _KINDS[way]
    if not through_confirmed:
        return [near], [far]
    return (
        ["made", "confirmed"] if near == "made" else [near],
        ["made", "confirmed"] if far == "made" else [far],
    )


def walk(
    connection: Connection,
    way: Way,
    *,
    version_uids: Iterable[str],
    run_uids: Iterable[str],
    depth: int | None,
    through_confirmed: bool = False,
) -> Found:
    """Everything upstream or downstream of versions and runs, at most `depth` versions away."""
    found = Found(set(version_uids), set(run_uids))
    step = _Step(connection, found, way, *_kinds(way, through_confirmed=through_confirmed))
    if depth is None:
        starts = found.versions | step.from_runs(found.runs)
        found.versions = reached(connection, starts, way, through_confirmed=through_confirmed)
        step.from_versions(found.versions)
        return found
    # Level by level; what a starting run points to is one version away already.
    level, waiting = set(found.versions), step.from_runs(found.runs) if depth else set[str]()
    walked: set[str] = set()
    for _ in range(depth):
        frontier = level - walked
        walked |= frontier
        level = waiting | step.from_versions(frontier)
        waiting = set[str]()
        found.versions |= level
        if level <= walked:
            break
    return found


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of a walk: from versions through edges of the near kinds to runs, from there through the far kinds."""

    connection: Connection
    found: Found
    way: Way
    near_kinds: Sequence[str]
    far_kinds: Sequence[str]

    def from_runs(self, run_uids: set[str]) -> set[str]:
        """Add all far edges of runs; the uids of the versions they lead to."""
        met = _edges(self.connection, _OF_RUNS, "runs", run_uids, self.far_kinds)
        for edge in met:
            self.found.add(edge)
        return {edge.version_uid for edge in met}

    def from_versions(self, version_uids: set[str]) -> set[str]:
        """Add the edges from versions through their runs to the next versions; the uids of those."""
        is_upstream = self.way == "upstream"
        limits: dict[str, int] = {}
        for edge in _edges(
            self.connection, _OF_VERSIONS, "versions", version_uids, self.near_kinds
        ):
            self.found.add(edge)
            known = limits.get(edge.run_uid, edge.position)
            limits[edge.run_uid] = (max if is_upstream else min)(known, edge.position)
        beyond: set[str] = set()
        for edge in _edges(self.connection, _OF_RUNS, "runs", limits, self.far_kinds):
            limit = limits[edge.run_uid]
            if edge.position < limit if is_upstream else edge.position > limit:
                self.found.add(edge)
                beyond.add(edge.version_uid)
        return beyond


def add_confirmed(connection: Connection, found: Found) -> None:
    """Add who confirmed the versions that were met, without walking on from there."""
    for edge in _edges(connection, _OF_VERSIONS, "versions", found.versions, ["confirmed"]):
        found.add(edge)


def _edges(
    connection: Connection,
    statement: Executable,
    name: str,
    uids: Iterable[str],
    kinds: Sequence[str],
) -> list[Edge]:
    found: list[Edge] = []
    for chunk in chunks(uids):
        rows = connection.execute(statement, {name: chunk, "kinds": kinds}).all()
        found.extend(edge_record(row) for row in rows)
    return found
