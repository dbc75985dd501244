"""Where the boxes of a drawing stand and how the lines between them run: layers from left to right.

In the manner of Sugiyama, Tagawa and Toda (1981): links that close a circle are turned round, a box stands one layer
right of the last box that leads into it, points stand in for lines in the layers they pass, a few sweeps of
barycentres order each layer, and a least-squares fit gives heights. Nothing depends on hashes, so equal input gives an
equal drawing.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from begat.drawing.circles import in_order

COLUMN_GAP = 46.0
ROW_GAP = 18.0
POINT_GAP = 12.0
PART_GAP = 40.0
# How often the order and the heights of all are gone through: (nodes and points at most, sweeps, fits). Small drawings
# get all that helps, large ones what keeps them under a second.
EFFORTS = ((400, 16, 80), (3000, 10, 24), (10**9, 4, 12))
ONE_SIDED_FITS = 10

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """Something to place. `first_layer` is 0 or 1: versions take the even layers, runs the odd ones."""

    key: str
    width: float
    height: float
    first_layer: int


@dataclass(frozen=True, slots=True)
class Link:
    """A line from one box to another. A soft one does not decide which box stands further right."""

    source: str
    target: str
    is_soft: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """How a link runs, from source to target; between two points it may bend, with level ends.

    `is_return` is a link that runs to the left; it leaves and arrives at the lower sides of its boxes.
    """

    link: Link
    points: tuple[Point, ...]
    is_return: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """The centres of the boxes by key, the routes, and the size of the whole."""

    centres: dict[str, Point]
    routes: tuple[Route, ...]
    width: float
    height: float


def lay_out(boxes: Sequence[Box], links: Sequence[Link]) -> Layout:
    """Place boxes and links; what is not connected stands below, the part with most boxes first.

    Both ends of every link must be among the boxes. Of boxes and links, the earlier stands higher where nothing else
    decides.
    """
    centres: dict[str, Point] = {}
    routes: list[Route] = []
    width = bottom = 0.0
    for own_boxes, own_links in _parts(boxes, links):
        part = _Part(own_boxes, own_links)
        top = bottom + (PART_GAP if centres else 0.0)
        centres |= {key: (x, y + top) for key, (x, y) in part.centres().items()}
        for route in part.routes():
            points = tuple((x, y + top) for x, y in route.points)
            routes.append(Route(route.link, points, route.is_return))
        width = max(width, part.width)
        bottom = top + part.height
    return Layout(centres, tuple(routes), width, bottom)


@dataclass(slots=True)
class _Node:
    """A box, or a point that stands for a line in a layer (`box` is None)."""

    layer: int
    height: float
    box: Box | None = None
    owner: int | None = None  # a point that stands directly below this node
    before: list[int] = field(default_factory=list[int])  # neighbours in the layer to the left
    after: list[int] = field(default_factory=list[int])
    y: float = 0.0


class _Part:
    """One connected part of the drawing."""

    def __init__(self, boxes: Sequence[Box], links: Sequence[Link]) -> None:
        self._links = links
        layer_of = _layers(boxes, links)
        self._nodes = [_Node(layer_of[box.key], box.height, box) for box in boxes]
        self._index = {box.key: index for index, box in enumerate(boxes)}
        self._points: dict[tuple[str, int, bool], int] = {}
        self._arrivals: dict[int, int] = {}
        self._chains = [self._chain(link) for link in links]
        self._sweeps, self._fits = next(
            (sweeps, fits) for most, sweeps, fits in EFFORTS if len(self._nodes) <= most
        )
        self._rows = self._first_order(1 + max(node.layer for node in self._nodes))
        self._reduce_crossings()
        self._fit_heights()
        self._lefts, self.width = self._columns()
        self.height = max(node.y + node.height / 2 for node in self._nodes)

    def centres(self) -> dict[str, Point]:
        return {
            node.box.key: (self._centre_x(node), node.y)
            for node in self._nodes
            if node.box is not None
        }

    def routes(self) -> Iterator[Route]:
        for link, chain in zip(self._links, self._chains, strict=True):
            nodes = [self._nodes[index] for index in chain]
            if nodes[0].layer < nodes[-1].layer:
                yield Route(link, tuple(self._forward(nodes)), is_return=False)
            else:
                yield Route(link, tuple(self._backward(nodes)), is_return=True)

    # --- lines as chains of points ---

    def _chain(self, link: Link) -> list[int]:
        source, target = self._index[link.source], self._index[link.target]
        first, last = self._nodes[source].layer, self._nodes[target].layer
        if first < last:
            # Lines from one box share their points, so they run as one until they part.
            points = [self._shared_point(link, layer) for layer in range(first + 1, last)]
            chain = [source, *points, target]
            self._join(chain)
            return chain
        points = [self._shared_point(link, layer) for layer in range(first, last, -1)]
        points.append(self._arrival(target))
        self._nodes[points[0]].owner = source
        self._join(points[::-1])
        return [source, *points, target]

    def _shared_point(self, link: Link, layer: int) -> int:
        key = (link.source, layer, link.is_soft)
        if key not in self._points:
            self._points[key] = self._point(layer)
        return self._points[key]

    def _arrival(self, target: int) -> int:
        """The point below a box through which every line comes that runs to the left."""
        if target not in self._arrivals:
            self._arrivals[target] = self._point(self._nodes[target].layer)
            self._nodes[self._arrivals[target]].owner = target
        return self._arrivals[target]

    def _point(self, layer: int) -> int:
        self._nodes.append(_Node(layer, 2.0))
        return len(self._nodes) - 1

    def _join(self, chain: Sequence[int]) -> None:
        for left, right in pairwise(chain):
            if right not in self._nodes[left].after:
                self._nodes[left].after.append(right)
                self._nodes[right].before.append(left)

    # --- the order in each layer ---

    def _first_order(self, layers: int) -> list[list[int]]:
        """Depth first from the left, so that what is connected begins close together."""
        rows: list[list[int]] = [[] for _ in range(layers)]
        seen: set[int] = set()
        starts = sorted(range(len(self._nodes)), key=lambda one: (self._nodes[one].layer, one))
        for start in starts:
            waiting = [start]
            while waiting:
                one = waiting.pop()
                if one in seen:
                    continue
                seen.add(one)
                node = self._nodes[one]
                rows[node.layer].append(one)
                waiting += [*reversed(node.before), *reversed(node.after)]
        return [self._with_owned(row) for row in rows]

    def _with_owned(self, row: Iterable[int]) -> list[int]:
        """The row with each point that has an owner directly below it."""
        free: list[int] = []
        owned: dict[int, list[int]] = {}
        for one in row:
            owner = self._nodes[one].owner
            if owner is None:
                free.append(one)
            else:
                owned.setdefault(owner, []).append(one)
        return [each for one in free for each in (one, *owned.get(one, ()))]

    def _reduce_crossings(self) -> None:
        best, fewest = self._rows, self._crossings()
        for sweep in range(self._sweeps):
            if not fewest:
                break
            is_rightwards = sweep % 2 == 0
            layers = (
                range(1, len(self._rows)) if is_rightwards else range(len(self._rows) - 2, -1, -1)
            )
            self._rows = list(self._rows)
            for layer in layers:
                self._rows[layer] = self._by_barycentre(layer, is_rightwards=is_rightwards)
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = self._rows, crossings
        self._rows = best

    def _by_barycentre(self, layer: int, *, is_rightwards: bool) -> list[int]:
        beside = self._rows[layer - 1 if is_rightwards else layer + 1]
        place = {one: index for index, one in enumerate(beside)}
        row = self._rows[layer]
        scale = len(beside) / len(row)
        keys: dict[int, float] = {}
        for index, one in enumerate(row):
            node = self._nodes[one]
            near = node.before if is_rightwards else node.after
            # What has no neighbour on that side keeps its share of the height.
            keys[one] = sum(place[each] for each in near) / len(near) if near else index * scale
        return self._with_owned(sorted(row, key=keys.__getitem__))

    def _crossings(self) -> int:
        total = 0
        for left, right in pairwise(self._rows):
            place = {one: index for index, one in enumerate(right)}
            seen: list[int] = []
            for one in left:
                ends = sorted(place[each] for each in self._nodes[one].after)
                total += sum(len(seen) - bisect_right(seen, end) for end in ends)
                for end in ends:
                    insort(seen, end)
        return total

    # --- heights ---

    def _fit_heights(self) -> None:
        for row in self._rows:
            self._settle(row, [0.0] * len(row))
        for fit in range(self._fits):
            is_rightwards = fit % 2 == 0
            for row in self._rows if is_rightwards else reversed(self._rows):
                # First one side leads, or a long chain would move too slowly.
                both = fit >= ONE_SIDED_FITS
                self._settle(
                    row, self._wanted_of(row, is_rightwards or both, not is_rightwards or both)
                )
        top = min(node.y - node.height / 2 for node in self._nodes)
        for node in self._nodes:
            node.y -= top

    def _wanted_of(self, row: Sequence[int], left: bool, right: bool) -> list[float]:
        wanted: list[float] = []
        for one in row:
            node = self._nodes[one]
            if node.owner is None:
                wanted.append(self._wanted(node, left, right))
            else:
                # Never its owner's own height: the two would push each other further apart in every fit.
                wanted.append(wanted[-1] + self._distance(self._nodes[node.owner], node))
        return wanted

    def _wanted(self, node: _Node, left: bool, right: bool) -> float:
        """The mean of the neighbours' heights.

        A link between ends with many pulls less, and a passing line less at a box: so what follows from one another
        stands in a straight row, and the lines bend.
        """
        near = [
            (one, max(len(self._nodes[one].after), len(node.before))) for one in node.before if left
        ]
        near += [
            (one, max(len(self._nodes[one].before), len(node.after))) for one in node.after if right
        ]
        total = weights = 0.0
        for one, lines in near:
            other = self._nodes[one]
            weight = (0.2 if node.box and not other.box else 1.0) / lines
            total, weights = total + weight * other.y, weights + weight
        return total / weights if weights else node.y

    def _settle(self, row: Sequence[int], wanted: Sequence[float]) -> None:
        """Give a row the heights nearest to the wanted ones (least squares) that keep order and distance.

        Less the distances it is an isotonic regression, solved by pooling adjacent violators.
        """
        offsets = [0.0]
        for upper, lower in pairwise(row):
            offsets.append(offsets[-1] + self._distance(self._nodes[upper], self._nodes[lower]))
        pools: list[tuple[float, float, int]] = []
        for one, want, offset in zip(row, wanted, offsets, strict=True):
            # Where a box and a line are in each other's way, the line gives way.
            weight = 8.0 if self._nodes[one].box else 1.0
            total, count = weight * (want - offset), 1
            while pools and pools[-1][0] / pools[-1][1] >= total / weight:
                more, others, number = pools.pop()
                total, weight, count = total + more, weight + others, count + number
            pools.append((total, weight, count))
        settled = (total / weight for total, weight, count in pools for _ in range(count))
        for one, y, offset in zip(row, settled, offsets, strict=True):
            self._nodes[one].y = y + offset

    def _distance(self, upper: _Node, lower: _Node) -> float:
        gap = ROW_GAP if upper.box and lower.box else POINT_GAP
        return (upper.height + lower.height) / 2 + gap

    # --- columns and routes ---

    def _columns(self) -> tuple[list[tuple[float, float]], float]:
        """The left and right side of each layer, and the width of all."""
        sides: list[tuple[float, float]] = []
        left = 0.0
        for row in self._rows:
            width = max((box.width for one in row if (box := self._nodes[one].box)), default=0.0)
            sides.append((left, left + width))
            left += width + COLUMN_GAP
        return sides, left - COLUMN_GAP

    def _centre_x(self, node: _Node) -> float:
        return sum(self._lefts[node.layer]) / 2

    def _forward(self, nodes: Sequence[_Node]) -> Iterator[Point]:
        for node in nodes:
            left, right = self._lefts[node.layer]
            if node is not nodes[0]:
                yield (self._centre_x(node) - node.box.width / 2 if node.box else left), node.y
            if node is not nodes[-1]:
                yield (self._centre_x(node) + node.box.width / 2 if node.box else right), node.y

    def _backward(self, nodes: Sequence[_Node]) -> Iterator[Point]:
        source, *points, target = nodes
        yield self._centre_x(source), source.y + source.height / 2
        for node in points:
            left, right = self._lefts[node.layer]
            if node is not points[0]:
                yield right, node.y
            if node is not points[-1]:
                yield left, node.y
        yield self._centre_x(target), target.y + target.height / 2


# --- what stands in which layer ---


def _parts(boxes: Sequence[Box], links: Sequence[Link]) -> list[tuple[list[Box], list[Link]]]:
    near: dict[str, list[str]] = {box.key: [] for box in boxes}
    for link in links:
        near[link.source].append(link.target)
        near[link.target].append(link.source)
    part_of: dict[str, int] = {}
    count = 0
    for box in boxes:
        if box.key in part_of:
            continue
        waiting = [box.key]
        while waiting:
            key = waiting.pop()
            if key not in part_of:
                part_of[key] = count
                waiting += near[key]
        count += 1
    parts: list[tuple[list[Box], list[Link]]] = [([], []) for _ in range(count)]
    for box in boxes:
        parts[part_of[box.key]][0].append(box)
    for link in links:
        parts[part_of[link.source]][1].append(link)
    return sorted(parts, key=lambda part: -len(part[0]))


def _layers(boxes: Sequence[Box], links: Sequence[Link]) -> dict[str, int]:
    """The longest way to each box from the left; a box with nothing before it stands close to what follows."""
    after: dict[str, list[str]] = {box.key: [] for box in boxes}
    for link in links:
        if not link.is_soft:
            after[link.source].append(link.target)
    # A run is where a circle begins: what it made stands to its right.
    order, turned = in_order(after, (box.key for box in boxes if box.first_layer))
    before: dict[str, list[str]] = {box.key: [] for box in boxes}
    for source in order:
        straight = [one for one in after[source] if (source, one) not in turned]
        after[source] = straight
        for one in straight:
            before[one].append(source)
    for source, target in turned:
        after[target].append(source)
        before[source].append(target)
    layer = {box.key: box.first_layer for box in boxes}
    for key in order:
        layer[key] = max([layer[key], *(layer[one] + 1 for one in before[key])])
    softly: dict[str, list[int]] = {}
    for link in links:
        if link.is_soft:
            softly.setdefault(link.source, []).append(layer[link.target])
    for key in reversed(order):
        follows = [layer[one] for one in after[key]] or softly.get(key, [])
        if not before[key] and follows:
            layer[key] = max(layer[key], min(follows) - 1)
    taken = {one: index for index, one in enumerate(sorted(set(layer.values())))}
    return {key: taken[one] for key, one in layer.items()}
