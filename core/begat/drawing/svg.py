"""Lineage as a picture: a self-contained SVG without scripts, links, style sheets or fonts of its own.

Everything is a presentation attribute, so the picture may stand inside a page with a strict content security policy,
and several may stand in one page (no ids). It brings its own background, so it is readable on any. A colour never says
anything alone: a type has an icon and a legend, a state and a status have a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal
from xml.sax.saxutils import escape

from begat.drawing.layout import Box, Layout, Link, Point, lay_out
from begat.drawing.nodes import Line, Node, Picture, picture_of
from begat.lineage import Graph
from begat.wording import counted, shortened

Theme = Literal["light", "dark"]

MOST_NODES = 400
MARGIN = 28.0
LEGEND_HEIGHT = 40.0
LEAST_WIDTH = 420.0
VERSION_WIDTH, VERSION_HEIGHT = 204.0, 54.0
RUN_WIDTH, RUN_HEIGHT = 146.0, 30.0
FONT = "Inter, ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class _Palette:
    """Colours of a theme; each text colour has a contrast of 4.5 or more on each of its grounds (WCAG AA)."""

    ground: str
    card: str
    sunk: str
    border: str
    line: str
    ink: str
    dim: str
    accent: str
    accent_ground: str
    hues: Mapping[str, str]
    other_hues: tuple[str, ...]
    statuses: Mapping[str, str]


_LIGHT = _Palette(
    *(
        "#fbfaf8",
        "#ffffff",
        "#f4f2ee",
        "#d3cfc6",
        "#aba598",
        "#1c1b19",
        "#5f5b54",
        "#4338a8",
        "#eeecfb",
    ),
    hues={
        "dataset": "#0f766e",
        "features": "#1d5fbf",
        "model": "#7a3bc2",
        "predictions": "#b02a69",
        "report": "#5b6a12",
    },
    other_hues=(
        "#8a4b12",
        "#2f6f3a",
        "#3b5bb5",
        "#8c3a86",
        "#0b6d8a",
        "#7d5a00",
        "#5a55a8",
        "#9c3d3d",
    ),
    statuses={
        "finished": "#1a7a43",
        "running": "#1d5fbf",
        "failed": "#b8312b",
        "interrupted": "#8f4f00",
        "lost": "#5f5b54",
    },
)
_DARK = _Palette(
    *(
        "#0f1114",
        "#16191e",
        "#1b1f25",
        "#3a414c",
        "#5b6472",
        "#e9eaec",
        "#a2a8b2",
        "#a9a2ff",
        "#252346",
    ),
    hues={
        "dataset": "#4fc9bd",
        "features": "#7fb2ff",
        "model": "#c79bff",
        "predictions": "#f58bb9",
        "report": "#b7c85f",
    },
    other_hues=(
        "#e0a56c",
        "#84cf92",
        "#9db4ff",
        "#e69be0",
        "#6fc8e6",
        "#d9b85a",
        "#b3aeff",
        "#f09a9a",
    ),
    statuses={
        "finished": "#59d08d",
        "running": "#7fb2ff",
        "failed": "#ff8a80",
        "interrupted": "#f2b34c",
        "lost": "#a2a8b2",
    },
)

# In parts of the font size, where a character is not of about the usual width.
_WIDTHS = dict.fromkeys("iljtfrI.,:;|!' -()[]/", 0.36) | dict.fromkeys(
    "mwMW@%\N{HORIZONTAL ELLIPSIS}", 0.9
)

# Each in a square of 16 units, drawn with strokes.
_ICONS = {
    "dataset": "M3 4.2C3 3 5.2 2 8 2s5 1 5 2.2-2.2 2.2-5 2.2-5-1-5-2.2zM3 4.2v7.6C3 13 5.2 14 8 14s5-1 5-2.2V4.2"
    "M3 8c0 1.2 2.2 2.2 5 2.2s5-1 5-2.2",
    "features": "M2.5 3h11v10h-11zM2.5 6.4h11M6.2 6.4V13M9.9 6.4V13",
    "model": "M8 1.8l5.4 3.1v6.2L8 14.2l-5.4-3.1V4.9zM2.6 4.9L8 8l5.4-3.1M8 8v6.2",
    "predictions": "M2.5 13.5h11M4.4 13.5V9.2M8 13.5V5.8M11.6 13.5V2.5",
    "report": "M4 1.8h5.2L12.4 5v9.2H4zM9 2v3.2h3.2M6 8.2h4.4M6 10.8h4.4",
}
_OTHER_ICON = "M2.5 5.2L8 2.4l5.5 2.8v5.6L8 13.6l-5.5-2.8zM5.2 3.8l5.5 2.8v2.6"


def draw_svg(graph: Graph, *, title: str, theme: Theme = "light") -> str:
    """The graph from inputs (left) to outputs (right), as the text of an SVG."""
    picture = picture_of(graph, most=MOST_NODES)
    return "".join(_Drawing(picture, title, _LIGHT if theme == "light" else _DARK).text())


class _Drawing:
    """One picture in one theme."""

    def __init__(self, picture: Picture, title: str, palette: _Palette) -> None:
        self._picture = picture
        self._title = title
        self._palette = palette
        self._layout = _place(picture)
        self._kinds = {_link(line): line for line in picture.lines}
        legend = sum(width for width, _ in self._legend())
        foot = max(legend, _length(picture.note, 11.5))
        self._width = max(max(self._layout.width, foot) + 2 * MARGIN, LEAST_WIDTH)
        self._height = self._layout.height + 2 * MARGIN + LEGEND_HEIGHT
        if picture.note:
            self._height += 20

    def text(self) -> Iterator[str]:
        width, height = _number(self._width), _number(self._height)
        palette = self._palette
        counts = _counts(self._picture)
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label="{_safe(self._title)}" '
            f'font-family="{_safe(FONT)}">'
        )
        yield f"<title>{_safe(self._title)}</title>"
        about = f"{counts}. {self._picture.note}" if self._picture.note else counts
        yield f"<desc>{_safe(about)}</desc>"
        yield (
            f'<rect x="0.5" y="0.5" width="{_number(self._width - 1)}" '
            f'height="{_number(self._height - 1)}" rx="12" fill="{palette.ground}" '
            f'stroke="{palette.border}" stroke-opacity="0.6"/>'
        )
        # A picture narrower than its legend stands in the middle.
        left = (self._width - self._layout.width) / 2
        yield f'<g transform="translate({_number(left)} {_number(MARGIN)})">'
        yield from self._routes()
        for node in self._picture.nodes:
            x, y = self._layout.centres[node.key]
            yield f'<g transform="translate({_number(x)} {_number(y)})">'
            yield f"<title>{_safe(node.full)}</title>"
            yield from self._version(node) if node.kind == "version" else self._run(node)
            yield "</g>"
        yield "</g>"
        yield from self._foot(counts)
        yield "</svg>"

    # --- lines ---

    def _routes(self) -> Iterator[str]:
        stroke = self._palette.line
        yield f'<g fill="none" stroke="{stroke}" stroke-width="1.5">'
        # Lines from one box run as one until they part; that piece is drawn once.
        drawn: set[tuple[Point, Point]] = set()
        for route in self._layout.routes:
            dash = ' stroke-dasharray="5 4"' if self._kinds[route.link].kind == "confirmed" else ""
            steps = list(pairwise(route.points))
            new = next((index for index, step in enumerate(steps) if step not in drawn), len(steps))
            drawn.update(steps)
            if route.is_return and steps:
                yield f'<path d="{_returning(route.points)}"{dash}/>'
            elif new < len(steps):
                yield f'<path d="{_running(route.points, new)}"{dash}/>'
        yield "</g>"
        heads = dict.fromkeys((route.points[-1], route.is_return) for route in self._layout.routes)
        path = "".join(_head(point, is_up=is_return) for point, is_return in heads)
        yield f'<path d="{path}" fill="{stroke}"/>' if path else ""

    # --- versions ---

    def _version(self, node: Node) -> Iterator[str]:
        palette = self._palette
        hue = self._hue(node.hue)
        left, top = -VERSION_WIDTH / 2, -VERSION_HEIGHT / 2
        if node.count > 1:
            for shift in (6, 3):
                yield _rect(left + shift, top + shift, VERSION_WIDTH, VERSION_HEIGHT, 10) + (
                    f' fill="{palette.card}" stroke="{palette.border}"/>'
                )
        border = palette.accent if node.is_root else palette.border
        thick = ' stroke-width="2"' if node.is_root else ""
        dash = ' stroke-dasharray="3 3"' if node.state else ""
        yield _rect(left, top, VERSION_WIDTH, VERSION_HEIGHT, 10) + (
            f' fill="{palette.card}" stroke="{border}"{thick}{dash}/>'
        )
        faded = ' opacity="0.55"' if node.state else ""
        yield f"<g{faded}>" + _rect(left + 11, -16, 32, 32, 8)
        yield f' fill="{hue}" fill-opacity="0.13"/>'
        yield (
            f'<path transform="translate({_number(left + 19)} -8)" d="{_ICONS.get(node.hue, _OTHER_ICON)}" '
            f'fill="none" stroke="{hue}" stroke-width="1.3" stroke-linejoin="round" stroke-linecap="round"/></g>'
        )
        x = left + 53
        strike = ' text-decoration="line-through"' if node.state == "deleted" else ""
        ink = palette.dim if node.state else palette.ink
        yield _text(x, -5, _fitted(node.title, 142, 13.5), 13.5, ink, f'font-weight="600"{strike}')
        yield _text(x, 13, node.mark, 11.5, ink, 'font-weight="600"')
        x += _length(node.mark, 11.5) + 7
        right = VERSION_WIDTH / 2 - 10
        label, width = _label(node, most=right - x)
        if x + _length(node.detail, 11.5) + 8 <= right - width:
            yield _text(x, 13, node.detail, 11.5, palette.dim)
        if label:
            fill, ink = palette.accent_ground, palette.accent
            if node.state:
                fill, ink = palette.sunk, palette.dim
            yield _rect(right - width, 1, width, 17, 5) + f' fill="{fill}"/>'
            yield _text(right - width + 7, 13, label, 10.5, ink, 'font-weight="600"')

    # --- runs ---

    def _run(self, node: Node) -> Iterator[str]:
        palette = self._palette
        left, top = -RUN_WIDTH / 2, -RUN_HEIGHT / 2
        border = palette.accent if node.is_root else palette.border
        thick = ' stroke-width="2"' if node.is_root else ""
        yield _rect(left, top, RUN_WIDTH, RUN_HEIGHT, 15) + (
            f' fill="{palette.sunk}" stroke="{border}"{thick}/>'
        )
        status = palette.statuses.get(node.hue, palette.dim)
        yield f'<circle cx="{_number(left + 14)}" cy="0" r="4" fill="{status}"/>'
        is_word = bool(node.detail) and node.count == 1
        mark = node.detail if is_word else node.mark
        if not is_word and node.count == 1 and _length(node.title + mark, 12) > RUN_WIDTH - 40:
            mark = ""  # the name tells more than the id, which is in the tooltip
        room = RUN_WIDTH - 24 - 12 - 8 - _length(mark, 10.5)
        yield _text(left + 24, 4, _fitted(node.title, room, 12), 12, palette.ink)
        ink = status if is_word else palette.dim
        yield _text(RUN_WIDTH / 2 - 12, 4, mark, 10.5, ink, 'text-anchor="end"')

    # --- what the colours mean ---

    def _legend(self) -> Iterator[tuple[float, Node | None]]:
        seen: set[str] = set()
        for node in self._picture.nodes:
            if node.kind == "version" and node.hue not in seen and len(seen) < 8:
                seen.add(node.hue)
                yield 26 + _length(shortened(node.hue, 20), 11.5), node
        if any(line.kind == "confirmed" for line in self._picture.lines):
            yield 40 + _length("confirmed", 11.5), None

    def _foot(self, counts: str) -> Iterator[str]:
        palette = self._palette
        x, y = MARGIN, self._height - 22
        if self._picture.note:
            yield _text(x, y, self._picture.note, 11.5, palette.dim)
            y -= 20
        for width, node in self._legend():
            if node is None:
                yield (
                    f'<path d="M{_number(x)} {_number(y - 4)}h22" stroke="{palette.line}" '
                    'stroke-width="1.5" stroke-dasharray="5 4"/>'
                )
                yield _text(x + 28, y, "confirmed", 11.5, palette.dim)
            else:
                yield _rect(x, y - 9, 10, 10, 3) + f' fill="{self._hue(node.hue)}"/>'
                yield _text(x + 16, y, shortened(node.hue, 20), 11.5, palette.dim)
            x += width
        if x + _length(counts, 11.5) + MARGIN < self._width:
            yield _text(self._width - MARGIN, y, counts, 11.5, palette.dim, 'text-anchor="end"')

    def _hue(self, kind: str) -> str:
        # A sum and not hash(), which differs from process to process.
        others = self._palette.other_hues
        return self._palette.hues.get(kind) or others[sum(kind.encode()) % len(others)]


def _place(picture: Picture) -> Layout:
    boxes = [
        # A stack has two sheets that stick out below.
        Box(node.key, VERSION_WIDTH, VERSION_HEIGHT + (12 if node.count > 1 else 0), 0)
        if node.kind == "version"
        else Box(node.key, RUN_WIDTH, RUN_HEIGHT, 1)
        for node in picture.nodes
    ]
    return lay_out(boxes, [_link(line) for line in picture.lines])


def _link(line: Line) -> Link:
    return Link(line.source, line.target, is_soft=line.kind == "confirmed")


def _label(node: Node, *, most: float) -> tuple[str, float]:
    """The text and the width of a version's pill: its state, or an alias and how many more there are."""
    words = [node.state] if node.state else list(node.labels)
    if not words:
        return "", 0.0
    more = f" +{len(words) - 1}" if len(words) > 1 else ""
    text = _fitted(words[0], most - 14 - _length(more, 10.5), 10.5) + more
    return text, _length(text, 10.5) + 14


def _counts(picture: Picture) -> str:
    versions = sum(node.count for node in picture.nodes if node.kind == "version")
    runs = sum(node.count for node in picture.nodes if node.kind == "run")
    return f"{counted(versions, 'version')}, {counted(runs, 'run')}"


# --- shapes as text ---


def _running(points: tuple[Point, ...], first: int) -> str:
    """A path from left to right, from one of its points on: bends between columns, level within them."""
    x, y = points[first]
    path = f"M{_number(x)} {_number(y)}"
    for index in range(first, len(points) - 1):
        to_x, to_y = points[index + 1]
        is_within = index % 2 == 1
        path += _level(to_x, to_y) if is_within or y == to_y else _bend(x, y, to_x, to_y)
        x, y = to_x, to_y
    return path


def _level(x: float, y: float) -> str:
    return f"L{_number(x)} {_number(y)}"


def _bend(x: float, y: float, to_x: float, to_y: float) -> str:
    middle = _number((x + to_x) / 2)
    return f"C{middle} {_number(y)} {middle} {_number(to_y)} {_number(to_x)} {_number(to_y)}"


def _returning(points: tuple[Point, ...]) -> str:
    """A path from right to left, below the boxes at both ends."""
    (start_x, start_y), *rest, (end_x, end_y) = points
    first_y = rest[0][1] if rest else start_y + 16
    last_y = rest[-1][1] if rest else end_y + 16
    path = f"M{_number(start_x)} {_number(start_y)}"
    path += f"Q{_number(start_x)} {_number(first_y)} {_number(start_x - 18)} {_number(first_y)}"
    level = ((start_x - 18, first_y), *rest, (end_x + 18, last_y))
    for (x, y), (to_x, to_y) in pairwise(level):
        path += _level(to_x, to_y) if y == to_y else _bend(x, y, to_x, to_y)
    return path + f"Q{_number(end_x)} {_number(last_y)} {_number(end_x)} {_number(end_y)}"


def _head(point: Point, *, is_up: bool) -> str:
    x, y = _number(point[0]), _number(point[1])
    return f"M{x} {y}l-3.5 7h7z" if is_up else f"M{x} {y}l-7 -3.5v7z"


def _rect(x: float, y: float, width: float, height: float, radius: float) -> str:
    """The beginning of a rounded rectangle; the caller adds its paint and closes it."""
    return (
        f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" '
        f'height="{_number(height)}" rx="{_number(radius)}"'
    )


def _text(x: float, y: float, text: str, size: float, fill: str, more: str = "") -> str:
    extra = f" {more}" if more else ""
    return (
        f'<text x="{_number(x)}" y="{_number(y)}" font-size="{_number(size)}" fill="{fill}"{extra}>'
        f"{_safe(text)}</text>"
    )


def _safe(text: str) -> str:
    return escape(text, {'"': "&quot;", "'": "&#39;"})


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _length(text: str, size: float) -> float:
    """About how wide the text is: a little more than in Inter, because the font on the other machine may be wider."""
    return size * sum(
        0.34 if one in "iljtfrI.,:;|!' -()[]" else 0.9 if one in "mwMW@%…" else 0.6 for one in text
    )


def _fitted(text: str, width: float, size: float) -> str:
    """As much of the text as fits, its middle left out."""
    most = len(text)
    while most > 4 and _length(shortened(text, most), size) > width:
        most -= 1
    return shortened(text, most)
