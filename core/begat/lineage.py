"""Walk the graph of versions and runs: what was made from what.

One rule gives a version its inputs: what its run had used *before* the version was made (a smaller `position`). So the
ancestry of versions never has a cycle, even when a run uses what it made itself.

Pure and iterative: the edges come from the catalog, and a chain of 100,000 versions does not exhaust the stack.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from begat.model import Edge, EdgeKind, RunRecord, VersionRecord


@dataclass(frozen=True, slots=True)
class _Index:
    """The edges of each run and of each version by kind, of several to one version the first; and all uses."""

    of_run: dict[tuple[str, EdgeKind], list[Edge]] = field(default_factory=dict[Any, list[Edge]])
    of_version: dict[tuple[str, EdgeKind], list[Edge]] = field(
        default_factory=dict[Any, list[Edge]]
    )
    uses: dict[str, list[Edge]] = field(default_factory=dict[str, list[Edge]])


@dataclass(frozen=True)
class Graph:
    """Versions, runs and the edges between them, as one piece of the catalog.

    `versions` and `runs` are by uid; `roots` are the uids of the versions or runs that were asked for. `edges` stand by
    run and position. One with an end outside the piece is kept in `edges`, and passed over by every walk.
    """

    versions: Mapping[str, VersionRecord]
    runs: Mapping[str, RunRecord]
    edges: tuple[Edge, ...]
    roots: tuple[str, ...] = ()

    def edges_of_run(self, run_uid: str, kind: EdgeKind) -> Sequence[Edge]:
        """The edges of a run to known versions, by position; of each version the first."""
        return self._index.of_run.get((run_uid, kind), ())

    def edges_of_version(self, version_uid: str, kind: EdgeKind) -> Sequence[Edge]:
        """The edges of a version to known runs, in the order in which the runs began; of each run the first."""
        return self._index.of_version.get((version_uid, kind), ())

    def inputs_before(self, edge: Edge) -> list[tuple[Edge, VersionRecord]]:
        """What the edge's run had used before this edge, by position: the inputs of what it made or confirmed."""
        used = self.edges_of_run(edge.run_uid, "used")
        before = used[: bisect_left(used, edge.position, key=_position)]
        return [(one, self.versions[one.version_uid]) for one in before]

    def questions_before(self, edge: Edge) -> list[tuple[Edge, VersionRecord]]:
        """Like `inputs_before`, with an input that was asked for in several ways once for each."""
        uses = self._index.uses.get(edge.run_uid, [])
        before = uses[: bisect_left(uses, edge.position, key=_position)]
        return [(one, self.versions[one.version_uid]) for one in before]

    def outputs_after(self, edge: Edge) -> list[tuple[Edge, VersionRecord]]:
        """What the edge's run made after this edge, by position: what came from the version it used."""
        made = self.edges_of_run(edge.run_uid, "made")
        after = made[bisect_right(made, edge.position, key=_position) :]
        return [(one, self.versions[one.version_uid]) for one in after]

    def inputs_of(self, version_uid: str) -> list[tuple[Edge, VersionRecord]]:
        """What the version was made from, by position; empty if no known run made it."""
        made = self.edges_of_version(version_uid, "made")
        return self.inputs_before(made[0]) if made else []

    def maker_of(self, version_uid: str) -> RunRecord | None:
        """The run that made the version; None if no known run did."""
        made = self.edges_of_version(version_uid, "made")
        return self.runs[made[0].run_uid] if made else None

    def outputs_of(self, run_uid: str) -> list[tuple[Edge, VersionRecord]]:
        """What the run made, by position."""
        made = self.edges_of_run(run_uid, "made")
        return [(edge, self.versions[edge.version_uid]) for edge in made]

    def consumers_of(self, version_uid: str) -> list[tuple[Edge, RunRecord]]:
        """The runs that used the version, in the order in which they began."""
        used = self.edges_of_version(version_uid, "used")
        return [(edge, self.runs[edge.run_uid]) for edge in used]

    def ancestors(self, uid: str) -> list[VersionRecord]:
        """Every version that a version was made from, or a run used; nearest first, without itself."""
        return self._reached(uid, "used")

    def descendants(self, uid: str) -> list[VersionRecord]:
        """Every version made from a version, or by a run; nearest first, without itself."""
        return self._reached(uid, "made")

    def shortest_path(self, from_uid: str, to_uid: str) -> tuple[str, ...]:
        """How one version came from another, as uids: version, run, version, ...; empty if it did not.

        Among paths of equal length, the one by the earliest runs and positions. The path from a version to itself is
        that version.
        """
        if from_uid not in self.versions or to_uid not in self.versions:
            return ()
        came: dict[str, tuple[str, str]] = {}
        if from_uid != to_uid:
            for source, edge in self._steps(from_uid, kind="made"):
                came[edge.version_uid] = (source, edge.run_uid)
                if edge.version_uid == to_uid:
                    break
            else:
                return ()
        path = [to_uid]
        while path[-1] != from_uid:
            source, run = came[path[-1]]
            path += [run, source]
        return tuple(reversed(path))

    # --- inside ---

    @cached_property
    def _index(self) -> _Index:
        """The edges by their ends, in order; made when it is first asked for, since a list of edges needs none."""
        index = _Index()
        seen: set[tuple[str, str, EdgeKind]] = set()
        age = {uid: place for place, uid in enumerate(sorted(self.runs, key=self._run_order))}
        ordered = sorted(
            (age[edge.run_uid], edge.position, self.versions[edge.version_uid].name, place)
            for place, edge in enumerate(self.edges)
            if edge.version_uid in self.versions and edge.run_uid in self.runs
        )
        for *_, place in ordered:
            edge = self.edges[place]
            if edge.kind == "used":
                index.uses.setdefault(edge.run_uid, []).append(edge)
            key = (edge.run_uid, edge.version_uid, edge.kind)
            if key in seen:
                continue
            seen.add(key)
            index.of_run.setdefault((edge.run_uid, edge.kind), []).append(edge)
            index.of_version.setdefault((edge.version_uid, edge.kind), []).append(edge)
        return index

    def _run_order(self, uid: str) -> tuple[int, str]:
        return self.runs[uid].started_at, uid

    def _reached(self, uid: str, kind: EdgeKind) -> list[VersionRecord]:
        own = [edge.version_uid for edge in self.edges_of_run(uid, kind)]
        start = own if uid in self.runs else [uid]
        found = dict.fromkeys(own)
        for _, edge in self._steps(*start, kind=kind):
            found.setdefault(edge.version_uid)
        return [self.versions[version] for version in found]

    def _steps(self, *start: str, kind: EdgeKind) -> Iterator[tuple[str, Edge]]:
        """Each version reached, once, as (the version it was reached from, the edge it was reached by).

        A run may have used and made thousands; of its edges, each is looked at once, whatever number of versions lead
        into the run: `handled` keeps how far its list of edges has been gone through.
        """
        is_upstream = kind == "used"
        seen = set(start)
        handled: dict[str, int] = {}
        waiting = deque(dict.fromkeys(start))
        while waiting:
            source = waiting.popleft()
            for entry in self.edges_of_version(source, "made" if is_upstream else "used"):
                for edge in self._unhandled(entry, handled, is_upstream=is_upstream):
                    if edge.version_uid not in seen:
                        seen.add(edge.version_uid)
                        waiting.append(edge.version_uid)
                        yield source, edge

    def _unhandled(
        self, entry: Edge, handled: dict[str, int], *, is_upstream: bool
    ) -> Sequence[Edge]:
        run = entry.run_uid
        if is_upstream:
            edges = self.edges_of_run(run, "used")
            first, last = handled.get(run, 0), bisect_left(edges, entry.position, key=_position)
            handled[run] = max(first, last)
        else:
            edges = self.edges_of_run(run, "made")
            first = bisect_right(edges, entry.position, key=_position)
            last = handled.get(run, len(edges))
            handled[run] = min(first, last)
        return edges[first:last]


def _position(edge: Edge) -> int:
    return edge.position
