"""Modules for linear operations that libraries write as loose calls; ordinary modules, trained and saved like any."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class PaddedConv2d(nn.Conv2d):
    """A conv whose zero padding differs between the sides of an axis.

    Attributes:
        sides: (left, right, top, bottom), as ``torch.nn.functional.pad`` takes them.
    """

    sides: tuple[int, int, int, int]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, self.sides))


class ChannelScale(nn.Module):
    """A multiplication by and an addition of constants, one for each channel or one for all.

    Args:
        weight, bias: a tensor of one element or one per channel, in any shape; or a number, which is no part of
            ``state_dict`` and is as precise as the feature map, whatever that is.

    Shapes: [N, C, H, W] to the same.
    """

    weight: torch.Tensor | float | None
    bias: torch.Tensor | float | None

    def __init__(self, weight: torch.Tensor | float | None = None, bias: torch.Tensor | float | None = None) -> None:
        super().__init__()
        for name, value in (("weight", weight), ("bias", bias)):
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight is not None:
            x = x * _by_channel(self.weight)
        return x if self.bias is None else x + _by_channel(self.bias)

    def extra_repr(self) -> str:
        numbers = {name: getattr(self, name) for name in ("weight", "bias")}
        return ", ".join(f"{name}={value}" for name, value in numbers.items() if isinstance(value, (int, float)))


def _by_channel(value: torch.Tensor | float) -> torch.Tensor | float:
    return value.reshape(1, -1, 1, 1) if isinstance(value, torch.Tensor) else value


class StridedSlice(nn.Module):
    """Every n-th pixel, with zero channels before and behind: the parameterless shortcut of CIFAR ResNets (option A).

    Args:
        stride: (height, width).
        before, behind: zero channels to add.

    Shapes: [N, C, H, W] to [N, before + C + behind, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, stride: tuple[int, int], before: int = 0, behind: int = 0) -> None:
        super().__init__()
        self.stride, self.before, self.behind = stride, before, behind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride[0], :: self.stride[1]]
        return F.pad(x, (0, 0, 0, 0, self.before, self.behind)) if self.before or self.behind else x

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, behind={self.behind}"
