"""Squeeze-and-excitation is recognised where it is, in what each library writes, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from layerfold.graph import trace_network
from layerfold.graph.barrier_groups import SE_LABEL, group_barriers, plain_kind, why_not_more
from layerfold.graph.squeeze_excitation import blocks_with_squeeze_excitation, chains_outside, find_squeeze_excitations
from layerfold.models import load_model


@pytest.mark.parametrize(
    ("name", "num_gates", "num_blocks", "first"),
    [
        ("timm:efficientnet_b0", 16, 16, "blocks.0.0.se"),
        ("torchvision:efficientnet_b0", 16, 16, "features.1.0.block.1"),
        ("torchvision:mobilenet_v3_large", 8, 15, "features.4.block.2"),
        ("torchvision:regnet_y_400mf", 16, 16, "trunk_output.block1.block1-0.f.se"),
        ("timm:ghostnet_100", 7, 17, "blocks.3.0.se"),
        ("timm:seresnet18", 8, 8, "layer1.0.se"),
    ],
)
def test_gates_and_their_blocks_are_found(name: str, num_gates: int, num_blocks: int, first: str) -> None:
    net = trace_network(load_model(name).module, torch.zeros(1, 3, 96, 96))
    gates = find_squeeze_excitations(net)
    assert len(gates) == num_gates
    assert gates[0].name == first
    assert blocks_with_squeeze_excitation(net, gates) == (num_gates, num_blocks)
    inside = [index for gate in gates for index in gate.layers]
    outside = [index for chain in chains_outside(net) for index in range(chain.start + 1, chain.end + 1)]
    assert sorted(inside + outside) == list(range(1, len(net.layers) + 1))
    assert all(net.layer(index).input_shape[1:] == (1, 1) for index in inside)
    assert why_not_more(net).startswith(f"{num_gates} of {num_blocks} blocks end at {SE_LABEL}")


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "torchvision:convnext_tiny", "torchvision:densenet121"])
def test_network_without_gates_has_none(name: str) -> None:
    net = trace_network(load_model(name).module, torch.zeros(1, 3, 96, 96))
    assert find_squeeze_excitations(net) == ()
    assert SE_LABEL not in why_not_more(net)


class _LinearGate(nn.Module):
    """Squeeze-and-excitation of fully connected layers, as in the authors' own code."""

    def __init__(self, *, has_sigmoid: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.reduce, self.expand = nn.Linear(8, 2), nn.Linear(2, 8)
        self.gate = nn.Sigmoid() if has_sigmoid else nn.Identity()
        self.last = nn.Conv2d(8, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        weight = self.gate(self.expand(torch.relu(self.reduce(x.mean((2, 3))))))
        return self.last(x * weight.view(-1, 8, 1, 1))  # type: ignore[no-any-return]


def test_gate_of_linear_layers_is_one_group() -> None:
    net = trace_network(_LinearGate(), torch.zeros(1, 3, 16, 16))
    (gate,) = find_squeeze_excitations(net)
    assert gate.after == 1
    assert [barrier.kind for barrier in gate.barriers] == ["mean", "Linear", "relu", "Linear", "Sigmoid", "view", "mul"]
    assert [group.label for group in group_barriers(net)] == [SE_LABEL]
    assert why_not_more(net) == f"1 × {SE_LABEL}"  # no blocks to count


def test_product_without_a_sigmoid_is_no_gate() -> None:
    assert find_squeeze_excitations(trace_network(_LinearGate(has_sigmoid=False), torch.zeros(1, 3, 16, 16))) == ()


def test_every_barrier_is_in_one_group() -> None:
    net = trace_network(load_model("timm:efficientnet_b0").module, torch.zeros(1, 3, 96, 96))
    groups = group_barriers(net)
    assert sum(len(group.items) for group in groups if group.label != SE_LABEL) + sum(
        len(gate.barriers) for gate in find_squeeze_excitations(net)
    ) == len(net.barriers)
    assert [len(group.items) for group in groups] == sorted((len(group.items) for group in groups), reverse=True)


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        ("AdaptiveAvgPool2d", "average pool"),
        ("max_pool2d", "max pool"),
        ("ReLU", "relu"),
        ("cat", "concatenation"),
        ("LayerNorm", "layer norm"),
        ("LeakyReLU", "leaky relu"),
        ("BatchNorm2d", "batch norm"),
        ("Linear", "linear"),
    ],
)
def test_kinds_are_plain_words(kind: str, plain: str) -> None:
    assert plain_kind(kind) == plain
