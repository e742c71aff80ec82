"""Every kind of conv: what merges merges exactly, what does not is a barrier with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import layerfold as lf
from tests.torch_cpu.exactness import all_positions, barriers, chains, check, kinds, randomise, relative_error

_KINDS: dict[str, dict[str, Any]] = {
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "grouped otherwise": {"kernel_size": 3, "padding": 1, "groups": 3},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 6},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "strided beyond its kernel": {"kernel_size": 1, "stride": 2},
    "non-square": {"kernel_size": (1, 5), "padding": (0, 2)},
    "non-square all over": {"kernel_size": (3, 2), "padding": (2, 0), "stride": (2, 1), "dilation": (1, 2)},
    "same": {"kernel_size": (3, 4), "padding": "same", "dilation": (2, 1)},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "unpadded": {"kernel_size": 3},
    "overpadded": {"kernel_size": 2, "padding": 3},
    "without bias": {"kernel_size": 3, "padding": 1, "bias": False},
}


@pytest.mark.parametrize("name", _KINDS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_conv_kind_merges_with_its_neighbours(name: str, place: int) -> None:
    layers: list[nn.Module] = []
    for index in range(3):
        settings = _KINDS[name] if index == place else {"kernel_size": 3, "padding": 1}
        layers += [nn.Conv2d(6, 6, **settings), nn.BatchNorm2d(6), nn.ReLU()]
    net = check(nn.Sequential(*layers), (2, 6, 12, 13))
    assert chains(net) == [(0, 3)]
    assert net.original_act_pos == (1, 2, 3)


class _Functional(nn.Module):
    """Zero padding written as a call."""

    def __init__(self, pad: tuple[int, ...]) -> None:
        super().__init__()
        self.pad, self.a, self.b = pad, nn.Conv2d(3, 4, 3, padding=(1, 0)), nn.Conv2d(4, 5, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.pad(torch.relu(self.a(F.pad(x, self.pad))), self.pad))


@pytest.mark.parametrize("pad", [(1, 0, 2, 1), (0, 3), (0, 1, 0, 1)])
def test_zero_padding_by_call_is_the_padding_of_the_conv_behind_it(pad: tuple[int, ...]) -> None:
    net = check(_Functional(pad), (1, 3, 9, 10))
    left, right, top, bottom = (*pad, 0, 0)[:4]
    assert net.layer(1).conv.padding == ((top + 1, bottom + 1), (left, right))
    assert net.layer(2).conv.padding == ((top, bottom), (left, right))
    assert chains(net) == [(0, 2)]
    assert not net.barriers


@pytest.mark.parametrize("module", [nn.ZeroPad2d((1, 0, 2, 1)), nn.ConstantPad2d((0, 1, 0, 1), 0.0)])
def test_zero_padding_by_module_is_the_padding_of_the_conv_behind_it(module: nn.Module) -> None:
    net = check(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), module, nn.Conv2d(4, 4, 3)), (1, 3, 9, 10))
    assert chains(net) == [(0, 2)]
    assert not net.barriers


@pytest.mark.parametrize(
    "module", [nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ConstantPad2d(1, 0.5), nn.ZeroPad2d((-1, 0, 0, -1))]
)
def test_padding_with_anything_else_is_a_barrier(module: nn.Module) -> None:
    net = check(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), module, nn.Conv2d(4, 4, 3)), (1, 3, 9, 10))
    assert chains(net) == [(0, 1), (1, 2)]
    assert type(module).__name__ in barriers(net)


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_conv_of_another_padding_mode_is_a_barrier_that_says_so(mode: str) -> None:
    special = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), special, nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    net = check(model, (1, 3, 9, 10))
    assert chains(net) == [(0, 1), (1, 3)]
    assert kinds(net) == ["conv", "norm", "conv"]
    assert barriers(net)["Conv2d"] == f"padding mode {mode!r} is not zero padding"


@pytest.mark.parametrize("size", [12, 13])
@pytest.mark.parametrize("stride", [1, 2])
def test_dynamic_same_padding_merges_for_the_traced_size(size: int, stride: int) -> None:
    model = nn.Sequential(
        Conv2dSame(3, 4, 3, stride=stride),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Conv2dSame(4, 5, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3, padding=1),
    )
    net = check(model, (1, 3, size, size), larger=4)
    assert chains(net) == [(0, 3)]


@pytest.mark.parametrize("kind", [StdConv2d, ScaledStdConv2d, StdConv2dSame])
def test_weight_standardised_conv_merges(kind: Any) -> None:
    model = nn.Sequential(
        kind(3, 4, 3, stride=1, padding=1), nn.BatchNorm2d(4), nn.ReLU(), kind(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)
    )
    net = check(model, (1, 3, 10, 10), larger=4)
    assert chains(net) == [(0, 3)]


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, spectral_norm]
)
def test_conv_of_a_derived_weight_merges(wrap: Any) -> None:
    model = nn.Sequential(
        wrap(nn.Conv2d(3, 4, 3)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        wrap(nn.Conv2d(4, 5, 3, padding=1)),
        nn.ReLU(),
        nn.Conv2d(5, 4, 3),
    )
    net = check(model, (1, 3, 10, 10))
    assert chains(net) == [(0, 3)]


def test_pruned_conv_merges() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    net = check(model, (1, 3, 10, 10))
    assert chains(net) == [(0, 2)]


class _Calls(nn.Module):
    """Convs and norms as calls on parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
        self.second = nn.Parameter(torch.zeros(4, 2, 3, 3))
        self.bias = nn.Parameter(torch.zeros(4))
        self.gain = nn.Parameter(torch.zeros(4))
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, self.weight, padding=1)
        y = F.relu(F.batch_norm(y, self.running_mean, self.running_var, self.gain, eps=0.01))
        return torch.conv2d(y, self.second, self.bias, stride=2, groups=2)


def test_functional_conv_and_norm_are_layers() -> None:
    net = check(_Calls(), (1, 3, 9, 9))
    assert chains(net) == [(0, 2)]
    assert net.layer(1).norm is not None
    assert net.layer(2).conv.groups == 2
    assert not net.barriers


class _OneWeightTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3, 3, 3))
        self.last = nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(F.conv2d(F.conv2d(x, self.weight), self.weight))


def test_functional_convs_of_one_weight_are_barriers() -> None:
    net = check(_OneWeightTwice(), (1, 3, 12, 12))
    assert [layer.name for layer in net.layers] == ["last"]
    assert "conv2d" in barriers(net)


class _ConvThatDoesMore(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).abs()


def test_conv_with_a_forward_that_does_more_is_read_as_what_it_does() -> None:
    net = check(nn.Sequential(nn.Conv2d(3, 4, 1), _ConvThatDoesMore(4, 4, 3), nn.Conv2d(4, 4, 3)), (1, 3, 9, 9))
    assert chains(net) == [(0, 3)]
    assert [layer.activation.kind if layer.activation else None for layer in net.layers] == [None, "abs", None]


def _foreign_same_padding() -> type[nn.Conv2d]:
    def forward(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (2, 0, 2, 0)), self.weight, self.bias)

    return type("Conv2dSame", (nn.Conv2d,), {"forward": forward})


def test_class_that_shares_its_name_with_a_known_one_is_read_by_what_it_computes() -> None:
    kind = _foreign_same_padding()
    net = check(nn.Sequential(nn.Conv2d(3, 4, 1), kind(4, 4, 3), nn.Conv2d(4, 4, 1)), (1, 3, 9, 9))
    assert chains(net) == [(0, 3)]
    assert net.layer(2).conv.padding == ((2, 0), (2, 0))


def test_hook_of_a_conv_is_not_lost() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)))
    model[1].register_forward_hook(lambda module, inputs, output: output.abs())
    x = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    net = lf.trace_network(model, x)
    assert chains(net) == [(0, 1), (1, 2)]
    assert "hook" in barriers(net)["Conv2d"]
    with torch.no_grad():
        student = lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=all_positions(net)))
        assert relative_error(student(x), model(x)) <= 1e-9
