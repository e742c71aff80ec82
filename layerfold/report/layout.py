"""What a network's drawing consists of, and where: tracks, boxes, slots, marks and links.

Coordinates are in pixels of the drawing; y grows downwards. Pure geometry: no SVG here, no torch.
:mod:`layerfold.report.placing` makes it.

A *track* is a horizontal line on which layers stand. Each row has a main track; a column of several chains has a
track for each, stacked about the row's main one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from layerfold.graph.squeeze_excitation import SqueezeExcitation
from layerfold.report.columns import Items

if TYPE_CHECKING:
    from layerfold.graph.description import Layer, Residual

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
    """Mark between chains: one gate, or the barriers that follow one another.

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
        return isinstance(self.items[0], SqueezeExcitation)


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

    def extent(self, mark: Mark) -> tuple[float, float]:
        """Return (top, bottom) of a mark: across its tracks' boxes, and at least as long as its label."""
        first, last = (self.tracks[number] for number in mark.tracks)
        top, bottom = first.y - first.half - 6, last.y + last.half + 6
        short = max(mark.half - (bottom - top) / 2, 0.0)
        return top - short, bottom + short


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
            levels[j] for j in levels if residuals[j].src < residuals[i].dst and residuals[i].src < residuals[j].dst
        ]
        levels[i] = 1 + max(below, default=0)
    return [levels[i] for i in range(len(residuals))]
