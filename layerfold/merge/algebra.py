"""Several linear layers as one conv, in float64 (docs/design.md).

The published form is a transposed convolution of one kernel by the other (Kim et al. 2023, section 3).
Tensor suffixes: OIHW = output channels, input channels / groups, kernel height, kernel width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from layerfold.errors import MergeError
from layerfold.graph.linear_modules import ChannelScale, StridedSlice
from layerfold.graph.specs import ConvSpec, Pair
from layerfold.graph.vocabulary import is_norm
from layerfold.graph.weights import weights_of


@dataclass(frozen=True, kw_only=True)
class AffineConv:
    """A conv's numbers with the norm behind it folded in.

    Attributes:
        weight_OIHW: float64 [out_channels, in_channels / groups, height, width].
        bias: float64 [out_channels].
    """

    weight_OIHW: torch.Tensor
    bias: torch.Tensor


def fold_norm(conv: nn.Conv2d, norm: nn.Module | None) -> AffineConv:
    """Return ``conv`` followed by ``norm`` in eval mode as one conv; gradients flow to what both are made of."""
    weight, bias = weights_of(conv)
    weight_OIHW = weight.double().contiguous()  # in training weights are stored channels last
    shift = weight_OIHW.new_zeros(conv.out_channels) if bias is None else bias.double()
    return _then_norm(AffineConv(weight_OIHW=weight_OIHW.clone(), bias=shift.clone()), norm)


def affine_of(op: nn.Module | None, norm: nn.Module | None, spec: ConvSpec, device: torch.device) -> AffineConv:
    """Return a layer's linear operation, followed by its norm in eval mode, as the conv that ``spec`` describes.

    Args:
        op: the conv, norm, scale, average pooling or slice; None for a lone addition.
        norm: what is folded behind it, or None.
        spec: as of ``layerfold.graph``.
        device: where the numbers of operations without weights are put.
    """
    if isinstance(op, nn.Conv2d):
        return fold_norm(op, norm)
    shape = spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size
    weight_OIHW = torch.ones(shape, dtype=torch.float64, device=device)
    if isinstance(op, nn.AvgPool2d):
        weight_OIHW /= spec.kernel_size[0] * spec.kernel_size[1]
    elif isinstance(op, StridedSlice) and spec.groups == 1:
        weight_OIHW.zero_()
        channels = torch.arange(spec.in_channels, device=device)
        weight_OIHW[op.before + channels, channels] = 1
    identity = AffineConv(weight_OIHW=weight_OIHW, bias=weight_OIHW.new_zeros(spec.out_channels))
    own_norm = op if op is not None and is_norm(op) else None
    return _then_norm(_then_norm(identity, own_norm), norm)


def _then_norm(conv: AffineConv, norm: nn.Module | None) -> AffineConv:
    if norm is None:
        return conv
    scale, shift = channel_affine(norm)
    scale, shift = scale.to(conv.bias.device), shift.to(conv.bias.device)
    return AffineConv(weight_OIHW=conv.weight_OIHW * scale.view(-1, 1, 1, 1), bias=conv.bias * scale + shift)


def channel_affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (scale, shift) of a norm in eval mode, float64, one number per channel or one for all.

    A BatchNorm in eval mode is ``y = (x - mean) / sqrt(var + eps) * weight + bias`` per channel.
    """
    numbers: Any = norm
    device = next((each.device for each in (*norm.parameters(), *norm.buffers())), None)
    weight, bias = (
        torch.as_tensor(default if value is None else value, dtype=torch.float64, device=device).reshape(-1)
        for value, default in ((numbers.weight, 1.0), (numbers.bias, 0.0))
    )
    if isinstance(norm, ChannelScale):
        return weight, bias
    scale = (numbers.running_var.double() + numbers.eps).rsqrt()
    return scale * weight, bias - numbers.running_mean.double() * scale * weight


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """A linear map from a segment's input to the feature map at one of its positions.

    Output pixel y reads input pixels ``y * stride + low + t`` with weight ``weight_OIHW[..., t]``.

    Attributes:
        weight_OIHW: float64 taps; bias: float64.
        stride, low: (height, width), in input pixels.
        groups: channel groups of ``weight_OIHW``.
    """

    weight_OIHW: torch.Tensor
    bias: torch.Tensor
    stride: Pair
    low: Pair
    groups: int

    @classmethod
    def identity(cls, channels: int, device: torch.device) -> LinearMap:
        """Return the map that copies its input: one tap of weight 1 per channel."""
        return cls(
            weight_OIHW=torch.ones(channels, 1, 1, 1, dtype=torch.float64, device=device),
            bias=torch.zeros(channels, dtype=torch.float64, device=device),
            stride=(1, 1),
            low=(0, 0),
            groups=channels,
        )

    @classmethod
    def of(cls, conv: AffineConv, spec: ConvSpec) -> LinearMap:
        """Return one conv of shape ``spec`` as a map (its padding has moved to the front)."""
        return cls(
            weight_OIHW=_dilate(conv.weight_OIHW, spec.dilation),
            bias=conv.bias,
            stride=spec.stride,
            low=(-spec.padding[0][0], -spec.padding[1][0]),
            groups=spec.groups,
        )

    def then(self, other: LinearMap) -> LinearMap:
        """Return this map followed by another, which reads this one's output."""
        return LinearMap(
            weight_OIHW=_compose_taps(self.weight_OIHW, self.groups, other.weight_OIHW, other.groups, self.stride),
            bias=other.bias + _pass_on(self.bias, other.weight_OIHW, other.groups),
            stride=(self.stride[0] * other.stride[0], self.stride[1] * other.stride[1]),
            low=(self.low[0] + other.low[0] * self.stride[0], self.low[1] + other.low[1] * self.stride[1]),
            groups=math.gcd(self.groups, other.groups),
        )

    def plus(self, other: LinearMap) -> LinearMap:
        """Return the sum of two maps of equal stride: taps are added where the same input pixel is read."""
        if self.stride != other.stride:
            raise MergeError(f"an addition joins maps of stride {self.stride} and {other.stride}; they must agree")
        groups = math.gcd(self.groups, other.groups)
        low = min(self.low[0], other.low[0]), min(self.low[1], other.low[1])
        high = [max(m.low[axis] + m.weight_OIHW.shape[2 + axis] - 1 for m in (self, other)) for axis in (0, 1)]
        return LinearMap(
            weight_OIHW=self._spread(groups, low, high) + other._spread(groups, low, high),
            bias=self.bias + other.bias,
            stride=self.stride,
            low=low,
            groups=groups,
        )

    def as_conv(self, spec: ConvSpec) -> AffineConv:
        """Return the taps laid out for ``spec``, whose padding and kernel hold this map's reach.

        Raises:
            MergeError: they do not.
        """
        low = -spec.padding[0][0], -spec.padding[1][0]
        high = [low[axis] + spec.kernel_size[axis] - 1 for axis in (0, 1)]
        return AffineConv(weight_OIHW=self._spread(spec.groups, low, high), bias=self.bias)

    def _spread(self, groups: int, low: Pair, high: list[int]) -> torch.Tensor:
        weight = widen_groups(self.weight_OIHW, self.groups, groups)
        pads = []
        for axis in (1, 0):
            before = self.low[axis] - low[axis]
            after = high[axis] - (self.low[axis] + weight.shape[2 + axis] - 1)
            pads += [before, after]
        if min(pads) < 0:
            raise MergeError(f"a merged kernel of reach {low}..{tuple(high)} does not hold the map it stands for")
        return F.pad(weight, pads)


def widen_groups(weight_OIHW: torch.Tensor, groups: int, fewer: int) -> torch.Tensor:
    """Write a weight of ``groups`` groups as one of ``fewer`` groups, which divides them; new taps are zero."""
    if groups == fewer:
        return weight_OIHW
    out_channels, per_group, height, width = weight_OIHW.shape
    ratio = groups // fewer
    wide = weight_OIHW.new_zeros(fewer, ratio, out_channels // groups, ratio, per_group, height, width)
    blocks = weight_OIHW.view(fewer, ratio, out_channels // groups, per_group, height, width)
    inner = torch.arange(ratio, device=weight_OIHW.device)
    # Advanced indexing on two axes puts the diagonal first: [ratio, fewer, O / groups, I / groups, H, W].
    wide[:, inner, :, inner] = blocks.transpose(0, 1)
    return wide.reshape(out_channels, ratio * per_group, height, width)


def _dilate(weight_OIHW: torch.Tensor, dilation: Pair) -> torch.Tensor:
    """Write a dilated kernel as one of dilation 1, with zeros between its taps."""
    if dilation == (1, 1):
        return weight_OIHW
    height, width = ((size - 1) * step + 1 for size, step in zip(weight_OIHW.shape[2:], dilation, strict=True))
    wide = weight_OIHW.new_zeros(*weight_OIHW.shape[:2], height, width)
    wide[:, :, :: dilation[0], :: dilation[1]] = weight_OIHW
    return wide


def _pass_on(bias: torch.Tensor, weight_OIHW: torch.Tensor, groups: int) -> torch.Tensor:
    """Return what a constant feature map ``bias`` [inner] adds behind a conv of ``groups`` groups: [O]."""
    by_group = weight_OIHW.sum(dim=(2, 3)).view(groups, weight_OIHW.shape[0] // groups, -1)
    return (by_group @ bias.view(groups, -1, 1)).reshape(-1)


def _compose_taps(
    first: torch.Tensor, first_groups: int, second: torch.Tensor, second_groups: int, step: Pair
) -> torch.Tensor:
    """Return the taps of ``second`` after ``first``, as a weight of gcd(first_groups, second_groups) groups.

    This is ``conv_transpose2d(second, first, stride=step)``, written as one batched matrix product for each tap of
    ``second``, so that it runs at the speed of a matrix product and grouped convs are never written out densely.
    """
    groups = math.gcd(first_groups, second_groups)
    if groups not in (first_groups, second_groups):
        first, first_groups = widen_groups(first, first_groups, groups), groups
    outputs, _, taps_h, taps_w = second.shape
    inner, inputs, kernel_h, kernel_w = first.shape
    finest = max(first_groups, second_groups)
    # Each batch entry is the part of the inner channels that one group of the finer conv holds.
    per_group = outputs // second_groups
    left = second.view(second_groups, per_group, finest // second_groups, inner // finest, taps_h, taps_w)
    left = left.permute(4, 5, 0, 2, 1, 3).reshape(taps_h, taps_w, finest, per_group, inner // finest)
    right = first.reshape(finest, inner // finest, inputs * kernel_h * kernel_w)
    size = (taps_h - 1) * step[0] + kernel_h, (taps_w - 1) * step[1] + kernel_w
    total = first.new_zeros(finest, per_group, inputs, *size)
    for tap_h in range(taps_h):
        for tap_w in range(taps_w):
            product = (left[tap_h, tap_w] @ right).view(finest, per_group, inputs, kernel_h, kernel_w)
            top, west = tap_h * step[0], tap_w * step[1]
            total[..., top : top + kernel_h, west : west + kernel_w] += product
    if finest == second_groups:
        return total.reshape(outputs, inputs, *size)
    # The first conv is the finer one: its groups lie side by side among the inputs of each coarse group.
    total = total.view(second_groups, finest // second_groups, per_group, inputs, *size)
    return total.transpose(1, 2).reshape(outputs, finest // second_groups * inputs, *size)
