"""Convs that compute their weight anew at every pass, as the plain convs that they are once trained.

Weight standardisation (timm's StdConv2d, ScaledStdConv2d) and ``torch.nn.utils.parametrize`` derive the weight from
other parameters. In eval mode that is a constant, so such a conv merges like any other; its segment then trains the
derived weight.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from layerfold.graph.linear_modules import PaddedConv2d

_STANDARDISED = frozenset({"StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"})
_PLAIN = (nn.Conv2d, PaddedConv2d)
_WEIGHT_ARGUMENT = 1


def is_plain_conv(module: nn.Module) -> bool:
    """Say whether a module is a conv whose weight is its own parameter."""
    return type(module) in _PLAIN or type(module).__name__ == "Conv2dSame"


def derives_weight(module: nn.Module) -> bool:
    """Say whether a module is a conv that derives its weight from other parameters, in a way known to be constant."""
    if not isinstance(module, nn.Conv2d):
        return False
    return type(module).__name__ in _STANDARDISED or (
        parametrize.is_parametrized(module) and type(module).__name__ == "ParametrizedConv2d"
    )


def weights_of(conv: nn.Conv2d) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Return a conv's weight [out_channels, in_channels / groups, height, width] and bias as parameters.

    A plain conv's are its own; derived ones are new, with the values that they have now.
    """
    if not derives_weight(conv):
        return cast(nn.Parameter, conv.weight), cast(nn.Parameter | None, conv.bias)
    weight, bias = _derived_weight(conv), conv.bias
    return nn.Parameter(weight.detach().clone()), None if bias is None else nn.Parameter(bias.detach().clone())


class _WeightRecorder(TorchFunctionMode):
    """Sees the weight that a module passes to ``conv2d``."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.conv2d, torch.conv2d):
            self.weights.append(kwargs["weight"] if "weight" in kwargs else args[_WEIGHT_ARGUMENT])
        return func(*args, **kwargs)


@torch.no_grad()
def _derived_weight(conv: nn.Conv2d) -> torch.Tensor:
    reach = [(size - 1) * step + 1 for size, step in zip(conv.kernel_size, conv.dilation, strict=True)]
    some = next(conv.parameters())
    x = torch.zeros(1, conv.in_channels, *reach, device=some.device, dtype=some.dtype)
    recorder = _WeightRecorder()
    was_training = conv.training
    conv.eval()  # a spectral norm takes a step of its power iteration at every pass in train mode
    try:
        with recorder:
            conv(x)
    finally:
        conv.train(was_training)
    (weight,) = recorder.weights
    return weight
