"""Lineage as a tree of lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from begat.drawing.labels import run_state, state_text
from begat.lineage import Graph
from begat.model import Edge, RunRecord, VersionRecord
from begat.wording import counted, printable, size_text

Direction = Literal["upstream", "downstream", "both"]
Way = Literal["upstream", "downstream"]

# Each level indents by six columns; a deeper tree is not read in a terminal.
MOST_VERSIONS_DEEP = 30


@dataclass(frozen=True, slots=True)
class _Item:
    """One line to come: a version, or a run at the edge by which it was reached."""

    text: str
    way: Way
    depth: int
    version: VersionRecord | None = None
    run_at: Edge | None = None


@dataclass(frozen=True, slots=True)
class _Joints:
    tee: str
    corner: str
    bar: str
    gap: str = "   "


_UNICODE = _Joints("├─ ", "└─ ", "│  ")
_ASCII = _Joints("|- ", "`- ", "|  ")


def draw_tree(graph: Graph, direction: Direction, *, ascii: bool) -> str:
    """The roots with all that is up or down from them; what was drawn once is named again as `(above)`."""
    joints = _ASCII if ascii else _UNICODE
    expanded: set[tuple[Way, str]] = set()
    blocks: list[str] = []
    for uid in graph.roots:
        if uid in graph.versions or uid in graph.runs:
            blocks.append("\n".join(_block(graph, uid, direction, joints, expanded)))
    text = "\n\n".join(blocks)
    return text.encode("ascii", "backslashreplace").decode() if ascii else text


def _block(
    graph: Graph, root: str, direction: Direction, joints: _Joints, expanded: set[tuple[Way, str]]
) -> Iterator[str]:
    ways: tuple[Way, ...] = ("upstream", "downstream") if direction == "both" else (direction,)
    yield _root_text(graph, root)
    items: list[_Item] = []
    for way in ways:
        expanded.add((way, root))
        items += _under_root(graph, root, way)
    # Depth first with an own stack: a chain of versions may be longer than Python's.
    waiting = [("", index == 0, item) for index, item in enumerate(reversed(items))]
    while waiting:
        indent, is_last, item = waiting.pop()
        children, remark = _expand(graph, item, expanded)
        yield f"{indent}{joints.corner if is_last else joints.tee}{item.text}{remark}"
        deeper = indent + (joints.gap if is_last else joints.bar)
        waiting += [(deeper, index == 0, child) for index, child in enumerate(reversed(children))]


def _expand(graph: Graph, item: _Item, expanded: set[tuple[Way, str]]) -> tuple[list[_Item], str]:
    if item.run_at:
        return _under_run(graph, item.run_at, item.way, item.depth + 1), ""
    if item.version is None:
        return [], ""
    children = _under_version(graph, item.version.uid, item.way, item.depth)
    if not children:
        return [], ""
    if (item.way, item.version.uid) in expanded:
        return [], " (above)"
    if item.depth >= MOST_VERSIONS_DEEP:
        return [], " (goes on)"
    expanded.add((item.way, item.version.uid))
    return children, ""


def _under_root(graph: Graph, root: str, way: Way) -> list[_Item]:
    if root in graph.versions:
        return _under_version(graph, root, way, 0)
    edges = graph.edges_of_run(root, "used" if way == "upstream" else "made")
    return [_version_item(graph, edge, way, 1) for edge in edges]


def _under_version(graph: Graph, uid: str, way: Way, depth: int) -> list[_Item]:
    if way == "downstream":
        used = graph.edges_of_version(uid, "used")
        return [_run_item(graph, edge, "used by", way, depth) for edge in used]
    made = graph.edges_of_version(uid, "made")
    items = [_run_item(graph, edge, "made by", way, depth) for edge in made]
    for edge in graph.edges_of_version(uid, "confirmed"):
        # A leaf: the version's ancestry is what it was made from, not what confirmed it.
        text = f"confirmed by {_run_text(graph.runs[edge.run_uid])}"
        items.append(_Item(text, way, depth))
    return items


def _under_run(graph: Graph, edge: Edge, way: Way, depth: int) -> list[_Item]:
    found = graph.inputs_before(edge) if way == "upstream" else graph.outputs_after(edge)
    return [_version_item(graph, one, way, depth) for one, _ in found]


def _run_item(graph: Graph, edge: Edge, act: str, way: Way, depth: int) -> _Item:
    text = f"{act} {_run_text(graph.runs[edge.run_uid])}"
    return _Item(text, way, depth, run_at=edge)


def _version_item(graph: Graph, edge: Edge, way: Way, depth: int) -> _Item:
    version = graph.versions[edge.version_uid]
    text = f"{edge.kind} {_version_text(version)}"
    if edge.mismatch:
        text += " (other data was read)"
    return _Item(text, way, depth, version=version)


def _root_text(graph: Graph, uid: str) -> str:
    run = graph.runs.get(uid)
    if run:
        return f"{printable(run.name)}  {printable(run.job or 'run')}, {run_state(run)}"
    version = graph.versions[uid]
    facts = (
        f"{version.type}, {counted(version.file_count, 'file')}, {size_text(version.size_bytes)}"
    )
    return f"{_version_text(version)}  {printable(facts)}"


def _version_text(version: VersionRecord) -> str:
    aliases = f" [{', '.join(version.aliases)}]" if version.aliases else ""
    state = f" ({state_text(version)})" if state_text(version) else ""
    return printable(f"{version.ref}{aliases}{state}")


def _run_text(run: RunRecord) -> str:
    return f"{printable(run.name)} ({run_state(run)})"
