"""Numbers rounded in training as a quantised ONNX file rounds them; gradients pass straight through (QAT).

Weights: int8, symmetric, a scale for each output channel. Feature maps: 8 bits, one scale and zero point for a whole
tensor, from the range that it is given. Both are torch's own ``fake_quantize`` operators, so that what is trained is
what QuantizeLinear and DequantizeLinear compute.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

_WEIGHT_LEVELS = 127
"""On either side of zero: -128 is left out, so that the levels are symmetric."""
_MOST = 255
"""Levels of feature maps are 0..255: unsigned, as processors multiply them with signed weights."""
_LEAST_SCALE = float(torch.finfo(torch.float32).tiny) * 2**24
"""The quantiser's: a product of two of these is no denormal number."""


def weight_scales(weight: Tensor) -> Tensor:
    """Return the width of a step for each output channel: [output channels], float32."""
    largest = weight.detach().abs().flatten(1).amax(1)
    return (largest.double() / _WEIGHT_LEVELS).clamp_min(_LEAST_SCALE).float()


def round_weight(weight: Tensor) -> Tensor:
    """Return a weight rounded to int8 and back, a scale for each output channel; its gradient is that of the identity.

    Args:
        weight: float32, output channels first.
    """
    scales = weight_scales(weight)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -_WEIGHT_LEVELS, _WEIGHT_LEVELS)


def levels_of(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (scale, zero point) of a feature map in the range ``low..high``, which holds zero."""
    # As the quantiser works them out: a zero point that is rounded the other way moves every value.
    scale = ((high.double() - low.double()) / _MOST).clamp_min(_LEAST_SCALE).float()
    return scale, (-low / scale).round().to(torch.int32)


class RoundedFeatureMap(nn.Module):
    """A feature map rounded to 8 bits and back, within a range that is learned as the weights are.

    Until it has a range (``low`` below ``high``) it changes nothing. Values outside are cut off.

    Args:
        is_learned: whether the range is trained.
        bounds: what the values cannot leave; the range stays within, however it is trained.

    Attributes:
        low, high: the range, single numbers. Their gradient is that of learned step sizes: of what is cut off it is 1,
            of what is rounded the error of rounding in steps.

    Source: Esser et al., *Learned Step Size Quantization* (ICLR 2020, arXiv 1902.08153); the range in place of the
    step as in Jain et al., *Trained Quantization Thresholds* (MLSys 2020, arXiv 1903.08066).
    """

    def __init__(self, *, is_learned: bool = True, bounds: tuple[float, float] = (-math.inf, math.inf)) -> None:
        super().__init__()
        self.bounds = min(bounds[0], 0.0), max(bounds[1], 0.0)
        self.low = nn.Parameter(torch.zeros(()), requires_grad=is_learned)
        self.high = nn.Parameter(torch.zeros(()), requires_grad=is_learned)
        # A Python value that follows the parameters: reading them at each pass would wait for a GPU.
        self._has_range = False

    def set_range(self, low: float, high: float) -> None:
        """Give it a range; zero is made part of it."""
        with torch.no_grad():
            self.low.fill_(min(low, 0.0))
            self.high.fill_(max(high, 0.0))
        self._has_range = bool(self.low < self.high)

    @property
    def range(self) -> tuple[float, float]:
        """The range as it stands: (low, high), zero and no more than the bounds within."""
        low, high = self._ends()
        return low.item(), high.item()

    def _ends(self) -> tuple[Tensor, Tensor]:
        return self.low.clamp(self.bounds[0], 0.0), self.high.clamp(0.0, self.bounds[1])

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._has_range = bool(self.high > self.low)

    def forward(self, x: Tensor) -> Tensor:
        if not self._has_range:
            return x
        found: Tensor = _RoundWithinRange.apply(x, *self._ends())
        return found

    def extra_repr(self) -> str:
        return "learned" if self.low.requires_grad else "fixed"


class _RoundWithinRange(torch.autograd.Function):
    """``fake_quantize_per_tensor_affine`` with gradients of the range too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        scale, zero_point = levels_of(low, high)
        rounded = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, _MOST)
        ctx.save_for_backward(x, rounded, scale, zero_point)
        return rounded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, rounded, scale, zero_point = ctx.saved_tensors
        bottom, top = -zero_point * scale, (_MOST - zero_point) * scale
        below, above = x < bottom, x > top
        inside = ~(below | above)
        grad_x = grad * inside
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_x, None, None
        # Of what lies inside, y = scale * round(x / scale) changes with the scale by its error in steps.
        by_scale = (grad_x * (rounded - x)).sum() / (scale * _MOST)
        # Sums over so many values would outgrow the gradients of weights: the factor is that of LSQ, per image.
        factor = (x[0].numel() * _MOST) ** -0.5
        grad_low = ((grad * below).sum() - by_scale) * factor
        grad_high = ((grad * above).sum() + by_scale) * factor
        return grad_x, grad_low, grad_high
