"""Lineage as Graphviz text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from begat.drawing.labels import run_state, state_text
from begat.lineage import Graph
from begat.model import Edge, VersionRecord
from begat.wording import printable, size_text

_STYLES = {"used": "", "made": "", "confirmed": " [style=dashed]"}


def draw_dot(graph: Graph) -> str:
    """A digraph from inputs to outputs: versions as boxes, runs as ellipses, confirmations dashed."""
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
    yield from dict.fromkeys(
        _arrow(edge, names)
        for edge in graph.edges
        if edge.run_uid in graph.runs and edge.version_uid in graph.versions
    )
    yield "}"


def _arrow(edge: Edge, names: Mapping[str, str]) -> str:
    ends = [names[edge.run_uid], names[edge.version_uid]]
    if edge.kind == "used":
        ends.reverse()
    return f"  {' -> '.join(ends)}{_STYLES[edge.kind]};"


def _version_label(version: VersionRecord) -> str:
    aliases = f"[{', '.join(version.aliases)}]" if version.aliases else ""
    facts = f"{version.type}, {size_text(version.size_bytes)}"
    return _quoted(version.ref, facts, *filter(None, (aliases, state_text(version))))


def _quoted(*lines: str) -> str:
    r"""A quoted string of Graphviz, its lines joined by `\n`; the backslash is an escape character there."""
    escaped = [printable(line).replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    return '"' + "\\n".join(escaped) + '"'
