"""Which segments may be merged, and into what (docs/design.md)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from layerfold.errors import SolutionError
from layerfold.graph.description import Chain, Description, Residual, Segment
from layerfold.graph.dropping import SegmentSteps, segment_steps
from layerfold.graph.footprint import Footprint
from layerfold.graph.specs import ConvSpec
from layerfold.tables.levers import DROP, Change


@dataclass(frozen=True, kw_only=True)
class CandidateRules:
    """Which segments are candidates; see :meth:`Network.candidates`."""

    stop_at_strides: bool = False
    max_kernel: int = 15
    max_growth: float | None = None
    layer_norms: Mapping[int, float] | None = None


def crosses(start: int, end: int, residual: Residual) -> bool:
    """Say whether the segment's interval and the residual's overlap without one holding the other."""
    return start < residual.src < end < residual.dst or residual.src < start < residual.dst < end


def inner_residuals(net: Description, start: int, end: int) -> list[Residual]:
    """Return the residuals that a segment takes in whole, in order of dst and then of the traced additions."""
    return [residual for residual in net.residuals if start <= residual.src and residual.dst <= end]


def merged_segment(net: Description, start: int, end: int, dropped: Collection[int] = ()) -> Segment:
    """Return layers start+1..end, less those in ``dropped``, as one merged segment.

    Raises:
        SolutionError: the positions lie in no common chain, or cross a residual; a dropped layer changes the shape.
    """
    if not 0 <= start < end <= len(net.layers) or net.chain_of(start + 1) != net.chain_of(end):
        chains = ", ".join(f"{chain.start}..{chain.end}" for chain in net.chains)
        raise SolutionError(
            f"segment ({start}, {end}): both ends must lie in one chain, start below end; chains: {chains}"
        )
    for residual in net.residuals:
        if crosses(start, end, residual):
            raise SolutionError(
                f"segment ({start}, {end}) crosses the residual ({residual.src}, {residual.dst}); "
                f"stop merging at {residual.src} or {residual.dst}"
            )
    first, last = net.layer(start + 1), net.layer(end)
    lost = tuple(index for index in range(start + 1, end + 1) if index in dropped)
    return Segment(
        start=start,
        end=end,
        conv=_merged_conv(net, segment_steps(net, start, end, lost), first.input_shape[0]),
        input_shape=first.input_shape,
        output_shape=last.output_shape,
        activation=last.activation,
        open_residuals=tuple(r for r in net.residuals if r.dst == end and r.src < start),
        dropped=lost,
        variant=_variant(net, start, end, lost),
    )


def _variant(net: Description, start: int, end: int, lost: Collection[int]) -> Change | None:
    """Return what a lever changed of a segment's layers; None where they are the original's, or some are dropped."""
    layers = [layer for layer in net.layers[start:end] if layer.variant]
    if not layers:
        return None
    words = sorted({layer.variant for layer in layers} | ({DROP} if lost else set()))
    if len(words) > 1:
        raise SolutionError(
            f"segment ({start}, {end}): changed by {' and '.join(words)}, expected one lever for each segment; stop "
            "merging between them"
        )
    return Change(words[0], tuple(layer.index for layer in layers))


def _merged_conv(net: Description, parts: SegmentSteps, channels: int) -> ConvSpec:
    if not parts.steps:
        return ConvSpec.channelwise(channels, "identity")
    if parts.lone is not None:
        return parts.lone.conv
    prints = [Footprint.identity(channels)]
    for number, step in enumerate(parts.steps, start=1):
        current = prints[-1].then(step.conv)
        for src, dst, residual in parts.residuals:
            if dst == number:
                branch = prints[src]
                for shortcut in net.residuals[residual].shortcut:
                    branch = branch.then(shortcut)
                current = current.plus(branch)
        prints.append(current)
    return prints[-1].conv(channels)


def list_candidates(net: Description, rules: CandidateRules) -> list[Segment]:
    """Return every segment of all its layers that may be merged, by (start, end)."""
    found = []
    for chain in net.chains:
        for start in range(chain.start, chain.end):
            for end in range(start + 1, furthest_end(net, chain, start, rules.stop_at_strides) + 1):
                if any(crosses(start, end, residual) for residual in net.residuals):
                    continue
                segment = merged_segment(net, start, end)
                if segment.num_layers == 1 or _is_small_enough(net, segment, rules):
                    found.append(segment)
    return found


def furthest_end(net: Description, chain: Chain, start: int, stop_at_strides: bool) -> int:
    """Return the last end allowed from ``start``.

    The published restriction, read off the published MobileNetV2 table: a segment that starts at or before the
    position c of a strided layer ends at c+1 at the latest.
    """
    if stop_at_strides:
        for position in range(max(start, chain.start + 1), chain.end):
            if max(net.layer(position).conv.stride) > 1:
                return position + 1
    return chain.end


def _is_small_enough(net: Description, segment: Segment, rules: CandidateRules) -> bool:
    if max(segment.conv.kernel_size) > rules.max_kernel:
        return False
    if rules.max_growth is None:
        return True
    replaced = sum(merged_segment(net, m - 1, m).macs for m in range(segment.start + 1, segment.end + 1))
    return segment.macs <= rules.max_growth * replaced
