"""Train and deploy form against a forward pass written by hand: an oracle that shares no code with either.

All kernels are 1x1, so that padding plays no part and the reference is plain.
"""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layerfold as lf

_LENGTH = 6
_FILLED = (1, 2, 4, 6)


class Reference(nn.Module):
    """Six layers, two nested residuals, activations at some positions only."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 1, groups=(1, 2, 6)[i % 3]) for i in range(_LENGTH))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(_LENGTH))
        self.act = nn.LeakyReLU(0.3, inplace=True)
        self.shortcut = nn.Conv2d(6, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.act(self.norms[0](self.convs[0](x)))
        two = self.act(self.norms[1](self.convs[1](one)))
        three = self.norms[2](self.convs[2](two))
        four = self.act(one + self.norms[3](self.convs[3](three)))
        five = self.norms[4](self.convs[4](four))
        return self.act(self.norms[5](self.convs[5](five)))

    def by_hand(self, x: torch.Tensor, act_pos: set[int]) -> torch.Tensor:
        features = {0: x}
        for position in range(1, _LENGTH + 1):
            value = self.norms[position - 1](self.convs[position - 1](features[position - 1]))
            if position == 4:
                value = value + features[1]
            if position in act_pos or position == _LENGTH:
                value = F.leaky_relu(value, 0.3)
            features[position] = value
        return features[_LENGTH]


@pytest.mark.parametrize("seed", range(20))
def test_both_forms_compute_the_network_with_just_these_activations(seed: int) -> None:
    torch.manual_seed(seed)
    model = Reference().double().eval()
    for norm in model.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    net = lf.trace_network(model, x)
    assert net.original_act_pos == _FILLED
    assert [(r.src, r.dst) for r in net.residuals] == [(1, 4)]
    rng = random.Random(seed)
    pairs = {(segment.start, segment.end) for segment in net.candidates()}
    position, merge_pos = 0, []
    while position < _LENGTH:
        position = rng.choice([end for start, end in pairs if start == position])
        merge_pos.append(position)
    act_pos = tuple(p for p in merge_pos if rng.random() < 0.5)
    student = lf.build_train_form(model, net, lf.Solution(act_pos=act_pos, merge_pos=tuple(merge_pos)))
    with torch.no_grad():
        expected = model.by_hand(x, set(act_pos))
        assert torch.allclose(student(x), expected, atol=1e-12)
        assert torch.allclose(lf.merge_network(student)(x), expected, atol=1e-12)


class _InPlaceStatements(nn.Module):
    """In-place calls whose results nobody takes: what later lines read has changed all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.act = nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.a(x)
        F.relu_(first)
        second = self.b(first)
        second.add_(x)
        self.act(second)
        third = self.c(second)
        third.relu_()
        return third


def test_in_place_statements_are_seen() -> None:
    torch.manual_seed(0)
    model, x = _InPlaceStatements().double().eval(), torch.randn(1, 4, 8, 8, dtype=torch.float64)
    net = lf.trace_network(model, x)
    assert net.original_act_pos == (1, 2, 3)
    assert [(r.src, r.dst) for r in net.residuals] == [(0, 2)]
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(1, 2, 3), merge_pos=(1, 2, 3)))
    with torch.no_grad():
        assert torch.allclose(student(x.clone()), model(x.clone()), rtol=0, atol=1e-12)


class _NormThatDoesMore(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x))


def test_norm_that_does_more_is_not_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), _NormThatDoesMore(4), nn.Conv2d(4, 4, 1)).double().eval()
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    net = lf.trace_network(model, x)
    assert [layer.norm for layer in net.layers] == [None, None]
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=(1, 2)))
    with torch.no_grad():
        assert torch.allclose(lf.merge_network(student)(x), model(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [31, 32])
def test_strided_block_whose_branches_agree_by_parity_merges(size: int) -> None:
    class Down(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.Conv2d(3, 4, 3, stride=2, padding=1)
            self.side = nn.Conv2d(3, 4, 2, stride=2, padding=size % 2)
            self.after = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.after(self.main(x) + self.side(x))

    torch.manual_seed(0)
    model, x = Down().double().eval(), torch.randn(1, 3, size, size, dtype=torch.float64)
    net = lf.trace_network(model, x)
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=(2,)))
    with torch.no_grad():
        assert torch.allclose(lf.merge_network(student)(x), student(x), atol=1e-12)


def test_slot_filled_with_prelu_takes_the_dtype_of_the_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).double().eval()
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    net = lf.trace_network(model, x)
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(1, 2), merge_pos=(1, 2, 3)))
    assert student(x).dtype == torch.float64


def test_hash_does_not_depend_on_the_batch() -> None:
    model = Reference().eval()
    one, many = (lf.trace_network(model, torch.zeros(batch, 6, 5, 5)) for batch in (1, 7))
    assert one.hash == many.hash
