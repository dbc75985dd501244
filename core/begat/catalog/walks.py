"""Walks through the lineage: which versions, runs and edges lie upstream or downstream.

The rule of ancestry: a version made by a run at position p has as inputs exactly what that run had used at positions
below p. Uses come after the commit they use, and edges never move, so ancestry has no cycle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from operator import gt, lt
from typing import Literal

import msgspec
from sqlalchemy import Connection, and_, func, or_, select

from begat.catalog.rows import COMMA, EDGES, edge_record, is_among_many
from begat.catalog.statements import Prepared, chunks
from begat.model import Edge
from begat.tables import edges

Way = Literal["upstream", "downstream"]

_near = edges.alias("near")  # towards where the walk came from
_far = edges.alias("far")
_KINDS: dict[Way, tuple[str, str]] = {"upstream": ("made", "used"), "downstream": ("used", "made")}
_IS_OF_KIND = is_among_many(edges.c.kind, "kinds")
_OF_VERSIONS = Prepared(EDGES.where(is_among_many(edges.c.version_uid, "uids"), _IS_OF_KIND))
_OF_RUNS = Prepared(EDGES.where(is_among_many(edges.c.run_uid, "uids"), _IS_OF_KIND))


class Found(msgspec.Struct):
    """What a walk has met: uids of versions and runs, and edges."""

    versions: set[str] = msgspec.field(default_factory=set[str])
    runs: set[str] = msgspec.field(default_factory=set[str])
    # In the order in which they were met.
    edges: dict[Edge, None] = msgspec.field(default_factory=dict[Edge, None])

    def add(self, met: Sequence[Edge]) -> None:
        """Keep edges and the runs at their ends."""
        self.edges.update(dict.fromkeys(met))
        self.runs.update(edge.run_uid for edge in met)


def reached(
    connection: Connection, starts: Iterable[str], way: Way, *, through_confirmed: bool = False
) -> set[str]:
    """The uids of all versions upstream or downstream of some, those included."""
    found: set[str] = set()
    for chunk in chunks(starts):
        found.update(chunk)
        statement = _recursive(way, through_confirmed=through_confirmed)
        met = statement.value(connection, starts=chunk)
        if met is not None:  # no start has an edge
            found.update(met.split(","))
    return found


@cache
def _recursive(way: Way, *, through_confirmed: bool) -> Prepared:
    near_kinds, far_kinds = _kinds(way, through_confirmed=through_confirmed)
    starts = is_among_many(edges.c.version_uid, "starts")
    seed = select(edges.c.version_uid.label("uid")).where(starts)
    walk = seed.cte("walk", recursive=True)
    is_in_order = (
        _far.c.position < _near.c.position
        if way == "upstream"
        else _far.c.position > _near.c.position
    )
    is_near = or_(*(_near.c.kind == kind for kind in near_kinds))
    is_far = or_(*(_far.c.kind == kind for kind in far_kinds))
    near = and_(_near.c.version_uid == walk.c.uid, is_near)
    far = and_(_far.c.run_uid == _near.c.run_uid, is_far, is_in_order)
    # UNION, not UNION ALL: a version that is met again is not walked again.
    walk = walk.union(
        select(_far.c.version_uid).select_from(walk.join(_near, near).join(_far, far))
    )
    # All in one text: rows by the thousand would cost time of their own.
    return Prepared(select(func.aggregate_strings(walk.c.uid, COMMA)))


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


class _Step(msgspec.Struct, frozen=True):
    """One step of a walk: from versions through edges of the near kinds to runs, from there through the far kinds."""

    connection: Connection
    found: Found
    way: Way
    near_kinds: Sequence[str]
    far_kinds: Sequence[str]

    def from_runs(self, run_uids: set[str]) -> set[str]:
        """Add all far edges of runs; the uids of the versions they lead to."""
        met = _edges(self.connection, _OF_RUNS, run_uids, self.far_kinds)
        self.found.add(met)
        return {edge.version_uid for edge in met}

    def from_versions(self, version_uids: set[str]) -> set[str]:
        """Add the edges from versions through their runs to the next versions; the uids of those."""
        is_upstream = self.way == "upstream"
        limits: dict[str, int] = {}
        near = _edges(self.connection, _OF_VERSIONS, version_uids, self.near_kinds)
        self.found.add(near)
        for edge in near:
            known = limits.get(edge.run_uid, edge.position)
            limits[edge.run_uid] = (max if is_upstream else min)(known, edge.position)
        is_beyond = lt if is_upstream else gt
        far = [
            edge
            for edge in _edges(self.connection, _OF_RUNS, limits, self.far_kinds)
            if is_beyond(edge.position, limits[edge.run_uid])
        ]
        self.found.add(far)
        return {edge.version_uid for edge in far}


def add_confirmed(connection: Connection, found: Found) -> None:
    """Add who confirmed the versions that were met, without walking on from there."""
    found.add(_edges(connection, _OF_VERSIONS, found.versions, ["confirmed"]))


def _edges(
    connection: Connection, statement: Prepared, uids: Iterable[str], kinds: Sequence[str]
) -> list[Edge]:
    found: list[Edge] = []
    for chunk in chunks(sorted(uids)):  # in the order of the index, which is then read once
        found.extend(map(edge_record, statement.each(connection, uids=chunk, kinds=kinds)))
    return found
