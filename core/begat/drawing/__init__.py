"""Lineage to look at: what `store.lineage()` gives, as a tree, as Graphviz text, as a picture, as JSON."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from begat.drawing.dot import draw_dot
from begat.drawing.svg import Theme, draw_svg
from begat.drawing.tree import Direction, draw_tree
from begat.facts import edge_facts, run_facts, version_facts
from begat.lineage import Graph
from begat.model import Edge, RunRecord, VersionRecord
from begat.wording import counted, printable

__all__ = ["Direction", "Lineage", "Theme"]


class Lineage:
    """Versions, runs and the edges between them, with ways to draw them.

    `versions` and `runs` stand in the order in which they came to be, `edges` by run and position. `graph` walks them:
    `graph.ancestors(uid)`, `graph.shortest_path(a, b)`.
    """

    __slots__ = ("direction", "edges", "graph", "runs", "versions")

    def __init__(self, graph: Graph, *, direction: Direction = "both") -> None:
        self.graph = graph
        self.direction: Direction = direction
        self.versions: tuple[VersionRecord, ...] = tuple(
            sorted(graph.versions.values(), key=attrgetter("created_at", "name", "number"))
        )
        self.runs: tuple[RunRecord, ...] = tuple(
            sorted(graph.runs.values(), key=attrgetter("started_at", "uid"))
        )
        order = {run.uid: index for index, run in enumerate(self.runs)}
        self.edges: tuple[Edge, ...] = tuple(
            sorted(graph.edges, key=lambda edge: order.get(edge.run_uid, len(order)))
        )

    def tree(self, *, ascii: bool = False) -> str:
        """Lines for the terminal: each root, with what it was made from and what was made from it.

        What was drawn once is named again as `(above)`. `ascii` leaves out every character that an old terminal or a
        log file might not take.
        """
        return draw_tree(self.graph, self.direction, ascii=ascii)

    def dot(self) -> str:
        """The graph in the language of Graphviz, from inputs to outputs."""
        return draw_dot(self.graph)

    def svg(self, *, theme: Theme = "light") -> str:
        """A self-contained picture, from inputs (left) to outputs (right).

        Above 400 versions and runs it shows one box for each artifact and one pill for each job, and says so.
        """
        return draw_svg(self.graph, title=f"Lineage of {self._root_names()}", theme=theme)

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON: `roots`, `versions`, `runs`, `edges`. Edges name versions by `ref` and runs by `run_id`.

        Times are microseconds since 1970-01-01 UTC. An edge whose other end is not part of this lineage is left out.
        """
        versions, runs = self.graph.versions, self.graph.runs
        return {
            "roots": [versions[uid].ref if uid in versions else uid for uid in self.graph.roots],
            "versions": [version_facts(version) for version in self.versions],
            "runs": [run_facts(run) for run in self.runs],
            "edges": [
                edge_facts(edge, versions[edge.version_uid])
                for edge in self.edges
                if edge.version_uid in versions and edge.run_uid in runs
            ],
        }

    def __repr__(self) -> str:
        counts = ", ".join(
            (
                counted(len(self.versions), "version"),
                counted(len(self.runs), "run"),
                counted(len(self.edges), "edge"),
            )
        )
        return f"<Lineage of {self._root_names()}: {counts}>"

    def _repr_svg_(self) -> str:
        return self.svg()

    def _repr_html_(self) -> str:
        # Wide lineage scrolls sideways; a notebook would shrink the bare picture until nothing is readable.
        return f'<div style="overflow-x: auto">{self.svg()}</div>'

    def _root_names(self) -> str:
        versions, runs = self.graph.versions, self.graph.runs
        names = [
            versions[uid].ref if uid in versions else runs[uid].name
            for uid in self.graph.roots
            if uid in versions or uid in runs
        ]
        if len(names) > 3:
            return printable(f"{', '.join(names[:2])} and {len(names) - 2} more")
        return printable(", ".join(names)) or "nothing"
