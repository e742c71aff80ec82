"""A lever in one file, as another package would bring it: a conv comes down to the centre of its kernel."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from layerfold.graph.candidates import CandidateRules
from layerfold.graph.description import Layer, Segment
from layerfold.graph.network import Network
from layerfold.tables.levers import Change, Lever


class Centre(Lever):
    """The last layer of a segment of one or two layers becomes a 1x1 conv: the middle of its weights."""

    name = "centre"

    def options(self, net: Network, rules: CandidateRules) -> list[Segment]:
        found = []
        for layer in net.layers:
            if layer.conv.kind != "conv" or layer.conv.kernel_size != (3, 3):
                continue
            changed = net.changed([Change("centre", (layer.index,))])
            ends = [(each.start, each.end) for each in net.candidates(levers=("merge",), max_kernel=rules.max_kernel)]
            spans = [(a, b) for a, b in ends if b == layer.index and b <= a + 2]
            found += [changed.segment(start, end) for start, end in spans]
        return found

    def changed_layer(self, layer: Layer, word: str) -> Layer:
        conv = replace(layer.conv, kernel_size=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1))
        return replace(layer, conv=conv)

    def make_layer(self, module: nn.Module, layer: Layer) -> nn.Module:
        assert isinstance(module, nn.Conv2d)
        conv = layer.conv
        made = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            1,
            stride=conv.stride,
            groups=conv.groups,
            bias=module.bias is not None,
            dtype=module.weight.dtype,
        )
        with torch.no_grad():
            made.weight.copy_(module.weight[:, :, 1:2, 1:2])
            if made.bias is not None and module.bias is not None:
                made.bias.copy_(module.bias)
        return made
