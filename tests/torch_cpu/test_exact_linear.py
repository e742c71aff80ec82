"""Linear operations that are no convs: slicing shortcuts and average pooling, however they are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.torch_cpu.exactness import barriers, chains, check, kinds, residuals

Maps = torch.Tensor


class Block(nn.Module):
    """A residual block of stride 2 and twice the channels, its shortcut without parameters."""

    def __init__(self, shortcut: Callable[[Any, Maps], Maps]) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.a, self.b = nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.c = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1)
        self.max_pool, self.avg_pool = nn.MaxPool2d(1, 2), nn.AvgPool2d(1, 2)

    def forward(self, x: Maps) -> Maps:
        return self.c(torch.relu(self.norm(self.b(torch.relu(self.a(x)))) + self.shortcut(self, x)))


_PAD = (0, 0, 0, 0, 2, 2)
_SLICES: dict[str, Callable[[Any, Maps], Maps]] = {
    "slice": lambda m, x: F.pad(x[:, :, ::2, ::2], _PAD),
    "slice, written out": lambda m, x: F.pad(x[:, :, ::2, ::2], _PAD, "constant", 0),
    "slice of the last two": lambda m, x: F.pad(x[..., ::2, ::2], _PAD, mode="constant", value=0.0),
    "slice axis by axis": lambda m, x: F.pad(x[:, :, ::2][:, :, :, ::2], _PAD),
    "channels behind": lambda m, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4)),
    "padded first": lambda m, x: F.pad(x, _PAD)[:, :, ::2, ::2],
    "MaxPool2d of one pixel": lambda m, x: F.pad(m.max_pool(x), _PAD),
    "AvgPool2d of one pixel": lambda m, x: F.pad(m.avg_pool(x), _PAD),
    "max_pool2d of one pixel": lambda m, x: F.pad(F.max_pool2d(x, 1, 2), _PAD),
    "max_pool2d, keywords": lambda m, x: F.pad(F.max_pool2d(x, kernel_size=1, stride=2), _PAD),
    "avg_pool2d of one pixel": lambda m, x: F.pad(F.avg_pool2d(x, 1, stride=(2, 2)), _PAD),
}


@pytest.mark.parametrize("name", _SLICES)
@pytest.mark.parametrize("size", [8, 9])
def test_slicing_shortcut_merges_with_its_block(name: str, size: int) -> None:
    net = check(Block(_SLICES[name]), (1, 4, size, size + 2), most=6)
    assert chains(net) == [(0, 3)]
    assert [(src, dst, set(way)) for src, dst, way in residuals(net)] == [(0, 2, {"slice"})]


@pytest.mark.parametrize(
    "shortcut",
    [
        lambda m, x: torch.cat((x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])), 1),
        lambda m, x: torch.cat((m.avg_pool(x), m.avg_pool(x).mul(0)), 1),
        lambda m, x: F.pad(x[:, :, 1::2, ::2], (0, 0, 0, x.shape[2] % 2, 2, 2)),
        lambda m, x: F.pad(x[:, :, ::2, ::2], _PAD, value=0.5),
        lambda m, x: F.pad(x.flip(1)[:, :, ::2, ::2], _PAD),
    ],
)
def test_shortcut_that_is_written_otherwise_is_a_barrier(shortcut: Callable[[Any, Maps], Maps]) -> None:
    net = check(Block(shortcut), (1, 4, 8, 10), larger=4, most=6)
    assert not net.residuals
    assert "add" in barriers(net)


class Pooled(nn.Module):
    def __init__(self, pool: Callable[[Maps], Maps]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.pool = nn.BatchNorm2d(4), pool

    def forward(self, x: Maps) -> Maps:
        return self.b(self.pool(torch.relu(self.norm(self.a(x)))))


_POOLS: dict[str, Callable[[Maps], Maps]] = {
    "plain": nn.AvgPool2d(2),
    "overlapping": nn.AvgPool2d(3, 2, padding=1),
    "non-square": nn.AvgPool2d((2, 3), (1, 2), padding=(0, 1)),
    "whole windows in ceil mode": nn.AvgPool2d(2, ceil_mode=True),
    "unpadded, not counted": nn.AvgPool2d(2, count_include_pad=False),
    "by call": lambda x: F.avg_pool2d(x, 2),
    "by call with keywords": lambda x: F.avg_pool2d(x, kernel_size=3, stride=1, padding=1),
}


@pytest.mark.parametrize("name", _POOLS)
def test_average_pooling_is_a_layer_where_asked_for(name: str) -> None:
    assert kinds(check(Pooled(_POOLS[name]), (1, 3, 10, 12), larger=2, most=8)) == ["conv", "conv"]
    net = check(Pooled(_POOLS[name]), (1, 3, 10, 12), larger=2, most=8, merge_pooling=True)
    assert kinds(net) == ["conv", "pool", "conv"]
    assert chains(net) == [(0, 3)]


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(2, ceil_mode=True),
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=3),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(3),
        nn.LPPool2d(2, 2),
        lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
        lambda x: F.avg_pool2d(x, x.size(2)),
        lambda x: F.avg_pool2d(x, x.size()[2:]),
        lambda x: F.avg_pool2d(x, (x.shape[2], x.shape[3])),
        lambda x: F.max_pool2d(x, x.shape[2]),
    ],
)
def test_pooling_that_is_no_average_of_whole_windows_stays_a_barrier(pool: Callable[[Maps], Maps]) -> None:
    net = check(Pooled(pool), (1, 3, 11, 11), larger=2, most=8, merge_pooling=True)
    assert kinds(net) == ["conv", "conv"]
    assert len(net.chains) == 2


def test_pooling_shortcut_as_in_resnet_d_merges() -> None:
    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1)
            self.side = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6))

        def forward(self, x: Maps) -> Maps:
            return torch.relu(self.b(torch.relu(self.a(x))) + self.side(x))

    net = check(Down(), (1, 4, 8, 10), larger=2, merge_pooling=True)
    assert residuals(net) == [(0, 2, ("pool", "conv"))]
