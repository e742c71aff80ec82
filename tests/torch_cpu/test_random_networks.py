"""Random residual networks, built valid from a random program, against the program run by hand."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import layerfold as lf
from tests.torch_cpu.exactness import TOLERANCE, all_positions, original_plan, randomise, relative_error, solutions

_SIZE = 71
_ACTS = (nn.ReLU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.GELU)


@dataclass(frozen=True)
class Program:
    """Layer by layer (kernel, stride, groups, has a norm); residuals (src, dst, has a conv); filled slots."""

    channels: list[int]
    layers: list[tuple[tuple[int, int], int, int, bool]]
    residuals: list[tuple[int, int, bool]]
    filled: set[int]
    act: type[nn.Module]
    strides: list[int] = field(default_factory=list)


def draw(rng: random.Random) -> Program:
    length = rng.randint(2, 6)
    width = rng.choice([2, 4, 6])
    layers, channels, strides = [], [width], [1]
    for _ in range(length):
        stride = 2 if rng.random() < 0.2 and strides[-1] < 4 else 1
        groups = rng.choice([1, 1, 2, width])
        layers.append(((rng.choice([1, 3]), rng.choice([1, 3])), stride, groups, rng.random() < 0.6))
        channels.append(width)
        strides.append(strides[-1] * stride)
    residuals: list[tuple[int, int, bool]] = []
    for _ in range(rng.randint(0, 3)):
        src = rng.randrange(length)
        dst = rng.randint(src + 1, length)
        nests = all(not (src < s < dst < d or s < src < d < dst) for s, d, _ in residuals)
        if nests and all((src, dst) != (s, d) for s, d, _ in residuals) and dst > src + 1:
            residuals.append((src, dst, strides[src] != strides[dst] or rng.random() < 0.3))
    # Additions at one position: the innermost first, as a chain reads them.
    residuals.sort(key=lambda each: (each[1], -each[0]))
    filled = {p for p in range(1, length + 1) if rng.random() < 0.6}
    return Program(channels, layers, residuals, filled, rng.choice(_ACTS), strides)


class Network(nn.Module):
    """The program as a user would write it."""

    def __init__(self, program: Program, is_padded: bool = True) -> None:
        super().__init__()
        self.program = program
        convs, norms = [], []
        for index, (kernel, stride, groups, has_norm) in enumerate(program.layers):
            padding = (kernel[0] // 2, kernel[1] // 2) if is_padded else 0
            convs.append(nn.Conv2d(*program.channels[index : index + 2], kernel, stride, padding, groups=groups))
            norms.append(nn.BatchNorm2d(program.channels[index + 1]) if has_norm else nn.Identity())
        self.convs, self.norms, self.act = nn.ModuleList(convs), nn.ModuleList(norms), program.act()
        self.sides = nn.ModuleList(
            nn.Conv2d(program.channels[src], program.channels[dst], 1, program.strides[dst] // program.strides[src])
            if has_conv
            else nn.Identity()
            for src, dst, has_conv in program.residuals
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.by_hand(x, frozenset(self.program.filled))

    def by_hand(self, x: torch.Tensor, acts: frozenset[int]) -> torch.Tensor:
        features = [x]
        for position, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            value = norm(conv(features[-1]))
            for (src, dst, _), side in zip(self.program.residuals, self.sides, strict=True):
                if dst == position:
                    value = value + side(features[src])
            features.append(self.act(value) if position in acts else value)
        return features[-1]


def _middle(value: torch.Tensor) -> torch.Tensor:
    """The pixel in the middle, which no border reaches."""
    return value[:, :, value.shape[2] // 2, value.shape[3] // 2]


@pytest.mark.parametrize("first", range(0, 200, 40))
def test_random_network_is_read_as_it_was_built_and_merges_exactly(first: int) -> None:
    num_merged = 0
    for seed in range(first, first + 40):
        rng = random.Random(seed)
        program = draw(rng)
        model = randomise(Network(program), seed)
        assert isinstance(model, Network)
        size = _SIZE + rng.randint(0, 3)
        x = torch.randn(1, program.channels[0], size, size, dtype=torch.float64)
        smaller = x[:, :, : size // 2, : size // 2 + 1]
        net = lf.trace_network(model, x)
        length, end = len(program.layers), len(program.layers) in program.filled
        assert [(chain.start, chain.end) for chain in net.chains] == [(0, length)], seed
        assert set(net.original_act_pos) == program.filled, seed
        found = [(each.src, each.dst, bool(each.shortcut)) for each in net.residuals]
        assert sorted(found) == sorted(program.residuals), seed
        with torch.no_grad():
            original = lf.build_train_form(model, net, original_plan(net))
            assert relative_error(original(x), model(x)) <= TOLERANCE, seed
            for solution in solutions(net, most=2, seed=seed):
                acts = frozenset(p for p in solution.act_pos if p < length) | ({length} if end else set())
                student = lf.build_train_form(model, net, solution)
                merged = lf.merge_network(student)
                outputs = student(x)
                assert relative_error(merged(x), outputs) <= TOLERANCE, (seed, solution)
                assert relative_error(merged(smaller), student(smaller)) <= TOLERANCE, (seed, solution)
                assert relative_error(_middle(outputs), _middle(model.by_hand(x, acts))) <= TOLERANCE, (seed, solution)
                num_merged += len(solution.merge_pos) < length
                unmerged = lf.Solution(act_pos=solution.act_pos, merge_pos=all_positions(net))
                whole = lf.build_train_form(model, net, unmerged)(x)
                assert relative_error(whole, model.by_hand(x, acts)) <= TOLERANCE, (seed, unmerged)
    assert num_merged > 20, "next to nothing was merged, so this test would show little"
