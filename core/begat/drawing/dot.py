"""Lineage as Graphviz text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from begat.drawing.circles import in_order
from begat.drawing.labels import run_state, state_text
from begat.lineage import Graph
from begat.model import Edge, EdgeKind, VersionRecord
from begat.wording import printable, size_text


def draw_dot(graph: Graph) -> str:
    """A digraph from inputs to outputs: versions as boxes, runs as ellipses, confirmations dashed.

    As in the picture, these, and an arrow that leads back (a run used what it made itself), do not decide what stands
    further right: they are `constraint=false`, and what is left has no cycle.
    """
    return "\n".join(_lines(graph)) + "\n"


def _lines(graph: Graph) -> Iterator[str]:
    yield "digraph lineage {"
    yield "  rankdir=LR;"
    yield '  node [fontname="Helvetica", fontsize=11];'
    names = {uid: f"v{index}" for index, uid in enumerate(graph.versions)}
    for uid, version in graph.versions.items():
        style = "rounded,bold" if uid in graph.roots else "rounded"
        style += ",dashed" if version.state != "live" else ""
        yield f"  {names[uid]} [shape=box, style={_quoted(style)}, label={_version_label(version)}];"
    names |= {uid: f"r{index}" for index, uid in enumerate(graph.runs)}
    for uid, run in graph.runs.items():
        label = _quoted(run.name, run_state(run))
        yield f"  {names[uid]} [shape=ellipse, label={label}];"
    yield from _arrows(graph, names)
    yield "}"


def _arrows(graph: Graph, names: Mapping[str, str]) -> Iterator[str]:
    arrows = dict.fromkeys(
        _arrow(edge, names)
        for edge in graph.edges
        if edge.run_uid in graph.runs and edge.version_uid in graph.versions
    )
    after: dict[str, list[str]] = {name: [] for name in names.values()}
    for source, target, kind in arrows:
        if kind != "confirmed":
            after[source].append(target)
    _, back = in_order(after, (names[uid] for uid in graph.runs))
    for source, target, kind in arrows:
        style = ""
        if kind == "confirmed":
            style = " [style=dashed, constraint=false]"
        elif (source, target) in back:
            style = " [constraint=false]"
        yield f"  {source} -> {target}{style};"


def _arrow(edge: Edge, names: Mapping[str, str]) -> tuple[str, str, EdgeKind]:
    run, version = names[edge.run_uid], names[edge.version_uid]
    return (version, run, edge.kind) if edge.kind == "used" else (run, version, edge.kind)


def _version_label(version: VersionRecord) -> str:
    aliases = f"[{', '.join(version.aliases)}]" if version.aliases else ""
    facts = f"{version.type}, {size_text(version.size_bytes)}"
    return _quoted(version.ref, facts, *filter(None, (aliases, state_text(version))))


def _quoted(*lines: str) -> str:
    r"""A quoted string of Graphviz, its lines joined by `\n`; the backslash is an escape character there."""
    escaped = [printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    return '"' + "\\n".join(escaped) + '"'
