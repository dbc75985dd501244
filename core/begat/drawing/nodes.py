"""What a picture of lineage shows: a node for each version and run, or fewer where they would be too many to read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from begat.drawing.labels import run_state, state_text
from begat.lineage import Graph
from begat.model import Edge, EdgeKind, RunRecord, VersionRecord
from begat.wording import counted, printable, size_text

SHORT_ID = 6  # of a run; the end of a UUIDv7 is random, its beginning is the time


@dataclass(frozen=True, slots=True)
class Node:
    """One box (of a version, or of several) or pill (of runs). No text is shortened yet, all of it is printable."""

    key: str
    kind: Literal["version", "run"]
    title: str  # the artifact's or the run's name
    mark: str  # v3, v1 to v9, 9 times, or a run's short id
    detail: str
    hue: str  # the artifact's type, or the run's status
    full: str  # all of it in words
    labels: tuple[str, ...] = ()
    state: str = ""
    is_root: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class Line:
    """A line between the keys of two nodes, from input to output."""

    source: str
    target: str
    kind: EdgeKind


@dataclass(frozen=True, slots=True)
class Picture:
    """Nodes, the lines between them, and what was left out, in words."""

    nodes: tuple[Node, ...]
    lines: tuple[Line, ...]
    note: str = ""


def picture_of(graph: Graph, *, most: int) -> Picture:
    """The graph as a picture; above `most` nodes one for each artifact and job, then only the nearest to the roots."""
    whole = len(graph.versions) + len(graph.runs)
    if whole <= most:
        return _picture(graph, is_folded=False)
    folded = _picture(graph, is_folded=True)
    versions, runs = counted(len(graph.versions), "version"), counted(len(graph.runs), "run")
    note = f"{versions} and {runs}: one box for each artifact, one pill for each job"
    if len(folded.nodes) > most:
        note += f"; the {most:,} of {len(folded.nodes):,} nearest to what was asked for"
        folded = _nearest(folded, most)
    return replace(folded, note=note)


def _picture(graph: Graph, *, is_folded: bool) -> Picture:
    versions: dict[str, list[VersionRecord]] = {}
    for version in sorted(graph.versions.values(), key=lambda one: (one.created_at, one.uid)):
        versions.setdefault(_version_key(version, is_folded=is_folded), []).append(version)
    runs: dict[str, list[RunRecord]] = {}
    for run in sorted(graph.runs.values(), key=lambda one: (one.started_at, one.uid)):
        runs.setdefault(_run_key(run, is_folded=is_folded), []).append(run)
    nodes = [_version_node(key, group, graph.roots) for key, group in versions.items()]
    nodes += [_run_node(key, group, graph.roots) for key, group in runs.items()]
    lines = dict.fromkeys(
        _line(graph, edge, is_folded=is_folded)
        for edge in graph.edges
        if edge.version_uid in graph.versions and edge.run_uid in graph.runs
    )
    return Picture(tuple(nodes), tuple(lines))


def _version_key(version: VersionRecord, *, is_folded: bool) -> str:
    return f"version {version.artifact_uid if is_folded else version.uid}"


def _run_key(run: RunRecord, *, is_folded: bool) -> str:
    return f"run {run.job or run.name if is_folded else run.uid}"


def _line(graph: Graph, edge: Edge, *, is_folded: bool) -> Line:
    version = _version_key(graph.versions[edge.version_uid], is_folded=is_folded)
    run = _run_key(graph.runs[edge.run_uid], is_folded=is_folded)
    return Line(version, run, edge.kind) if edge.kind == "used" else Line(run, version, edge.kind)


def _version_node(key: str, group: Sequence[VersionRecord], roots: Sequence[str]) -> Node:
    last = group[-1]
    is_root = any(version.uid in roots for version in group)
    title, hue = printable(last.name), printable(last.type)
    if len(group) > 1:
        numbers = sorted(version.number for version in group)
        mark, detail = f"v{numbers[0]} to v{numbers[-1]}", f"{len(group):,} versions"
        full = f"{title}, {hue}, {detail}"
        return Node(
            key, "version", title, mark, detail, hue, full, is_root=is_root, count=len(group)
        )
    size, state = size_text(last.size_bytes), state_text(last)
    facts = [last.ref, last.type, counted(last.file_count, "file"), size, state]
    facts += [f"alias {alias}" for alias in last.aliases]
    return Node(
        key,
        "version",
        title,
        f"v{last.number}",
        size,
        hue,
        printable(", ".join(filter(None, facts))),
        labels=tuple(printable(alias) for alias in last.aliases),
        state=state,
        is_root=is_root,
    )


def _run_node(key: str, group: Sequence[RunRecord], roots: Sequence[str]) -> Node:
    last = group[-1]
    is_root = any(run.uid in roots for run in group)
    if len(group) > 1:
        title, many = printable(last.job or last.name), f"{len(group):,} runs"
        full = f"{title}, {many}"
        return Node(
            key,
            "run",
            title,
            f"{len(group)}\N{MULTIPLICATION SIGN}",
            many,
            last.status,
            full,
            (),
            "",
            is_root,
            len(group),
        )
    detail = "" if last.status == "finished" else last.status
    facts = [f"run {last.name}", last.job and f"job {last.job}", run_state(last), last.uid]
    return Node(
        key,
        "run",
        printable(last.name),
        printable(last.uid[-SHORT_ID:]),
        detail,
        last.status,
        printable(", ".join(fact for fact in facts if fact)),
        is_root=is_root,
    )


def _nearest(picture: Picture, most: int) -> Picture:
    """The nodes that the fewest lines part from a root."""
    near: dict[str, list[str]] = {node.key: [] for node in picture.nodes}
    for line in picture.lines:
        near[line.source].append(line.target)
        near[line.target].append(line.source)
    waiting = deque(node.key for node in picture.nodes if node.is_root)
    kept: dict[str, None] = {}
    while waiting and len(kept) < most:
        key = waiting.popleft()
        if key not in kept:
            kept[key] = None
            waiting += near[key]
    for node in picture.nodes:
        if len(kept) < most:
            kept.setdefault(node.key)
    return Picture(
        tuple(node for node in picture.nodes if node.key in kept),
        tuple(line for line in picture.lines if line.source in kept and line.target in kept),
    )
