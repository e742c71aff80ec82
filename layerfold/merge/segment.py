"""A segment in train form: its original layers, no inner activations, all padding at the front."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from layerfold.graph.specs import ConvSpec, Padding, Shape
from layerfold.graph.weights import weights_of
from layerfold.merge.algebra import LinearMap, affine_of
from layerfold.merge.composition import compose


class LinearLayer(nn.Module):
    """A linear operation without padding, and the norm behind it, if any.

    Args:
        op: the conv, norm, scale, average pooling or slice; None for a lone addition, which by itself does nothing.
        norm: what is folded behind it.
        spec: the operation as a conv.
    """

    def __init__(self, op: nn.Module | None, norm: nn.Module | None, spec: ConvSpec) -> None:
        super().__init__()
        self.spec = spec
        self.op = _without_padding(op, spec)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.op is not None:
            x = self.op(x)
        return x if self.norm is None else self.norm(x)

    def linear_map(self, device: torch.device) -> LinearMap:
        """Return the layer in eval mode as a map from its input, in float64."""
        return LinearMap.of(affine_of(self.op, self.norm, self.spec, device), self.spec)


def _without_padding(op: nn.Module | None, spec: ConvSpec) -> nn.Module | None:
    if isinstance(op, nn.AvgPool2d):
        return nn.AvgPool2d(spec.kernel_size, spec.stride)
    if not isinstance(op, nn.Conv2d):
        return op
    weight, bias = weights_of(op)
    conv = nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        stride=spec.stride,
        dilation=spec.dilation,
        groups=spec.groups,
        bias=bias is not None,
        device="meta",
    )
    conv.weight, conv.bias = weight, bias
    return conv


@dataclass(frozen=True, kw_only=True)
class InnerResidual:
    """A residual inside a segment; positions count from the segment's start, ``index`` into its shortcuts."""

    src: int
    dst: int
    index: int


class TrainSegment(nn.Module):
    """Layers start+1..end of a network in train form (docs/design.md).

    Moving the padding to the front means that inner convs see more than the original feature map; what a layer
    or residual does not need of it is cropped. So the segment is exactly one conv, borders included.

    Shapes: [N, C, H, W] as the segment's input in the original, to [N, C', H', W'] as the original's at ``end``.
    """

    def __init__(
        self,
        *,
        start: int,
        end: int,
        merged: ConvSpec,
        input_shape: Shape,
        layers: list[LinearLayer],
        residuals: list[InnerResidual],
        shortcuts: list[list[LinearLayer]],
    ) -> None:
        super().__init__()
        self.start, self.end = start, end
        self.merged, self.input_shape = merged, input_shape
        self.layers = nn.ModuleList(layers)
        self.shortcuts = nn.ModuleList(nn.Sequential(*convs) for convs in shortcuts)
        self.residuals = residuals
        # By position from the segment's start: activations on their way out (:mod:`layerfold.merge.fading`).
        self.fading = nn.ModuleDict()
        self._plan_padding()

    def _specs(self, index: int) -> list[ConvSpec]:
        return [cast(LinearLayer, layer).spec for layer in cast(nn.Sequential, self.shortcuts[index])]

    def _plan_padding(self) -> None:
        """Work out, from the back, how many extra rows and columns each feature map needs on each side."""
        none: Padding = ((0, 0), (0, 0))
        needs: list[Padding] = [none] * (len(self.layers) + 1)
        for position in range(len(self.layers), 0, -1):
            spec = cast(LinearLayer, self.layers[position - 1]).spec
            # A residual's need is known before its source is reached, since its dst lies behind.
            for residual in self.residuals:
                if residual.dst == position:
                    branch = _need_before(self._specs(residual.index), needs[position])
                    needs[residual.src] = _larger(needs[residual.src], branch)
            needs[position - 1] = _larger(needs[position - 1], _need_before([spec], needs[position]))
        self.front = needs[0]
        self.layer_crops = [
            _excess(needs[k], _need_before([cast(LinearLayer, layer).spec], needs[k + 1]))
            for k, layer in enumerate(self.layers)
        ]
        self.residual_crops = [
            _excess(needs[r.src], _need_before(self._specs(r.index), needs[r.dst])) for r in self.residuals
        ]

    @property
    def macs(self) -> int:
        """Multiply-adds of the layers and shortcuts as they stand in the original, for one image."""
        shapes, total = [self.input_shape], 0
        for module in self.layers:
            spec = cast(LinearLayer, module).spec
            total += spec.macs(shapes[-1])
            shapes.append(spec.output_shape(shapes[-1]))
        for residual in self.residuals:
            shape = shapes[residual.src]
            for spec in self._specs(residual.index):
                total += spec.macs(shape)
                shape = spec.output_shape(shape)
        return total

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [_pad(x, self.front, sign=1)]
        for position, layer in enumerate(self.layers, start=1):
            value = layer(_pad(features[-1], self.layer_crops[position - 1], sign=-1))
            for residual, crop in zip(self.residuals, self.residual_crops, strict=True):
                if residual.dst == position:
                    value = value + self.shortcuts[residual.index](_pad(features[residual.src], crop, sign=-1))
            if str(position) in self.fading:
                value = self.fading[str(position)](value)
            features.append(value)
        return features[-1]

    @torch.no_grad()
    def linear_map(self) -> LinearMap:
        """Return the whole segment in eval mode as one linear map in float64, without gradients."""
        return self.trained_map()

    def trained_map(self) -> LinearMap:
        """Return what :meth:`linear_map` does; gradients flow to the weights of its layers and of their norms."""
        device = next((each.device for each in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        maps = {0: LinearMap.identity(self.merged.in_channels, device)}
        # Only where a residual starts or ends is the map from the segment's input needed.
        stops = {position for residual in self.residuals for position in (residual.src, residual.dst)}
        before = 0
        for position in sorted({*stops, len(self.layers)} - {0}):
            layers = [cast(LinearLayer, layer).linear_map(device) for layer in list(self.layers)[before:position]]
            value = compose([maps[before], *layers])
            for residual in self.residuals:
                if residual.dst == position:
                    way = cast(nn.Sequential, self.shortcuts[residual.index])
                    steps = [cast(LinearLayer, step).linear_map(device) for step in way]
                    value = value.plus(compose([maps[residual.src], *steps]))
            maps[position] = value
            before = position
        return maps[before]

    def extra_repr(self) -> str:
        return f"start={self.start}, end={self.end}, front={self.front}"


def _need_before(specs: list[ConvSpec], need: Padding) -> Padding:
    """Return the extra border that an input needs so that ``specs`` give an output with the border ``need``."""
    for spec in reversed(specs):
        need = cast(
            Padding,
            tuple(
                tuple(need[axis][side] * spec.stride[axis] + spec.padding[axis][side] for side in (0, 1))
                for axis in (0, 1)
            ),
        )
    return need


def _larger(one: Padding, other: Padding) -> Padding:
    return cast(Padding, tuple(tuple(max(one[a][s], other[a][s]) for s in (0, 1)) for a in (0, 1)))


def _excess(have: Padding, need: Padding) -> Padding:
    return cast(Padding, tuple(tuple(have[a][s] - need[a][s] for s in (0, 1)) for a in (0, 1)))


def _pad(x: torch.Tensor, border: Padding, *, sign: int) -> torch.Tensor:
    """Add (sign 1) or cut away (sign -1) a border; nothing at all where it is empty."""
    (top, bottom), (left, right) = border
    if not (top or bottom or left or right):
        return x
    return F.pad(x, (sign * left, sign * right, sign * top, sign * bottom))
