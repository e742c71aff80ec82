"""Every norm with constant statistics is part of a layer; one of batch statistics is a barrier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, GroupNormAct
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import layerfold as lf
from tests.torch_cpu.exactness import (
    activations,
    barriers,
    chains,
    check,
    kinds,
    original_plan,
    randomise,
    relative_error,
)

_NORMS: dict[str, Callable[[], nn.Module]] = {
    "affine": lambda: nn.BatchNorm2d(4),
    "not affine": lambda: nn.BatchNorm2d(4, affine=False),
    "large eps": lambda: nn.BatchNorm2d(4, eps=0.1),
    "frozen": lambda: FrozenBatchNorm2d(4),
    "synchronised": lambda: nn.SyncBatchNorm(4),
    "none": nn.Identity,
}


@pytest.mark.parametrize("name", _NORMS)
def test_norm_behind_a_conv_is_folded(name: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        _NORMS[name](),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        _NORMS[name](),
        nn.Conv2d(4, 4, 3),
    )
    net = check(model, (2, 3, 9, 8))
    assert chains(net) == [(0, 3)]
    assert [layer.norm for layer in net.layers] == ([None] * 3 if name == "none" else ["1", "4", None])
    merged = lf.merge_network(lf.build_train_form(model, net, original_plan(net)))
    assert not any("Norm" in type(module).__name__ for module in merged.modules())


@pytest.mark.parametrize("name", ["affine", "not affine", "frozen", "synchronised"])
def test_norm_in_front_of_a_conv_is_a_layer_of_its_own(name: str) -> None:
    model = nn.Sequential(
        _NORMS[name](),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        _NORMS[name](),
        nn.ReLU(),
        _NORMS[name](),
        nn.Conv2d(4, 4, 3),
    )
    net = check(model, (2, 4, 9, 8))
    assert kinds(net) == ["norm", "conv", "norm", "conv"]
    assert chains(net) == [(0, 4)]
    assert net.original_act_pos == (1, 2)


@pytest.mark.parametrize("kind", [BatchNormAct2d, FrozenBatchNormAct2d])
@pytest.mark.parametrize("apply_act", [True, False])
def test_fused_norm_and_activation_are_two(kind: Callable[..., nn.Module], apply_act: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        kind(4, apply_act=apply_act, act_layer=nn.SiLU),
        nn.Conv2d(4, 4, 3),
        kind(4),
        nn.Conv2d(4, 4, 1),
    )
    net = check(model, (1, 3, 9, 8))
    assert chains(net) == [(0, 3)]
    assert activations(net) == ["silu" if apply_act else None, "relu", None]


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), GroupNormAct(4, 2)]
)
def test_norm_of_its_own_input_is_a_barrier(norm: nn.Module) -> None:
    net = check(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Conv2d(4, 4, 3)), (2, 3, 9, 8))
    assert chains(net) == [(0, 1), (1, 2)]
    kind = next(iter(barriers(net)))
    assert kind in (type(norm).__name__, "group_norm")
    assert "norm" in barriers(net)[kind]


def test_frozen_norm_adds_no_weight_of_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNormAct2d(4), nn.Conv2d(4, 4, 3))
    net = lf.trace_network(randomise(model), torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    student = lf.build_train_form(model, net, original_plan(net))
    assert set(student.state_dict()) == set(model.state_dict())


def test_norm_that_two_convs_share_is_a_barrier() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.b(self.norm(self.a(x))))

    net = check(Shared(), (1, 4, 9, 9))
    assert chains(net) == [(0, 1), (1, 2)]
    assert "shared" in barriers(net)["BatchNorm2d"]


def test_norm_behind_a_conv_with_another_reader_is_not_folded() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.a(x)
            return self.b(torch.relu(self.norm(x))), x

    model = Read()
    net = check(model, (1, 3, 9, 9))
    assert kinds(net) == ["conv", "norm", "conv"]
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    merged = lf.merge_network(lf.build_train_form(model, net, original_plan(net)))
    assert relative_error(merged(x), model(x)) <= 1e-9


def test_fused_norms_in_a_list_of_modules_are_taken_apart() -> None:
    layers = pytest.importorskip("timm.layers")

    class Paths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.paths = nn.ModuleList(layers.ConvNormAct(3, 4, 3) for _ in range(2))
            self.named = nn.ModuleDict({"last": layers.ConvNormAct(8, 4, 1)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.named["last"](torch.cat([path(x) for path in self.paths], 1))

    net = check(Paths(), (1, 3, 9, 9))
    assert [layer.activation is not None for layer in net.layers] == [True] * 3
