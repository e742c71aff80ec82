"""The vocabulary that describes convs and activations without torch.

Pairs are always (height, width). Padding is ((top, bottom), (left, right)), so that "same" padding, which is
uneven for even sizes and strides, needs no case of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from layerfold.errors import UsageError

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
Shape = tuple[int, int, int]
"""(channels, height, width); the batch size is stated elsewhere."""


Kind = Literal["conv", "norm", "scale", "pool", "slice", "add", "identity"]
"""How a linear operation is computed where it stands alone; each is described, and merged, as a conv."""


@dataclass(frozen=True, kw_only=True)
class ConvSpec:
    """One linear operation, written as a 2-d convolution with zero padding.

    A conv always has a bias (BatchNorm is folded into it). The other kinds are depthwise convs with given weights:
    ``norm`` and ``scale`` (a BatchNorm or a multiplication by itself) of one tap, ``pool`` an average, ``slice`` the
    taking of every n-th pixel, with zero channels around it, ``add`` the identity that an addition behind an
    activation is written after, ``identity`` what is left where every layer of a segment is dropped.

    Attributes:
        in_channels, out_channels: channel counts, both multiples of ``groups``.
        kernel_size, stride, dilation: (height, width).
        padding: ((top, bottom), (left, right)), each at least 0.
        groups: 1 for a dense conv.
        kind: how it is computed where it stands alone.
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    kind: Kind = "conv"

    def __post_init__(self) -> None:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise UsageError(
                f"groups={self.groups} must divide in_channels={self.in_channels} and out_channels={self.out_channels}"
            )

    @classmethod
    def channelwise(cls, channels: int, kind: Kind) -> ConvSpec:
        """Return the spec of an operation on each value by itself: one tap per channel."""
        return cls(in_channels=channels, out_channels=channels, kernel_size=(1, 1), groups=channels, kind=kind)

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels and self.groups > 1

    @property
    def is_pointwise(self) -> bool:
        return self.kernel_size == (1, 1) and self.groups == 1

    @property
    def num_params(self) -> int:
        """Weights and biases of the conv; of the other kinds, the numbers of a norm or scale."""
        if self.kind != "conv":
            return 2 * self.out_channels if self.kind in ("norm", "scale") else 0
        return (
            self.out_channels * (self.in_channels // self.groups) * self.kernel_size[0] * self.kernel_size[1]
            + self.out_channels
        )

    def output_size(self, input_size: Pair) -> Pair:
        """Return the (height, width) of the output for an input of that (height, width)."""
        sizes = []
        for axis in (0, 1):
            extent = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
            sizes.append((input_size[axis] + sum(self.padding[axis]) - extent) // self.stride[axis] + 1)
        return sizes[0], sizes[1]

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return (channels, height, width) of the output."""
        return (self.out_channels, *self.output_size(input_shape[1:]))

    def macs(self, input_shape: Shape) -> int:
        """Return the multiply-adds of one image (1 MAC = 2 FLOPs); only convs count."""
        if self.kind != "conv":
            return 0
        height, width = self.output_size(input_shape[1:])
        taps = self.kernel_size[0] * self.kernel_size[1]
        return height * width * self.out_channels * (self.in_channels // self.groups) * taps


@dataclass(frozen=True, kw_only=True)
class ActivationSpec:
    """An elementwise nonlinearity: its kind, and the numbers that go with it.

    Attributes:
        kind: lower-case name, for example ``relu6``, ``silu``, ``leaky_relu``.
        params: sorted (name, value) pairs, for example ``(("negative_slope", 0.01),)``.
    """

    kind: str
    params: tuple[tuple[str, float], ...] = ()

    @property
    def is_idempotent(self) -> bool:
        """Whether applying it again changes nothing."""
        return self.kind in ("relu", "relu6", "hardtanh")

    def __str__(self) -> str:
        return self.kind + "".join(f",{name}={value:g}" for name, value in self.params)
