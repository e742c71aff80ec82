"""Whether a conv class with a forward of its own still computes a conv with its own parameters: found by trying.

Many projects derive from ``nn.Conv2d``: to pad by themselves (TensorFlow's "same"), to cast, to skip what is empty.
Where the result is a conv of the class's weight and bias with zeros around the image, such a module merges like any
other; its padding is found from what it computes.
"""

from __future__ import annotations

import itertools
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn

from layerfold.graph.copying import copy_module
from layerfold.graph.linear_modules import PaddedConv2d
from layerfold.graph.specs import Padding, Pair
from layerfold.graph.weights import derives_weight, has_other_hooks, is_plain_conv

_TOLERANCE = 1e-9
_FEW = 4
_found: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_paddings: WeakKeyDictionary[nn.Module, dict[Pair, Padding | None]] = WeakKeyDictionary()


def runs_class_forward(module: nn.Module) -> bool:
    """Say whether a module runs the forward of its class, and none that was set on it alone."""
    return "forward" not in vars(module)


def inherits_forward(module: nn.Module, *bases: type[nn.Module]) -> bool:
    """Say whether a module computes what one of ``bases`` does: no class or instance in between changes it."""
    kind: Any = type(module)
    names = ("forward", "_conv_forward", "__call__", "_call_impl")
    return runs_class_forward(module) and any(
        isinstance(module, base) and all(getattr(kind, name, None) is getattr(base, name, None) for name in names)
        for base in bases
    )


def pads_by_itself(conv: nn.Conv2d) -> bool:
    """Say whether a conv module has a forward that nothing but trying it tells about."""
    is_known = is_plain_conv(conv) and runs_class_forward(conv)
    return not is_known and not inherits_forward(conv, nn.Conv2d, PaddedConv2d)


def computes_conv(conv: nn.Conv2d) -> bool:
    """Say whether a conv module computes a 2-d convolution with its own weight and bias and zeros around the image."""
    if derives_weight(conv) or has_other_hooks(conv):
        return False
    if not pads_by_itself(conv):
        return True
    if conv not in _found:
        extents, strides = _extent(conv), conv.stride
        small = [extents[axis] + 2 * strides[axis] + 3 for axis in (0, 1)]
        sizes = ((small[0], small[1] + 1), (small[0] + 1, small[1]), (small[0] + 2, small[1] + 3))
        _found[conv] = all(_padding_at(conv, size, every_channel=True) is not None for size in sizes)
    return _found[conv]


def padding_at(conv: nn.Conv2d, size: Pair) -> Padding | None:
    """Return the zeros that a conv with a forward of its own puts around an image of (height, width).

    Returns:
        None where it computes no conv of its parameters at that size.
    """
    known = _paddings.setdefault(conv, {})
    if size not in known:
        known[size] = _padding_at(conv, size, every_channel=False)
    return known[size]


def _extent(conv: nn.Conv2d) -> Pair:
    sizes = [(conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1 for axis in (0, 1)]
    return sizes[0], sizes[1]


@torch.no_grad()
def _padding_at(conv: nn.Conv2d, size: Pair, *, every_channel: bool) -> Padding | None:
    """Try every padding at once: a strided conv with any padding is a part of the dense conv with the most."""
    try:
        trial, weight, bias = _with_random_parameters(conv)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, conv.in_channels, *size, generator=generator, dtype=torch.float64)
        x[1] *= 100
        found: Any = trial(x.clone())
    except Exception:  # it takes something else than a feature map, or cannot be copied
        return None
    if not isinstance(found, torch.Tensor) or found.dim() != 4 or found.shape[:2] != (2, conv.out_channels):
        return None
    if not every_channel:
        few = min(_FEW, conv.out_channels // conv.groups)
        found, weight, bias = found[:, :few], weight[:few], bias[:few]
        x = x[:, : conv.in_channels // conv.groups]
    extent = _extent(conv)
    outputs = (found.shape[2], found.shape[3])
    totals = [(outputs[a] - 1) * conv.stride[a] + extent[a] - size[a] for a in (0, 1)]
    most = [max(totals[a] + conv.stride[a] - 1, extent[a] - 1, 0) for a in (0, 1)]
    dense = F.conv2d(
        F.pad(x, (most[1], most[1], most[0], most[0])),
        weight,
        bias,
        1,
        0,
        conv.dilation,
        conv.groups if every_channel else 1,
    )
    scale = found.abs().amax((1, 2, 3), keepdim=True)
    for before in sorted(itertools.product(*(range(most[a] + 1) for a in (0, 1))), key=lambda b: _oddness(b, totals)):
        starts = [most[a] - before[a] for a in (0, 1)]
        part = dense[:, :, starts[0] :: conv.stride[0], starts[1] :: conv.stride[1]][:, :, : outputs[0], : outputs[1]]
        if part.shape == found.shape and bool(((part - found).abs() <= _TOLERANCE * scale).all()):
            sides = [(before[a], max(totals[a] - before[a], 0)) for a in (0, 1)]
            return cast(Padding, (sides[0], sides[1]))
    return None


def _oddness(before: tuple[int, ...], totals: list[int]) -> int:
    """Rank paddings: those that are about equal on both sides first."""
    return sum(abs(2 * before[a] - max(totals[a], 0)) for a in (0, 1))


def _with_random_parameters(conv: nn.Conv2d) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a copy in float64 with a random weight and bias of its own, and both.

    Whatever else it holds is random too: a gain or a mask that happens to be one now is no part of a conv.
    """
    trial = copy_module(conv).to(device="cpu", dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    for value in (*trial.parameters(), *trial.buffers()):
        if value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64))
    weight = torch.randn(conv.weight.shape, generator=generator, dtype=torch.float64)
    bias = torch.randn(conv.out_channels, generator=generator, dtype=torch.float64)
    trial.weight, trial.bias = nn.Parameter(weight), nn.Parameter(bias)
    return trial, weight, bias
