"""Convs that compute their weight again at every pass, as the plain convs that they are once trained.

Weight standardisation (timm's StdConv2d, ScaledStdConv2d), ``torch.nn.utils.parametrize`` and the older hooks of
``torch.nn.utils`` (weight_norm, spectral_norm, prune) derive the weight from other parameters. In eval mode that is a
constant, so such a conv merges like any other; its segment then trains the derived weight.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from layerfold.graph.examples import example_images
from layerfold.graph.linear_modules import PaddedConv2d

_STANDARDISED = frozenset({"StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame"})
_PLAIN = (nn.Conv2d, PaddedConv2d)
_WEIGHT_ARGUMENT = 1


def is_plain_conv(module: nn.Module) -> bool:
    """Say whether a module is a conv whose weight is its own parameter."""
    return type(module) in _PLAIN or pads_to_same_size(module)


def pads_to_same_size(module: nn.Module) -> bool:
    """Say whether a module is timm's conv with TensorFlow's "same" padding, which follows the size of the input."""
    is_known = type(module).__module__.startswith("timm.") and type(module).__name__ == "Conv2dSame"
    return is_known or getattr(module, "same_pad", False) is True


def derives_weight(module: nn.Module) -> bool:
    """Say whether a module is a conv that derives its weight from other parameters, in a way known to be constant."""
    if not isinstance(module, nn.Conv2d):
        return False
    if parametrize.is_parametrized(module):
        return type(module).__name__ == "ParametrizedConv2d"
    return type(module).__name__ in _STANDARDISED or (type(module) is nn.Conv2d and _is_set_by_hook(module))


def _is_set_by_hook(conv: nn.Conv2d) -> bool:
    return bool(conv._forward_pre_hooks) and not {"weight", "bias"} <= conv._parameters.keys()


def has_other_hooks(module: nn.Module) -> bool:
    """Say whether hooks do more at a pass of ``module`` than set its weight."""
    hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
    return hooks > 0 and not (
        isinstance(module, nn.Conv2d)
        and not module._forward_hooks
        and _is_set_by_hook(module)
        and all(type(hook).__module__.startswith("torch.nn.utils.") for hook in module._forward_pre_hooks.values())
    )


def weights_of(conv: nn.Conv2d) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Return a conv's weight [out_channels, in_channels / groups, height, width] and bias as parameters.

    A plain conv's are its own; derived ones are new, with the values that they have now, and as frozen as what they are
    derived from.
    """
    if not derives_weight(conv):
        own: Any = conv  # torch types a conv's weight as a tensor
        return own.weight, own.bias
    weight = _derived_weight(conv)
    trains = any(each.requires_grad for name, each in conv.named_parameters() if name != "bias")
    bias = conv.bias
    return nn.Parameter(weight.detach().clone(), requires_grad=trains), None if bias is None else nn.Parameter(
        bias.detach().clone(), requires_grad=bias.requires_grad
    )


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
    x = example_images((1, conv.in_channels, *reach), device=some.device, dtype=some.dtype)
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
