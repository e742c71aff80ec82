"""The network as an SVG picture that shows at a glance what was merged.

Plain string building: the picture needs no script, no font file and no network, and follows the reader's light or
dark colour scheme.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from layerfold.report import layout as lay
from layerfold.report.drawing_style import STYLE, dot, legend, rect

if TYPE_CHECKING:
    from layerfold.graph.network import Layer, Network, Residual, Segment

KIND_NAMES = {"norm": "batch norm", "scale": "channel scale", "pool": "average pool", "add": "addition"}
"""What a layer is that is no conv; merging takes it for the conv that computes the same."""

_TOP = 74.0
_WIDTH = lay.ROW_WIDTH + 2 * lay.MARGIN


def network_svg(net: Network, solution: lay.Positions | None = None, *, title: str = "") -> str:
    """Return the network as an SVG document.

    Layers are boxes along their chain: height hints at the resolution of the input, width at the output channels.
    Each merged segment is a band over its layers with the merged conv written under them; layers that stay as they
    are stand in grey. A dot behind each layer is its activation slot.

    Args:
        net: the traced network.
        solution: anything with ``act_pos`` and ``merge_pos``; None draws the original.
        title: the heading; the network's name where it is empty.
    """
    merge_pos = None if solution is None else frozenset(solution.merge_pos)
    act_pos = None if solution is None else frozenset(solution.act_pos)
    segments = [] if merge_pos is None else [s for s in net.segments_of(merge_pos) if is_merged(net, s)]
    placed = lay.place(net, merge_pos)
    picture = _Picture(net, placed, segments, act_pos)
    height = _TOP + placed.num_rows * lay.ROW_HEIGHT + 44
    heading = title or net.name
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" class="lf-network" role="img" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
        f"<title>{escape(heading)}</title>",
        STYLE,
        f'<rect class="lf-paper" width="{_WIDTH:g}" height="{height:g}" rx="8"/>',
        f'<text class="lf-title" x="{lay.MARGIN:g}" y="34">{escape(heading)}</text>',
        f'<text class="lf-summary" x="{lay.MARGIN:g}" y="56">{escape(summary_line(net, solution))}</text>',
        *picture.parts(),
        legend(lay.MARGIN, height - 22, picture.shown()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def summary_line(net: Network, solution: lay.Positions | None) -> str:
    """Return one line of counts: what the solution does to the network."""
    if solution is None:
        counts = ((net.layers, "layer"), (net.chains, "chain"), (net.original_act_pos, "activation"))
        return ", ".join(_count(len(things), noun) for things, noun in (*counts, (net.residuals, "residual")))
    segments = net.segments_of(solution.merge_pos)
    merged = [segment for segment in segments if is_merged(net, segment)]
    states = [slot_state(net, index, frozenset(solution.act_pos)) for index in range(1, len(net.layers) + 1)]
    replaced = _count(sum(segment.num_layers for segment in merged), "layer")
    text = f"{len(net.layers)} layers → {len(segments)}: {_count(len(merged), 'merged conv')} in place of {replaced}; "
    text += f"{_count(states.count('removed'), 'activation')} removed"
    added = states.count("added")
    return text + (f", {added} added" if added else "")


def slot_state(net: Network, index: int, act_pos: frozenset[int] | None) -> str:
    """Return ``kept``, ``removed``, ``added`` or ``empty`` for the activation slot behind a layer."""
    had = net.has_activation(index)
    # A chain's own end keeps what it has, whatever the solution lists (DESIGN.md, section 3).
    if act_pos is None or index == net.chain_of(index).end:
        return "kept" if had else "empty"
    if index in act_pos:
        return "kept" if had else "added"
    return "removed" if had else "empty"


def is_merged(net: Network, segment: Segment) -> bool:
    """Say whether a segment is more than one layer left as it is (one layer may take in its residual)."""
    return segment.num_layers > 1 or segment.conv != net.layer(segment.end).conv


class _Picture:
    """The parts of the picture, from back to front."""

    def __init__(
        self, net: Network, placed: lay.Layout, segments: list[Segment], act_pos: frozenset[int] | None
    ) -> None:
        self._net, self._placed, self._segments, self._act_pos = net, placed, segments, act_pos
        self._merged = {i for s in segments for i in range(s.start + 1, s.end + 1)}

    def parts(self) -> Iterator[str]:
        for segment in self._segments:
            yield from self._band(segment)
        yield from self._lines()
        for residual in self._net.residuals:
            yield self._arc(residual)
        for box in self._placed.boxes.values():
            yield self._box(box)
        for index in self._placed.slots:
            yield self._dot(index)
        for mark in self._placed.marks:
            yield self._barrier(mark)

    def shown(self) -> set[str]:
        """Return what the picture holds, as keys of the legend."""
        found = {slot_state(self._net, index, self._act_pos) for index in self._placed.slots}
        found.update({"merged"} if self._segments else ())
        found.update({"layer"} if len(self._merged) < len(self._net.layers) else ())
        found.update("depthwise" for layer in self._net.layers if layer.conv.is_depthwise)
        found.update("residual" if residual.is_identity else "shortcut" for residual in self._net.residuals)
        return found | ({"barrier"} if self._placed.marks else set())

    def _middle(self, row: int) -> float:
        return self._placed.middle(row, _TOP)

    def _band(self, segment: Segment) -> Iterator[str]:
        boxes = [self._placed.boxes[i] for i in range(segment.start + 1, segment.end + 1)]
        rows: dict[int, list[lay.Box]] = {}
        for box in boxes:
            rows.setdefault(box.row, []).append(box)
        spans = {row: (found[0].x - 5, found[-1].right + 5) for row, found in rows.items()}
        widest = max(spans, key=lambda row: spans[row][1] - spans[row][0])
        yield f"<g><title>{escape(_segment_text(segment))}</title>"
        for row, (left, right) in spans.items():
            top = self._middle(row) - lay.MAX_BOX_HEIGHT / 2 - 5
            yield rect("lf-band", left, top, right - left, lay.MAX_BOX_HEIGHT + 42, 6)
            pill_top = top + lay.MAX_BOX_HEIGHT + 24
            yield rect("lf-conv", left, pill_top, right - left, 18, 6)
            if row == widest:
                label = _fitting_label(segment, right - left)
                yield f'<text class="lf-convtext" x="{(left + right) / 2:.1f}" y="{pill_top + 12.8:.1f}">{label}</text>'
        yield "</g>"

    def _lines(self) -> Iterator[str]:
        """Draw the line along each chain, row by row."""
        for chain in self._net.chains:
            row, left = self._placed.inputs[chain.start]
            for index in range(chain.start + 1, chain.end + 1):
                box = self._placed.boxes[index]
                if box.row != row:
                    yield self._line(row, left, self._placed.row_ends[row] + 4)
                    row, left = box.row, lay.MARGIN - 12
            yield self._line(row, left, self._placed.slots[chain.end][1])

    def _line(self, row: int, left: float, right: float) -> str:
        y = self._middle(row)
        return f'<line class="lf-wire" x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>'

    def _arc(self, residual: Residual) -> str:
        (row, x1), (end_row, x2) = self._placed.source(residual.src), self._placed.slots[residual.dst]
        is_merged = any(s.start <= residual.src and residual.dst <= s.end for s in self._segments)
        lift = min(lay.ARC_SPACE - 5, 9.0 + 3.2 * (residual.dst - residual.src))
        paths = []
        for at in range(row, end_row + 1):
            foot = self._middle(at)
            top = foot - lay.MAX_BOX_HEIGHT / 2 - 4 - lift
            left = x1 + 1.5 if at == row else lay.MARGIN - 14
            right = x2 - 1.5 if at == end_row else self._placed.row_ends[at] + 6
            path = f"M{left:.1f} {foot - 7:.1f}V{top + 8:.1f}q0 -8 8 -8" if at == row else f"M{left:.1f} {top:.1f}"
            path += f"H{right - 8:.1f}q8 0 8 8V{foot - 8:.1f}" if at == end_row else f"H{right:.1f}"
            paths.append(path)
        kind = "lf-arc" + ("" if residual.is_identity else " lf-shortcut") + (" lf-inside" if is_merged else "")
        tip = self._middle(end_row) - 6.5
        head = f"M{x2 - 4.5:.1f} {tip - 5:.1f}h6l-3 5z"
        return (
            f'<g class="{kind}"><title>{escape(_residual_text(residual, is_merged))}</title>'
            f'<path class="lf-stroke" d="{"".join(paths)}"/><path class="lf-head" d="{head}"/></g>'
        )

    def _box(self, box: lay.Box) -> str:
        layer, y = box.layer, self._middle(box.row)
        kind = "lf-layer" + (" lf-merged" if layer.index in self._merged else "")
        shape = rect(kind, box.x, y - box.height / 2, box.width, box.height, 3)
        if layer.conv.is_depthwise:
            shape += rect("lf-depthwise", box.x, y - box.height / 2, box.width, box.height, 3)
        middle, foot = box.x + box.width / 2, y + lay.MAX_BOX_HEIGHT / 2 + 11
        stride = max(layer.conv.stride)
        kernel = lay.kernel_text(layer.conv.kernel_size)
        number = f"{layer.index}" + (f'<tspan class="lf-stride"> /{stride}</tspan>' if stride > 1 else "")
        return (
            f"<g><title>{escape(_layer_text(layer))}</title>{shape}"
            f'<text class="lf-kernel" x="{middle:.1f}" y="{y + 3.2:.1f}">{kernel}</text>'
            f'<text class="lf-number" x="{middle:.1f}" y="{foot:.1f}">{number}</text></g>'
        )

    def _dot(self, index: int) -> str:
        row, x = self._placed.slots[index]
        state, layer = slot_state(self._net, index, self._act_pos), self._net.layer(index)
        kind = layer.activation or self._net.chain_of(index).activation
        note = {"kept": f"{kind}", "removed": f"{kind}, removed", "added": f"{kind}, added", "empty": "no activation"}
        return f"<g><title>{escape(f'position {index}: {note[state]}')}</title>{dot(state, x, self._middle(row))}</g>"

    def _barrier(self, mark: lay.BarrierMark) -> str:
        y, half = self._middle(mark.row), lay.MAX_BOX_HEIGHT / 2 + 18
        lines = "\n".join(f"{barrier.name} ({barrier.kind}): {barrier.reason}" for barrier in mark.barriers)
        return (
            f"<g><title>{escape(lines)}</title>"
            f'{rect("lf-barrier", mark.x - 9, y - half, 18, 2 * half, 9)}'
            f'<text class="lf-barriertext" transform="translate({mark.x + 3.3:.1f} {y:.1f}) rotate(-90)">'
            f"{escape(_barrier_label(mark))}</text></g>"
        )


def _fitting_label(segment: Segment, width: float) -> str:
    """Return the fullest description of the merged conv that fits into ``width`` pixels."""
    conv = segment.conv
    kernel = lay.kernel_text(conv.kernel_size) + (" dw" if conv.is_depthwise else "")
    stride = f" /{max(conv.stride)}" if max(conv.stride) > 1 else ""
    texts = (
        f"{segment.num_layers} layers → one {kernel}{stride} conv, {conv.in_channels}→{conv.out_channels}",
        f"{segment.num_layers} layers → one {kernel}{stride} conv",
        f"one {kernel}{stride} conv",
        f"one {kernel}{stride}",
        f"{kernel}{stride}",
        lay.kernel_text(conv.kernel_size),
    )
    return next((text for text in texts if 6.5 * len(text) + 8 <= width), texts[-1])


def _segment_text(segment: Segment) -> str:
    layers = f"layer {segment.end}" if segment.num_layers == 1 else f"layers {segment.start + 1} to {segment.end}"
    return f"{layers} merged into one conv: {conv_text(segment)}; {segment.macs:,} multiply-adds"


def conv_text(piece: Segment | Layer) -> str:
    """Return a conv for people, for example ``5×5, 32→64, stride 2``; what is no conv by its name: ``batch norm, 64``."""
    conv, kind = piece.conv, getattr(piece, "kind", "conv")
    parts = [f"{lay.kernel_text(conv.kernel_size)}, {conv.in_channels}→{conv.out_channels}"]
    if kind != "conv":
        kernel = f" {lay.kernel_text(conv.kernel_size)}" if kind == "pool" else ""
        parts = [f"{KIND_NAMES.get(kind, kind)}{kernel}, {conv.out_channels}"]
    if max(conv.stride) > 1:
        parts.append(f"stride {max(conv.stride)}")
    if max(conv.dilation) > 1:
        parts.append(f"dilation {max(conv.dilation)}")
    if kind == "conv" and conv.groups > 1:
        parts.append("depthwise" if conv.is_depthwise else f"{conv.groups} groups")
    return ", ".join(parts)


def _layer_text(layer: Layer) -> str:
    _, height, width = layer.input_shape
    return f"layer {layer.index}: {layer.name}\n{conv_text(layer)}; input {height}×{width}"


def _residual_text(residual: Residual, is_merged: bool) -> str:
    way = "identity" if residual.is_identity else f"shortcut through {', '.join(residual.shortcut_names)}"
    fate = "; taken into the merged conv" if is_merged else ""
    return f"residual from position {residual.src} to {residual.dst}, {way}{fate}"


def _barrier_label(mark: lay.BarrierMark) -> str:
    """Return the kinds of the barriers, shortened to what fits: ``avg pool, flatten +2``."""
    kinds = [_plain_kind(barrier.kind) for barrier in mark.barriers]
    kinds = [kind for i, kind in enumerate(kinds) if kind not in kinds[:i]]
    shown = 1
    while shown < len(kinds) and len(", ".join(kinds[: shown + 1])) <= 15:
        shown += 1
    label = ", ".join(kinds[:shown])
    more = len(kinds) - shown
    return (label if len(label) <= 17 else label[:16] + "…") + (f" +{more}" if more else "")


def _plain_kind(kind: str) -> str:
    """Return a module's or function's kind in plain words: ``AdaptiveAvgPool2d`` becomes ``avg pool``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind).replace("_", " ").lower().removesuffix("2d").split()
    return " ".join(word for word in words if word != "adaptive") or kind


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
