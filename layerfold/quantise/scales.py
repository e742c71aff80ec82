"""Scales and zero points from ranges and weights. Numbers only: no graph here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.errors import UsageError

Array = NDArray[Any]
_LEAST_SCALE = float(np.finfo(np.float32).tiny) * 2**24  # a product of two of these is no denormal number
_MOST_BIAS = 2.0**30


@dataclass(frozen=True)
class Scale:
    """How the values of a tensor become eight bits: value = scale * (number - zero_point).

    Attributes:
        scale: one number.
        zero_point: the number that stands for zero.
        is_signed: int8; uint8 otherwise.
    """

    scale: np.float32
    zero_point: int
    is_signed: bool

    @property
    def dtype(self) -> Any:
        """The type of the numbers."""
        return np.int8 if self.is_signed else np.uint8


def activation_scale(name: str, low: float, high: float, *, symmetric: bool) -> Scale:
    """Return the scale of a feature map whose values lie in a range; zero is always one of the numbers.

    Raises:
        UsageError: the range is not finite, or empty the wrong way round.
    """
    if not (np.isfinite(low) and np.isfinite(high)) or low > high:
        raise UsageError(f"ranges[{name!r}]=({low}, {high}): must be two finite numbers, the lesser first")
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        return Scale(np.float32(max(-low, high, _LEAST_SCALE * 127) / 127), 0, True)
    scale = np.float32(max(high - low, _LEAST_SCALE * 255) / 255)
    return Scale(scale, int(np.clip(np.rint(-low / scale), 0, 255)), False)


def weight_scales(
    weight: Array, axis: int, *, bits: int, bias: Array | None, input_scale: float
) -> NDArray[np.float32]:
    """Return one symmetric scale per output channel, float32.

    A channel whose weights are next to nothing gets a scale at which its bias still fits 32 bits.

    Args:
        weight: of any shape.
        axis: of the output channels.
        bits: 8, or 7 for processors that add products of eight bits in sixteen.
        bias: one number per output channel; None for none.
        input_scale: of the feature map that the weight meets.
    """
    most = np.abs(weight).max(axis=tuple(each for each in range(weight.ndim) if each != axis), initial=0.0)
    scales = most.astype(np.float64) / (2 ** (bits - 1) - 1)
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias).astype(np.float64) / (input_scale * _MOST_BIAS))
    return np.asarray(np.maximum(scales, _LEAST_SCALE), dtype=np.float32)


def quantised_weight(weight: Array, scales: NDArray[np.float32], axis: int, *, bits: int) -> NDArray[np.int8]:
    """Return a weight in int8."""
    most = 2 ** (bits - 1) - 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.asarray(np.clip(np.rint(weight / scales.reshape(shape)), -most, most), dtype=np.int8)


def quantised_bias(
    bias: Array, scales: NDArray[np.float32], input_scale: np.float32
) -> tuple[NDArray[np.int32], Array]:
    """Return a bias in int32, and its scales: those of what the kernel sums up."""
    of_sums = np.asarray(scales * input_scale, dtype=np.float32)
    return np.asarray(np.clip(np.rint(bias / of_sums.astype(np.float64)), -(2**31), 2**31 - 1), dtype=np.int32), of_sums
