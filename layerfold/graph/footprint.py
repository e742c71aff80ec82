"""Where a run of convs reads: the merged kernel, stride, padding and groups, worked out without weights.

A linear map from a segment's input to the feature map at one of its positions reads, for output pixel y, the
input pixels ``y * stride + low .. y * stride + high``. Convs and additions act on (low, high, stride) alone, so a
merged conv's shape follows before any weight is touched (docs/design.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from layerfold.errors import UnsupportedGraphError
from layerfold.graph.specs import ConvSpec, Pair


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Inputs that a linear map reads.

    Attributes:
        low, high: first and last input offset read by output pixel 0, (height, width).
        stride: input pixels between neighbouring output pixels.
        pad_high: zero padding at the bottom and right that gives the traced output size.
        groups: number of independent channel groups.
        channels: output channels.
    """

    low: Pair
    high: Pair
    stride: Pair
    pad_high: Pair
    groups: int
    channels: int

    @classmethod
    def identity(cls, channels: int) -> Footprint:
        """Return the map that copies its input."""
        return cls(low=(0, 0), high=(0, 0), stride=(1, 1), pad_high=(0, 0), groups=channels, channels=channels)

    def then(self, conv: ConvSpec) -> Footprint:
        """Return this map followed by ``conv``."""
        axes = (0, 1)
        low = [self.low[a] - conv.padding[a][0] * self.stride[a] for a in axes]
        reach = [(conv.kernel_size[a] - 1) * conv.dilation[a] - conv.padding[a][0] for a in axes]
        high = [self.high[a] + reach[a] * self.stride[a] for a in axes]
        stride = [self.stride[a] * conv.stride[a] for a in axes]
        pad_high = [self.pad_high[a] + conv.padding[a][1] * self.stride[a] for a in axes]
        return Footprint(
            low=(low[0], low[1]),
            high=(high[0], high[1]),
            stride=(stride[0], stride[1]),
            pad_high=(pad_high[0], pad_high[1]),
            groups=math.gcd(self.groups, conv.groups),
            channels=conv.out_channels,
        )

    def plus(self, other: Footprint) -> Footprint:
        """Return the sum of two maps of equal stride; padding follows this one."""
        if self.stride != other.stride or self.channels != other.channels:
            raise UnsupportedGraphError(
                f"an addition joins maps of stride {self.stride} and {other.stride}, channels {self.channels} and "
                f"{other.channels}; both must agree; exclude one of its convs from the chain"
            )
        high = max(self.high[0], other.high[0]), max(self.high[1], other.high[1])
        return Footprint(
            low=(min(self.low[0], other.low[0]), min(self.low[1], other.low[1])),
            high=high,
            stride=self.stride,
            pad_high=(self.pad_high[0] + high[0] - self.high[0], self.pad_high[1] + high[1] - self.high[1]),
            groups=math.gcd(self.groups, other.groups),
            channels=self.channels,
        )

    def conv(self, in_channels: int) -> ConvSpec:
        """Return the one conv that realises this map.

        Where nothing is padded but the map starts inside its input, the kernel grows by zero taps instead.
        """
        low = min(self.low[0], 0), min(self.low[1], 0)
        high = self.high[0] - min(self.pad_high[0], 0), self.high[1] - min(self.pad_high[1], 0)
        return ConvSpec(
            in_channels=in_channels,
            out_channels=self.channels,
            kernel_size=(high[0] - low[0] + 1, high[1] - low[1] + 1),
            stride=self.stride,
            padding=((-low[0], max(self.pad_high[0], 0)), (-low[1], max(self.pad_high[1], 0))),
            groups=self.groups,
        )
