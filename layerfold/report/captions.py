"""What the network's drawing says of each thing in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerfold.graph.barrier_groups import SE_LABEL, SE_REASON
from layerfold.graph.counts import replaced_macs
from layerfold.graph.squeeze_excitation import SqueezeExcitation
from layerfold.report.box_sizes import kernel_size_text
from layerfold.report.words import positions_text
from layerfold.tables.levers import lever_of

if TYPE_CHECKING:
    from layerfold.graph.description import Barrier, Layer, Residual, Segment
    from layerfold.graph.network import Network

KIND_NAMES = {
    "norm": "batch norm",
    "scale": "channel scale",
    "pool": "average pool",
    "slice": "strided slice",
    "add": "addition",
    "identity": "nothing",
}
"""What a layer is that is no conv; merging takes it for the conv that computes the same."""


def fitting_label(segment: Segment, width: float) -> str:
    """Return the fullest description of the merged conv that fits into ``width`` pixels."""
    if segment.is_identity:
        texts: tuple[str, ...] = (f"{segment.num_layers} layers → nothing", "nothing", "–")
        return next((text for text in texts if 6.5 * len(text) + 8 <= width), texts[-1])
    conv = segment.conv
    kernel = kernel_size_text(conv.kernel_size) + (" dw" if conv.is_depthwise else "")
    stride = f" /{max(conv.stride)}" if max(conv.stride) > 1 else ""
    texts = (
        f"{segment.num_layers} layers → one {kernel}{stride} conv, {conv.in_channels}→{conv.out_channels}",
        f"{segment.num_layers} layers → one {kernel}{stride} conv",
        f"one {kernel}{stride} conv",
        f"one {kernel}{stride}",
        f"{kernel}{stride}",
        kernel_size_text(conv.kernel_size),
    )
    return next((text for text in texts if 6.5 * len(text) + 8 <= width), texts[-1])


def segment_text(net: Network, segment: Segment) -> str:
    """Return what became of a merged segment's layers, and of their multiply-adds."""
    layers = f"layer {segment.end}" if segment.num_layers == 1 else f"layers {segment.start + 1} to {segment.end}"
    macs = f"{segment.macs:,} multiply-adds in place of {replaced_macs(net, segment.start, segment.end):,}"
    lost = f", {positions_text(segment.dropped)} dropped" if segment.dropped else ""
    if segment.variant is not None:
        lost = f" {lever_of(segment.variant.word).phrase(segment.variant)}"
    if segment.is_identity:
        return f"{layers} dropped: nothing is left"
    return f"{layers} merged into one conv{lost}: {conv_text(segment)}; {macs}"


def conv_text(piece: Segment | Layer) -> str:
    """Return a conv for people: ``5×5, 32→64, stride 2``; what is no conv by its name: ``batch norm, 64``."""
    conv, kind = piece.conv, piece.conv.kind
    parts = [f"{kernel_size_text(conv.kernel_size)}, {conv.in_channels}→{conv.out_channels}"]
    if kind != "conv":
        kernel = f" {kernel_size_text(conv.kernel_size)}" if kind == "pool" else ""
        parts = [f"{KIND_NAMES.get(kind, kind)}{kernel}, {conv.out_channels}"]
    if max(conv.stride) > 1:
        parts.append(f"stride {max(conv.stride)}")
    if max(conv.dilation) > 1:
        parts.append(f"dilation {max(conv.dilation)}")
    if kind == "conv" and conv.groups > 1:
        parts.append("depthwise" if conv.is_depthwise else f"{conv.groups} groups")
    return ", ".join(parts)


def layer_text(layer: Layer) -> str:
    """Return a layer's number, name, conv and input size."""
    _, height, width = layer.input_shape
    return f"layer {layer.index}: {layer.name}\n{conv_text(layer)}; input {height}×{width}"


def residual_text(residual: Residual, is_merged: bool) -> str:
    """Return from where to where a residual goes, through what, and whether a merged conv takes it in."""
    way = "identity" if residual.is_identity else f"shortcut through {', '.join(residual.shortcut_names)}"
    fate = "; taken into the merged conv" if is_merged else ""
    return f"residual from position {residual.src} to {residual.dst}, {way}{fate}"


def item_text(item: Barrier | SqueezeExcitation) -> str:
    """Return a barrier's or gate's name, what it is, and why nothing merges across it."""
    if isinstance(item, SqueezeExcitation):
        inside = f", layers {positions_text(item.layers)}" if item.layers else ""
        return f"{item.name} ({SE_LABEL}{inside}): {SE_REASON}"
    return f"{item.name} ({item.kind}): {item.reason}"
