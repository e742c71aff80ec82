"""Where each part of a network's drawing goes: chains in rows, side by side where they run side by side.

Coordinates are in pixels of the drawing; y grows downwards. Pure geometry: no SVG here, no torch.

A *track* is a horizontal line on which layers stand. Each row has a main track; a column of several chains has a
track for each, stacked about the row's main one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from layerfold.graph.gates import Gate
from layerfold.report.box_sizes import BoxSizes
from layerfold.report.columns import Column, Items, columns_of, mark_label

if TYPE_CHECKING:
    from layerfold.graph.network import Chain, Layer, Network, Residual

MARGIN = 24.0
ROW_WIDTH = 1112.0
GAP = 20.0
"""Between two layers; the activation slot's dot stands in its middle."""
LEAD_IN = 26.0
"""Before a chain's first layer: its input, where residuals may begin."""
MARK_WIDTH = 26.0
BUS = 12.0
"""Before and after chains that stand side by side: the vertical line that they branch from and join."""
ARC_STEP = 11.0
"""From one nested residual's arc to the next one above it."""
NUMBER_SPACE = 15.0
CONV_SPACE = 26.0
ROW_GAP = 18.0
LABEL_LENGTH = 17
"""Characters of a mark's label, where nothing else makes the mark taller."""


class Positions(Protocol):
    """The part of a solution that a drawing needs."""

    @property
    def act_pos(self) -> Iterable[int]: ...

    @property
    def merge_pos(self) -> Iterable[int]: ...


@dataclass(kw_only=True)
class Track:
    """A line of layers.

    Attributes:
        y: of the line itself; 0 until the rows are stacked.
        half: half the height of the tallest box on it.
        arcs: room above the boxes for residuals; below: room under them for numbers and merged convs.
        mark: half the height of the tallest mark on it.
        right: right edge of what it holds.
    """

    y: float = 0.0
    half: float = 0.0
    arcs: float = 0.0
    below: float = 0.0
    mark: float = 0.0
    right: float = 0.0

    @property
    def top(self) -> float:
        return self.y - max(self.half + self.arcs, self.mark + 4)

    @property
    def bottom(self) -> float:
        return self.y + max(self.half + self.below, self.mark + 4)


@dataclass(frozen=True, kw_only=True)
class Box:
    """One layer: ``x`` is its left edge, the track's line its vertical centre."""

    layer: Layer
    track: int
    x: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What stands between chains: one gate, or the barriers that follow one another.

    Attributes:
        items: the gate, or the barriers.
        x: its centre.
        tracks: first and last of the tracks that it stands across.
        half: half the height that its label needs.
    """

    items: Items
    x: float
    tracks: tuple[int, int]
    half: float

    @property
    def is_gate(self) -> bool:
        return isinstance(self.items[0], Gate)


@dataclass(kw_only=True)
class Layout:
    """Boxes by layer index, slots and chain inputs by position, marks, links between chains, and tracks.

    Attributes:
        boxes: the box of each layer index; layers inside gates have none.
        slots: (track, x) of the activation slot of each position that ends a layer.
        inputs: (track, x) of each chain's input, by the chain's start.
        links: lines between chains, each by its (track, x) corners.
        tracks: from top to bottom, each chain's own in a row.
        height: of all rows together.
    """

    boxes: dict[int, Box] = field(default_factory=dict)
    slots: dict[int, tuple[int, float]] = field(default_factory=dict)
    inputs: dict[int, tuple[int, float]] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    links: list[list[tuple[int, float]]] = field(default_factory=list)
    tracks: list[Track] = field(default_factory=list)
    height: float = 0.0

    def source(self, position: int) -> tuple[int, float]:
        """Return (track, x) of a position as the beginning of a residual."""
        return self.inputs[position] if position in self.inputs else self.slots[position]


def place(net: Network, merge_pos: Iterable[int] | None = None, *, top: float = 0.0) -> Layout:
    """Place the layers of ``net`` in rows.

    Args:
        merge_pos: where merging stops; None takes every layer by itself.
        top: y at which the first row begins.
    """
    return _Placing(net, None if merge_pos is None else frozenset(merge_pos), top).run()


def segment_ranges(start: int, end: int, merge_pos: Iterable[int] | None) -> list[range]:
    """Return the layer indices of each segment of a chain; without ``merge_pos`` each layer is by itself."""
    stops = set(range(start + 1, end + 1)) if merge_pos is None else {*merge_pos, end}
    ranges, first = [], start + 1
    for position in range(start + 1, end + 1):
        if position in stops:
            ranges.append(range(first, position + 1))
            first = position + 1
    return ranges


def arc_levels(residuals: Iterable[Residual]) -> list[int]:
    """Return how high each residual's arc rises, 1 for the lowest: one above those that it spans."""
    residuals = list(residuals)
    order = sorted(range(len(residuals)), key=lambda i: (residuals[i].dst - residuals[i].src, i))
    levels: dict[int, int] = {}
    for i in order:
        below = [
            levels[j] for j in levels
            if residuals[j].src < residuals[i].dst and residuals[i].src < residuals[j].dst
        ]  # fmt: skip
        levels[i] = 1 + max(below, default=0)
    return [levels[i] for i in range(len(residuals))]


class _Placing:
    """Goes along a row, and to the next one when the next piece does not fit."""

    def __init__(self, net: Network, merge_pos: frozenset[int] | None, top: float) -> None:
        self._net, self._merge_pos, self._top = net, merge_pos, top
        self._sizes, self._found = BoxSizes(net), Layout()
        self._levels = dict(zip(map(id, net.residuals), arc_levels(net.residuals), strict=True))
        self._stacks: list[tuple[int, list[int]]] = []
        self._joint: tuple[int, float] | None = None
        self._new_row()

    def run(self) -> Layout:
        columns, behind = columns_of(self._net)
        for column in columns:
            if len(column.lanes) > 1 and self._column_width(column) <= ROW_WIDTH:
                self._stack(column)
            else:
                for number, lane in enumerate(column.lanes):
                    self._flow(lane.chain, (*(column.items if number == 0 else ()), *lane.items))
        marks = _split(behind)
        for items in marks:
            self._need(MARK_WIDTH)
            self._mark(items, self._main)
        if marks:
            self._link_to(self._main, self._x - MARK_WIDTH / 2)
        self._found.tracks[self._main].right = self._x
        self._stack_rows()
        return self._found

    # Along the row

    def _new_row(self) -> None:
        if self._found.tracks:
            self._found.tracks[self._main].right = self._x
        self._main, self._x = len(self._found.tracks), MARGIN
        self._found.tracks.append(Track(below=NUMBER_SPACE))

    def _need(self, width: float) -> None:
        if self._x > MARGIN and self._x + width > MARGIN + ROW_WIDTH:
            if self._joint is not None:
                self._found.links.append([self._joint, (self._main, self._x + 2)])
            self._new_row()
            if self._joint is not None:
                self._joint = self._main, MARGIN - 14

    def _flow(self, chain: Chain, items: Items) -> None:
        """Place one chain on the main track, and on those of the next rows where it is too long."""
        groups = segment_ranges(chain.start, chain.end, self._merge_pos)
        marks = _split(items)
        whole = self._width(range(chain.start + 1, chain.end + 1))
        first = whole if whole <= ROW_WIDTH / 4 else self._width(groups[0])  # a short chain stays in one piece too
        self._need(MARK_WIDTH * len(marks) + LEAD_IN + first)
        for mark in marks:
            self._mark(mark, self._main)
        self._link_to(self._main, self._x + LEAD_IN - GAP / 2)
        self._joint = None
        self._enter(chain, self._main)
        for group in groups:
            # A segment stays in one row where it fits into one; a longer one flows on.
            total = self._width(group)
            self._need(total if total <= ROW_WIDTH - LEAD_IN - MARK_WIDTH else 0.0)
            for index in group:
                self._need(self._width((index,)))
                self._make_room(chain, group, self._main)
                self._box(index, self._main)
        self._joint = self._found.slots[chain.end]

    def _stack(self, column: Column) -> None:
        """Place chains side by side, each on a track of its own."""
        self._need(self._column_width(column))
        first = len(self._found.tracks)
        tracks = [first + number for number in range(len(column.lanes))]
        self._found.tracks += [Track(below=NUMBER_SPACE) for _ in tracks]
        self._stacks.append((self._main, tracks))
        for items in _split(column.items):
            self._mark(items, self._main, (tracks[0], tracks[-1]))
        bus = self._x + BUS / 2
        self._link_to(self._main, bus)
        self._x += BUS
        start, ends = self._x, []
        for track, lane in zip(tracks, column.lanes, strict=True):
            self._x = start
            for items in _split(lane.items):
                self._mark(items, track)
            self._found.links.append([(self._main, bus), (track, bus), (track, self._x + LEAD_IN - GAP / 2)])
            self._enter(lane.chain, track)
            for group in segment_ranges(lane.chain.start, lane.chain.end, self._merge_pos):
                self._make_room(lane.chain, group, track)
                for index in group:
                    self._box(index, track)
            self._found.tracks[track].right = self._x
            ends.append(self._x)
        join = max(ends) + BUS / 2
        for track, lane in zip(tracks, column.lanes, strict=True):
            self._found.links.append([self._found.slots[lane.chain.end], (track, join), (self._main, join)])
        self._x = max(ends) + BUS
        self._joint = self._main, join

    def _column_width(self, column: Column) -> float:
        lanes = (
            MARK_WIDTH * len(_split(lane.items)) + LEAD_IN + self._width(range(lane.chain.start + 1, lane.chain.end + 1))
            for lane in column.lanes
        )
        return MARK_WIDTH * len(_split(column.items)) + 2 * BUS + max(lanes)

    def _width(self, indices: Iterable[int]) -> float:
        return sum(self._sizes.of(self._net.layer(index))[0] + GAP for index in indices)

    def _link_to(self, track: int, x: float) -> None:
        if self._joint is not None:
            self._found.links.append([self._joint, (track, x)])
        self._joint = track, x

    def _mark(self, items: Items, track: int, tracks: tuple[int, int] | None = None) -> None:
        x = self._x + MARK_WIDTH / 2
        half = 8 + 2.6 * len(mark_label(items, LABEL_LENGTH))
        self._found.marks.append(Mark(items=items, x=x, tracks=tracks or (track, track), half=half))
        self._x += MARK_WIDTH
        self._found.tracks[track].mark = max(self._found.tracks[track].mark, half)

    def _enter(self, chain: Chain, track: int) -> None:
        self._x += LEAD_IN
        self._found.inputs[chain.start] = (track, self._x - GAP / 2)

    def _make_room(self, chain: Chain, group: range, track: int) -> None:
        """Leave room above a track for its chain's residuals, and under it for a merged conv."""
        arcs = [self._levels[id(each)] for each in self._net.residuals if chain.start <= each.src < chain.end]
        line = self._found.tracks[track]
        line.arcs = max(line.arcs, 8.0 + ARC_STEP * max(arcs, default=0))
        takes_in = any(each.src == group[0] - 1 and each.dst == group[-1] for each in self._net.residuals)
        if self._merge_pos is not None and (len(group) > 1 or takes_in):
            line.below = NUMBER_SPACE + CONV_SPACE

    def _box(self, index: int, track: int) -> None:
        width, height = self._sizes.of(self._net.layer(index))
        line = self._found.tracks[track]
        line.half = max(line.half, height / 2)
        layer = self._net.layer(index)
        self._found.boxes[index] = Box(layer=layer, track=track, x=self._x, width=width, height=height)
        self._x += width + GAP
        self._found.slots[index] = (track, self._x - GAP / 2)

    # Down the page

    def _stack_rows(self) -> None:
        """Give each track its y: rows from top to bottom, stacks about their row's main track."""
        stacked = {track for _, tracks in self._stacks for track in tracks}
        y, tracks = self._top, self._found.tracks
        for main in (number for number in range(len(tracks)) if number not in stacked):
            own = [found for row, found in self._stacks if row == main]
            heights = [sum(tracks[track].bottom - tracks[track].top for track in found) for found in own]
            above = max(-tracks[main].top, max(heights, default=0.0) / 2)  # its y is still 0
            below = max(tracks[main].bottom, max(heights, default=0.0) / 2)
            tracks[main].y = y + above
            for found, height in zip(own, heights, strict=True):
                at = tracks[main].y - height / 2
                for track in found:
                    line = tracks[track]
                    line.y, at = at - line.top, at + line.bottom - line.top
            y += above + below + ROW_GAP
        self._found.height = y - self._top


def _split(items: Items) -> list[Items]:
    """Return what each mark holds: a gate by itself, other barriers that follow one another together."""
    found: list[Items] = []
    for item in items:
        is_alone = isinstance(item, Gate) or not found or isinstance(found[-1][0], Gate)
        found[len(found) - (0 if is_alone else 1) :] = [(item,) if is_alone else (*found[-1], item)]
    return found

