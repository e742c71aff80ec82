"""Where each part of a network's drawing goes: layers in rows, segments kept in one piece where they fit.

Coordinates are in pixels of the drawing; y grows downwards. Pure geometry: no SVG here, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from layerfold.graph.network import Barrier, Layer, Network

MARGIN = 24.0
ROW_WIDTH = 1112.0
GAP = 20.0
"""Between two layers; the activation slot's dot stands in its middle."""
LEAD_IN = 26.0
"""Before a chain's first layer: its input, where residuals may begin."""
BARRIER_WIDTH = 26.0
ARC_SPACE = 30.0
MAX_BOX_HEIGHT = 58.0
MIN_BOX_HEIGHT = 17.0
MIN_BOX_WIDTH = 21.0
MAX_BOX_WIDTH = 38.0
ROW_HEIGHT = ARC_SPACE + MAX_BOX_HEIGHT + 56.0


class Positions(Protocol):
    """The part of a solution that a drawing needs."""

    @property
    def act_pos(self) -> Iterable[int]: ...

    @property
    def merge_pos(self) -> Iterable[int]: ...


@dataclass(frozen=True, kw_only=True)
class Box:
    """One layer: ``x`` is its left edge, the row's middle line its vertical centre."""

    layer: Layer
    row: int
    x: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width


@dataclass(frozen=True, kw_only=True)
class BarrierMark:
    """What stands between two chains, or beside them."""

    barriers: tuple[Barrier, ...]
    row: int
    x: float


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Boxes by layer index, slots and chain inputs by position, barrier marks, and the number of rows.

    Attributes:
        boxes: the box of each layer index.
        slots: (row, x) of the activation slot of each position that ends a layer.
        inputs: (row, x) of each chain's input, by the chain's start.
        row_ends: right edge of what each row holds.
    """

    boxes: dict[int, Box]
    slots: dict[int, tuple[int, float]]
    inputs: dict[int, tuple[int, float]]
    marks: tuple[BarrierMark, ...]
    row_ends: tuple[float, ...]

    @property
    def num_rows(self) -> int:
        return len(self.row_ends)

    def middle(self, row: int, top: float) -> float:
        """Return the y of the line on which a row's layers stand; ``top`` is where row 0 begins."""
        return top + row * ROW_HEIGHT + ARC_SPACE + MAX_BOX_HEIGHT / 2

    def source(self, position: int) -> tuple[int, float]:
        """Return (row, x) of a position as the beginning of a residual."""
        return self.inputs[position] if position in self.inputs else self.slots[position]


def place(net: Network, merge_pos: Iterable[int] | None = None) -> Layout:
    """Place the layers of ``net`` in rows.

    Args:
        merge_pos: where merging stops; None takes every layer by itself.
    """
    pen, sizes, before = _Pen(), _BoxSizes(net), barriers_before(net)
    boxes: dict[int, Box] = {}
    slots: dict[int, tuple[int, float]] = {}
    inputs: dict[int, tuple[int, float]] = {}
    marks: list[BarrierMark] = []

    def mark(barriers: tuple[Barrier, ...]) -> None:
        if barriers:
            marks.append(BarrierMark(barriers=barriers, row=pen.row, x=pen.x + BARRIER_WIDTH / 2))
            pen.x += BARRIER_WIDTH

    for number, chain in enumerate(net.chains):
        groups = segment_ranges(chain.start, chain.end, merge_pos)
        pen.need((BARRIER_WIDTH if before[number] else 0.0) + LEAD_IN + sizes.total(net, groups[0]))
        mark(before[number])
        pen.x += LEAD_IN
        inputs[chain.start] = (pen.row, pen.x - GAP / 2)
        for group in groups:
            # A segment stays in one row where it fits into one; a longer one flows on.
            total = sizes.total(net, group)
            pen.need(total if total <= ROW_WIDTH - LEAD_IN - BARRIER_WIDTH else 0.0)
            for index in group:
                width, height = sizes.of(net.layer(index))
                pen.need(width + GAP)
                boxes[index] = Box(layer=net.layer(index), row=pen.row, x=pen.x, width=width, height=height)
                pen.x += width + GAP
                slots[index] = (pen.row, pen.x - GAP / 2)
    pen.need(BARRIER_WIDTH)
    mark(before[-1])
    return Layout(boxes=boxes, slots=slots, inputs=inputs, marks=tuple(marks), row_ends=(*pen.full, pen.x))


def segment_ranges(start: int, end: int, merge_pos: Iterable[int] | None) -> list[range]:
    """Return the layer indices of each segment of a chain; without ``merge_pos`` each layer is by itself."""
    stops = set(range(start + 1, end + 1)) if merge_pos is None else {*merge_pos, end}
    ranges, first = [], start + 1
    for position in range(start + 1, end + 1):
        if position in stops:
            ranges.append(range(first, position + 1))
            first = position + 1
    return ranges


def barriers_before(net: Network) -> list[tuple[Barrier, ...]]:
    """Return the barriers that stand before each chain, and as a last item those behind the last one."""
    found: list[list[Barrier]] = [[] for _ in range(len(net.chains) + 1)]
    for barrier in net.barriers:
        after = barrier.after
        found[next((i for i, chain in enumerate(net.chains) if chain.start >= after), len(net.chains))].append(barrier)
    return [tuple(barriers) for barriers in found]


class _Pen:
    """Goes along a row, and to the next one when the next piece does not fit."""

    def __init__(self) -> None:
        self.row, self.x = 0, MARGIN
        self.full: list[float] = []

    def need(self, width: float) -> None:
        if self.x > MARGIN and self.x + width > MARGIN + ROW_WIDTH:
            self.full.append(self.x)
            self.row, self.x = self.row + 1, MARGIN


class _BoxSizes:
    """Width hints at output channels and height at resolution, each on a log scale over this network."""

    def __init__(self, net: Network) -> None:
        channels = [layer.output_shape[0] for layer in net.layers]
        heights = [layer.input_shape[1] for layer in net.layers]
        self._channels = (min(channels, default=1), max(channels, default=1))
        self._heights = (min(heights, default=1), max(heights, default=1))

    def of(self, layer: Layer) -> tuple[float, float]:
        wide = _log_share(layer.output_shape[0], self._channels)
        high = _log_share(layer.input_shape[1], self._heights)
        label_width = 5.6 * len(kernel_text(layer.conv.kernel_size)) + 5
        return (
            max(MIN_BOX_WIDTH + wide * (MAX_BOX_WIDTH - MIN_BOX_WIDTH), label_width),
            MIN_BOX_HEIGHT + high * (MAX_BOX_HEIGHT - MIN_BOX_HEIGHT),
        )

    def total(self, net: Network, indices: Iterable[int]) -> float:
        return sum(self.of(net.layer(index))[0] + GAP for index in indices)


def _log_share(value: int, limits: tuple[int, int]) -> float:
    """Return where ``value`` lies between the limits, 0..1, on a log scale."""
    low, high = limits
    return 0.5 if low >= high else math.log(value / low) / math.log(high / low)


def kernel_text(kernel_size: tuple[int, int]) -> str:
    """Return a kernel size for people, for example ``3×3``."""
    return f"{kernel_size[0]}×{kernel_size[1]}"
