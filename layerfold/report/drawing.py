"""The network as an SVG picture that shows at a glance what was merged.

Plain string building: the picture needs no script, no font file and no network, and follows the reader's light or
dark colour scheme.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from layerfold.graph.barrier_groups import why_not_more
from layerfold.graph.candidates import inner_residuals
from layerfold.graph.counts import lean_candidates, mergeable_share, replaced_macs
from layerfold.graph.dropping import dropped_layers
from layerfold.graph.squeeze_excitation import find_squeeze_excitations
from layerfold.report import layout as lay
from layerfold.report.box_sizes import box_text
from layerfold.report.captions import fitting_label, item_text, layer_text, residual_text, segment_text
from layerfold.report.columns import mark_label
from layerfold.report.drawing_style import LEGEND_LINE, STYLE, dot, legend, rect
from layerfold.report.placing import place
from layerfold.report.words import markup_text, share_text

if TYPE_CHECKING:
    from layerfold.graph.description import Layer, Residual, Segment
    from layerfold.graph.network import Network

_TOP = 76.0
_LINE = 19.0
_WIDTH = lay.ROW_WIDTH + 2 * lay.MARGIN


def network_svg(
    net: Network,
    solution: lay.Positions | None = None,
    *,
    title: str = "",
    candidates: Sequence[Segment] | None = None,
) -> str:
    """Return the network as an SVG document.

    Layers are boxes along their chain: height hints at the resolution of the input, width at the output channels.
    Each merged segment is a band over its layers with the merged conv written under them; layers that stay as they
    are stand in grey. A dot behind each layer is its activation slot.

    Args:
        net: the traced network.
        solution: anything with ``act_pos`` and ``merge_pos``, and perhaps ``kept_layers``: dropped layers are dashed;
            None draws the original.
        title: the heading; the network's name where it is empty.
        candidates: what may be merged, for the share of multiply-adds in the line under the heading.
    """
    every = [] if solution is None else segments_of_solution(net, solution)
    merge_pos = None if solution is None else frozenset(segment.end for segment in every)
    act_pos = None if solution is None else frozenset(solution.act_pos)
    segments = [segment for segment in every if is_merged(net, segment)]
    lines = summary_lines(net, solution, candidates)
    top = _TOP + _LINE * (len(lines) - 1)
    placed = place(net, merge_pos, changed=[segment.end for segment in segments], top=top)
    picture = _Picture(net, placed, segments, act_pos)
    explained, num_lines = legend(lay.MARGIN, top + placed.height + 18, lay.ROW_WIDTH, picture.shown())
    height = top + placed.height + 16 + LEGEND_LINE * num_lines
    heading = title or net.name
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" class="lf-network" role="img" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
        f"<title>{markup_text(heading)}</title>",
        STYLE,
        f'<rect class="lf-paper" width="{_WIDTH:g}" height="{height:g}" rx="8"/>',
        f'<text class="lf-title" x="{lay.MARGIN:g}" y="34">{markup_text(heading)}</text>',
        *(
            f'<text class="lf-summary" x="{lay.MARGIN:g}" y="{56 + _LINE * i:g}">{markup_text(line)}</text>'
            for i, line in enumerate(lines)
        ),
        *picture.parts(),
        explained,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def summary_lines(
    net: Network, solution: lay.Positions | None, candidates: Sequence[Segment] | None = None
) -> list[str]:
    """Return what the solution does to the network, in counts; without one what may be done, and why not more."""
    if solution is not None:
        return [_solution_line(net, solution)]
    counts = ((net.layers, "layer"), (net.chains, "chain"), (net.original_act_pos, "activation"))
    first = ", ".join(_count(len(things), noun) for things, noun in (*counts, (net.residuals, "residual")))
    if candidates is not None:
        share = share_text(mergeable_share(net, candidates))
        lean = share_text(mergeable_share(net, lean_candidates(net, candidates)))
        first += f"; {share} of multiply-adds are mergeable, {lean} without adding any"
    why = why_not_more(net)
    return [first, f"Why not more: {why}"] if why else [first]


def _solution_line(net: Network, solution: lay.Positions) -> str:
    segments = segments_of_solution(net, solution)
    merged = [segment for segment in segments if is_merged(net, segment)]
    states = [slot_state(net, index, frozenset(solution.act_pos)) for index in range(1, len(net.layers) + 1)]
    replaced = _count(sum(segment.num_layers for segment in merged), "layer")
    gated = {index for gate in find_squeeze_excitations(net) for index in gate.layers}
    hidden = sum(segment.end in gated for segment in merged)
    dropped = sum(len(segment.dropped) for segment in segments)
    left = sum(not segment.is_identity for segment in segments)
    convs = sum(not segment.is_identity for segment in merged)
    text = f"{len(net.layers)} layers → {left}: {_count(convs, 'merged conv')} in place of {replaced}"
    text += f", {dropped} of them dropped" if dropped else ""
    text += f", {hidden} of them inside squeeze-and-excitation; " if hidden else "; "
    text += f"{_count(states.count('removed'), 'activation')} removed"
    added = states.count("added")
    return text + (f", {added} added" if added else "")


def slot_state(net: Network, index: int, act_pos: frozenset[int] | None) -> str:
    """Return ``kept``, ``removed``, ``added`` or ``empty`` for the activation slot behind a layer."""
    had = net.has_activation(index)
    # A chain's own end keeps what it has, whatever the solution lists (docs/design.md).
    if act_pos is None or index == net.chain_of(index).end:
        return "kept" if had else "empty"
    if index in act_pos:
        return "kept" if had else "added"
    return "removed" if had else "empty"


def is_merged(net: Network, segment: Segment) -> bool:
    """Say whether a segment is more than one layer left as it is: one layer may take in a residual of its own."""
    return segment.is_changed or bool(inner_residuals(net, segment.start, segment.end))


def segments_of_solution(net: Network, solution: lay.Positions) -> list[Segment]:
    """Return a solution's segments, without the layers that it drops if it says so."""
    changed = net.changed(getattr(solution, "changes", ()))
    return changed.segments_of(solution.merge_pos, dropped_layers(net, getattr(solution, "kept_layers", None)))


class _Picture:
    """The parts of the picture, from back to front."""

    def __init__(
        self, net: Network, placed: lay.Layout, segments: list[Segment], act_pos: frozenset[int] | None
    ) -> None:
        self._net, self._placed, self._segments, self._act_pos = net, placed, segments, act_pos
        self._merged = {i for s in segments for i in range(s.start + 1, s.end + 1)}
        self._dropped = {index for segment in segments for index in segment.dropped}

    def parts(self) -> Iterator[str]:
        for segment in self._segments:
            yield from self._band(segment)
        yield from self._links()
        yield from self._lines()
        for residual, level in zip(self._net.residuals, lay.arc_levels(self._net.residuals), strict=True):
            if residual.dst in self._placed.slots:
                yield self._arc(residual, level)
        for box in self._placed.boxes.values():
            yield self._box(box)
        for index in self._placed.slots:
            yield self._dot(index)
        for mark in self._placed.marks:
            yield self._mark(mark)

    def shown(self) -> set[str]:
        """Return what the picture holds, as keys of the legend."""
        found = {slot_state(self._net, index, self._act_pos) for index in self._placed.slots}
        found.update({"merged"} if self._segments else ())
        found.update({"dropped"} if self._dropped else ())
        found.update({"costly"} if any(self._is_costly(segment) for segment in self._segments) else ())
        found.update({"layer"} if self._placed.boxes.keys() - self._merged else ())
        found.update("depthwise" for box in self._placed.boxes.values() if _is_striped(box.layer))
        found.update("residual" if residual.is_identity else "shortcut" for residual in self._net.residuals)
        return found | {"gate" if mark.is_gate else "barrier" for mark in self._placed.marks}

    def _is_costly(self, segment: Segment) -> bool:
        return segment.macs > replaced_macs(self._net, segment.start, segment.end)

    def _track(self, number: int) -> lay.Track:
        return self._placed.tracks[number]

    def _band(self, segment: Segment) -> Iterator[str]:
        boxes = [self._placed.boxes[i] for i in range(segment.start + 1, segment.end + 1) if i in self._placed.boxes]
        spans: dict[int, tuple[float, float]] = {}
        for box in boxes:
            left, right = spans.get(box.track, (box.x - 5, 0.0))
            spans[box.track] = left, max(right, box.right + 5)
        if not spans:  # inside a gate
            return
        widest = max(spans, key=lambda track: spans[track][1] - spans[track][0])
        yield f"<g><title>{markup_text(segment_text(self._net, segment))}</title>"
        for number, (left, right) in spans.items():
            track = self._track(number)
            pill_top = track.y + track.half + lay.NUMBER_SPACE + 3
            top = track.y - track.half - 5
            yield rect("lf-band", left, top, right - left, pill_top + 18 - top, 6)
            kind = "lf-conv" + (" lf-costly" if self._is_costly(segment) else "")
            yield rect(kind, left, pill_top, right - left, 18, 6)
            if number == widest:
                label = fitting_label(segment, right - left)
                yield f'<text class="lf-convtext" x="{(left + right) / 2:.1f}" y="{pill_top + 12.8:.1f}">{label}</text>'
        yield "</g>"

    def _links(self) -> Iterator[str]:
        """Draw what leads from chain to chain."""
        for corners in self._placed.links:
            path = "".join(
                f"{'L' if i else 'M'}{x:.1f} {self._track(track).y:.1f}" for i, (track, x) in enumerate(corners)
            )
            yield f'<path class="lf-link" d="{path}"/>'

    def _lines(self) -> Iterator[str]:
        """Draw the line along each chain, track by track."""
        for start, (track, left) in self._placed.inputs.items():
            chain = self._net.chain_of(start + 1)
            for index in range(chain.start + 1, chain.end + 1):
                box = self._placed.boxes[index]
                if box.track != track:
                    yield self._line(track, left, self._track(track).right + 4)
                    track, left = box.track, lay.MARGIN - 12
            yield self._line(track, left, self._placed.slots[chain.end][1])

    def _line(self, track: int, left: float, right: float) -> str:
        y = self._track(track).y
        return f'<line class="lf-wire" x1="{left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>'

    def _arc(self, residual: Residual, level: int) -> str:
        (first, x1), (last, x2) = self._placed.source(residual.src), self._placed.slots[residual.dst]
        is_merged = any(s.start <= residual.src and residual.dst <= s.end for s in self._segments)
        # Arcs that leave or reach one slot stand a little apart.
        aside = min(1.5 * level, 5.0)
        x1, x2 = x1 + aside, x2 - aside
        paths = []
        for at in range(first, last + 1):
            track = self._track(at)
            top = track.y - track.half - 1 - lay.ARC_STEP * level
            left = x1 if at == first else lay.MARGIN - 14
            right = x2 if at == last else track.right + 6
            path = f"M{left:.1f} {track.y - 7:.1f}V{top + 6:.1f}q0 -6 6 -6" if at == first else f"M{left:.1f} {top:.1f}"
            path += f"H{right - 6:.1f}q6 0 6 6V{track.y - 8:.1f}" if at == last else f"H{right:.1f}"
            paths.append(path)
        kind = "lf-arc" + ("" if residual.is_identity else " lf-shortcut") + (" lf-inside" if is_merged else "")
        head = f"M{x2 - 3:.1f} {self._track(last).y - 11.5:.1f}h6l-3 5z"
        return (
            f'<g class="{kind}"><title>{markup_text(residual_text(residual, is_merged))}</title>'
            f'<path class="lf-stroke" d="{"".join(paths)}"/><path class="lf-head" d="{head}"/></g>'
        )

    def _box(self, box: lay.Box) -> str:
        layer, track = box.layer, self._track(box.track)
        y = track.y
        kind = "lf-layer" + (" lf-merged" if layer.index in self._merged else "")
        kind += " lf-dropped" if layer.index in self._dropped else ""
        shape = rect(kind, box.x, y - box.height / 2, box.width, box.height, 3)
        if _is_striped(layer):
            shape += rect("lf-depthwise", box.x, y - box.height / 2, box.width, box.height, 3)
        middle, foot = box.x + box.width / 2, y + track.half + 11
        stride = max(layer.conv.stride)
        number = f"{layer.index}" + (f'<tspan class="lf-stride"> /{stride}</tspan>' if stride > 1 else "")
        return (
            f"<g><title>{markup_text(layer_text(layer))}{', dropped' if layer.index in self._dropped else ''}</title>"
            f"{shape}"
            f'<text class="lf-kernel" x="{middle:.1f}" y="{y + 3.2:.1f}">{box_text(layer)}</text>'
            f'<text class="lf-number" x="{middle:.1f}" y="{foot:.1f}">{number}</text></g>'
        )

    def _dot(self, index: int) -> str:
        track, x = self._placed.slots[index]
        state, layer = slot_state(self._net, index, self._act_pos), self._net.layer(index)
        kind = layer.activation or self._net.chain_of(index).activation
        note = {"kept": f"{kind}", "removed": f"{kind}, removed", "added": f"{kind}, added", "empty": "no activation"}
        text = markup_text(f"position {index}: {note[state]}")
        return f"<g><title>{text}</title>{dot(state, x, self._track(track).y)}</g>"

    def _mark(self, mark: lay.Mark) -> str:
        head, foot = self._placed.extent(mark)
        y = (head + foot) / 2
        kind = "lf-gate" if mark.is_gate else "lf-barrier"
        label = mark_label(mark.items, max(int((foot - head - 12) / 5.2), lay.LABEL_LENGTH))
        lines = "\n".join(item_text(item) for item in mark.items)
        return (
            f"<g><title>{markup_text(lines)}</title>{rect(kind, mark.x - 9, head, 18, foot - head, 9)}"
            f'<text class="{kind}text" transform="translate({mark.x + 3.3:.1f} {y:.1f}) rotate(-90)">'
            f"{markup_text(label)}</text></g>"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _is_striped(layer: Layer) -> bool:
    return layer.conv.is_depthwise and layer.kind == "conv"
