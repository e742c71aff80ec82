"""Places a network's chains: in rows, and side by side where they run side by side.

A single chain goes along its row's main track and on to the next row where it is too long; chains that run side by
side stay in one row, stacked about its main track.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from layerfold.graph.squeeze_excitation import SqueezeExcitation
from layerfold.report import layout as lay
from layerfold.report.box_sizes import BoxSizes
from layerfold.report.columns import Column, Items, columns_of, mark_label

if TYPE_CHECKING:
    from layerfold.graph.description import Chain
    from layerfold.graph.network import Network


def place(
    net: Network, merge_pos: Iterable[int] | None = None, *, changed: Iterable[int] = (), top: float = 0.0
) -> lay.Layout:
    """Place the layers of ``net`` in rows.

    Args:
        merge_pos: where merging stops; None takes every layer by itself.
        changed: ends of segments that are drawn as changed even if they are of one layer.
        top: y at which the first row begins.
    """
    return _Placing(net, None if merge_pos is None else frozenset(merge_pos), frozenset(changed), top).run()


class _Placing:
    """Goes along a row, and to the next one when the next piece does not fit."""

    def __init__(self, net: Network, merge_pos: frozenset[int] | None, changed: frozenset[int], top: float) -> None:
        self._net, self._merge_pos, self._changed, self._top = net, merge_pos, changed, top
        self._sizes, self._found = BoxSizes(net), lay.Layout()
        self._levels = dict(zip(map(id, net.residuals), lay.arc_levels(net.residuals), strict=True))
        self._stacks: list[tuple[int, list[int]]] = []
        self._joint: tuple[int, float] | None = None
        self._main, self._x = 0, lay.MARGIN
        self._new_row()

    def run(self) -> lay.Layout:
        columns, behind = columns_of(self._net)
        for column in columns:
            if len(column.lanes) > 1 and self._column_width(column) <= lay.ROW_WIDTH:
                self._stack(column)
            else:
                for number, lane in enumerate(column.lanes):
                    self._flow(lane.chain, (*(column.items if number == 0 else ()), *lane.items))
        marks = _split(behind)
        for items in marks:
            self._need(lay.MARK_WIDTH)
            self._mark(items, self._main)
        if marks:
            self._link_to(self._main, self._x - lay.MARK_WIDTH / 2)
        self._found.tracks[self._main].right = self._x
        self._stack_rows()
        return self._found

    # Along the row

    def _new_row(self) -> None:
        if self._found.tracks:
            self._found.tracks[self._main].right = self._x
        self._main, self._x = len(self._found.tracks), lay.MARGIN
        self._found.tracks.append(lay.Track(below=lay.NUMBER_SPACE))

    def _need(self, width: float) -> None:
        if self._x > lay.MARGIN and self._x + width > lay.MARGIN + lay.ROW_WIDTH:
            if self._joint is not None:
                self._found.links.append([self._joint, (self._main, self._x + 2)])
            self._new_row()
            if self._joint is not None:
                self._joint = self._main, lay.MARGIN - 14

    def _flow(self, chain: Chain, items: Items) -> None:
        """Place one chain on the main track, and on those of the next rows where it is too long."""
        groups = lay.segment_ranges(chain.start, chain.end, self._merge_pos)
        marks = _split(items)
        whole = self._length(chain)
        first = whole if whole <= lay.ROW_WIDTH / 4 else self._width(groups[0])  # a short chain stays in one piece too
        self._need(lay.MARK_WIDTH * len(marks) + lay.LEAD_IN + first)
        for mark in marks:
            self._mark(mark, self._main)
        self._link_to(self._main, self._x + lay.LEAD_IN - lay.GAP / 2)
        self._joint = None
        self._enter(chain, self._main)
        for group in groups:
            # A segment stays in one row where it fits into one; a longer one flows on.
            total = self._width(group)
            self._need(total if total <= lay.ROW_WIDTH - lay.LEAD_IN - lay.MARK_WIDTH else 0.0)
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
        self._found.tracks += [lay.Track(below=lay.NUMBER_SPACE) for _ in tracks]
        self._stacks.append((self._main, tracks))
        for items in _split(column.items):
            self._mark(items, self._main, (tracks[0], tracks[-1]))
        bus = self._x + lay.BUS / 2
        self._link_to(self._main, bus)
        self._x += lay.BUS
        start, ends = self._x, []
        for track, lane in zip(tracks, column.lanes, strict=True):
            self._x = start
            for items in _split(lane.items):
                self._mark(items, track)
            self._found.links.append([(self._main, bus), (track, bus), (track, self._x + lay.LEAD_IN - lay.GAP / 2)])
            self._enter(lane.chain, track)
            for group in lay.segment_ranges(lane.chain.start, lane.chain.end, self._merge_pos):
                self._make_room(lane.chain, group, track)
                for index in group:
                    self._box(index, track)
            self._found.tracks[track].right = self._x
            ends.append(self._x)
        join = max(ends) + lay.BUS / 2
        for track, lane in zip(tracks, column.lanes, strict=True):
            self._found.links.append([self._found.slots[lane.chain.end], (track, join), (self._main, join)])
        self._x = max(ends) + lay.BUS
        self._joint = self._main, join

    def _column_width(self, column: Column) -> float:
        lanes = (lay.MARK_WIDTH * len(_split(lane.items)) + self._length(lane.chain) for lane in column.lanes)
        return lay.MARK_WIDTH * len(_split(column.items)) + 2 * lay.BUS + lay.LEAD_IN + max(lanes)

    def _length(self, chain: Chain) -> float:
        return self._width(range(chain.start + 1, chain.end + 1))

    def _width(self, indices: Iterable[int]) -> float:
        return sum(self._sizes.of(self._net.layer(index))[0] + lay.GAP for index in indices)

    def _link_to(self, track: int, x: float) -> None:
        if self._joint is not None:
            self._found.links.append([self._joint, (track, x)])
        self._joint = track, x

    def _mark(self, items: Items, track: int, tracks: tuple[int, int] | None = None) -> None:
        x = self._x + lay.MARK_WIDTH / 2
        half = 8 + 2.6 * len(mark_label(items, lay.LABEL_LENGTH))
        self._found.marks.append(lay.Mark(items=items, x=x, tracks=tracks or (track, track), half=half))
        self._x += lay.MARK_WIDTH
        self._found.tracks[track].mark = max(self._found.tracks[track].mark, half)

    def _enter(self, chain: Chain, track: int) -> None:
        self._x += lay.LEAD_IN
        self._found.inputs[chain.start] = (track, self._x - lay.GAP / 2)

    def _make_room(self, chain: Chain, group: range, track: int) -> None:
        """Leave room above a track for its chain's residuals, and under it for a merged conv."""
        arcs = [self._levels[id(each)] for each in self._net.residuals if chain.start <= each.src < chain.end]
        line = self._found.tracks[track]
        line.arcs = max(line.arcs, 8.0 + lay.ARC_STEP * max(arcs, default=0))
        takes_in = any(each.src == group[0] - 1 and each.dst == group[-1] for each in self._net.residuals)
        if self._merge_pos is not None and (len(group) > 1 or takes_in or group[-1] in self._changed):
            line.below = lay.NUMBER_SPACE + lay.CONV_SPACE

    def _box(self, index: int, track: int) -> None:
        width, height = self._sizes.of(self._net.layer(index))
        line = self._found.tracks[track]
        line.half = max(line.half, height / 2)
        layer = self._net.layer(index)
        self._found.boxes[index] = lay.Box(layer=layer, track=track, x=self._x, width=width, height=height)
        self._x += width + lay.GAP
        self._found.slots[index] = (track, self._x - lay.GAP / 2)

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
            y += above + below + lay.ROW_GAP
        self._found.height = y - self._top


def _split(items: Items) -> list[Items]:
    """Return what each mark holds: a gate by itself, other barriers that follow one another together."""
    found: list[Items] = []
    for item in items:
        is_alone = isinstance(item, SqueezeExcitation) or not found or isinstance(found[-1][0], SqueezeExcitation)
        found[len(found) - (0 if is_alone else 1) :] = [(item,) if is_alone else (*found[-1], item)]
    return found
