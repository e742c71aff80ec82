"""Every elementwise nonlinearity is a slot, however it is written; what only looks like one is a barrier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn

import layerfold as lf
from tests.torch_cpu.exactness import activations, barriers, chains, check, randomise, relative_error


class Shifted(nn.Module):
    """Nothing but a name in common with any library's."""

    def __init__(self, shift: float = 0.5) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > self.shift, x, 0.1 * x * x)


class OwnReLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=0)


class LeakyReLU(nn.Module):
    """Shares its name with torch's, and neither its slope nor its attributes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.maximum(x, 0.3 * x)


_MODULES: dict[str, Callable[[], nn.Module]] = {
    **{
        kind.__name__: kind
        for kind in (
            nn.ReLU,
            nn.ReLU6,
            nn.SiLU,
            nn.Hardswish,
            nn.Hardsigmoid,
            nn.Sigmoid,
            nn.Tanh,
            nn.Mish,
            nn.GELU,
            nn.PReLU,
            nn.LeakyReLU,
            nn.ELU,
            nn.CELU,
            nn.SELU,
            nn.Softplus,
            nn.Softsign,
            nn.Hardtanh,
            nn.LogSigmoid,
            nn.Hardshrink,
            nn.Softshrink,
            nn.Tanhshrink,
            nn.RReLU,
            Shifted,
            OwnReLU,
            LeakyReLU,
        )
    },
    "in-place": lambda: nn.ReLU(inplace=True),
    "tanh GELU": lambda: nn.GELU(approximate="tanh"),
    "PReLU per channel": lambda: nn.PReLU(4),
    "threshold": lambda: nn.Threshold(0.1, -0.2),
    "timm Swish": timm.layers.Swish,
    "timm HardSwish": lambda: timm.layers.activations.HardSwish(inplace=True),
    "timm HardMish": timm.layers.activations.HardMish,
    "timm GELUTanh": timm.layers.activations.GELUTanh,
}

_CALLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "method": lambda x: x.relu(),
    "in-place method": lambda x: x.relu_(),
    "sigmoid method": lambda x: x.sigmoid(),
    "tanh": torch.tanh,
    "F.relu6": F.relu6,
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "F.leaky_relu keyword": lambda x: F.leaky_relu(x, negative_slope=0.2, inplace=True),
    "F.elu": F.elu,
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "F.gelu": lambda x: F.gelu(x, approximate="tanh"),
    "F.softplus": lambda x: F.softplus(x, beta=2),
    "F.mish": F.mish,
    "torch.clamp": lambda x: torch.clamp(x, 0, 6),
    "torch.clamp at zero": lambda x: torch.clamp(x, min=0),
    "clamp method": lambda x: x.clamp(-0.5, 0.5),
    "in-place clamp": lambda x: x.clamp_(min=-0.1),
    "abs": torch.abs,
    "square": lambda x: x**2,
    "silu by hand": lambda x: x * torch.sigmoid(x),
    "silu by hand, turned": lambda x: x.sigmoid() * x,
    "silu by method": lambda x: x.mul(x.sigmoid()),
    "hardswish by hand": lambda x: x * F.relu6(x + 3) / 6,
    "hardswish by hand, bracketed": lambda x: x * (F.relu6(x + 3.0, inplace=True) / 6.0),
    "hardsigmoid by hand": lambda x: F.relu6(x + 3) / 6,
}


class _Net(nn.Module):
    """Conv, activation, conv, empty slot, conv."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.norm, self.act = nn.BatchNorm2d(4), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.act(self.norm(self.a(x)))))

    def by_hand(self, x: torch.Tensor, acts: set[int]) -> torch.Tensor:
        x = self.norm(self.a(x))
        x = self.b(self.act(x) if 1 in acts else x)
        return self.c(self.act(x) if 2 in acts else x)


def _check(model: _Net) -> lf.Network:
    net = check(model, (1, 3, 7, 8), most=6)
    assert chains(net) == [(0, 3)]
    assert net.original_act_pos == (1,)
    assert not net.barriers
    x = torch.randn(1, 3, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        for acts in (), (1,), (2,), (1, 2):
            if isinstance(model.act, nn.PReLU) and 2 in acts:
                continue  # the new one has a slope of its own
            student = lf.build_train_form(model, net, lf.Solution(act_pos=acts, merge_pos=(1, 2, 3)))
            expected = model.by_hand(x.clone(), set(acts))
            assert relative_error(student(x.clone()), expected) <= 1e-9, acts
            assert relative_error(lf.merge_network(student)(x.clone()), expected) <= 1e-9, acts
    return net


@pytest.mark.parametrize("name", _MODULES)
def test_activation_module_is_a_slot_that_can_be_emptied_and_copied(name: str) -> None:
    _check(_Net(_MODULES[name]()))


@pytest.mark.parametrize("name", _CALLS)
def test_activation_call_is_a_slot_that_can_be_emptied_and_copied(name: str) -> None:
    _check(_Net(_CALLS[name]))


def test_what_is_written_by_hand_is_the_function_that_it_is() -> None:
    kinds = {name: activations(_trace(_Net(_CALLS[name])))[0] for name in _CALLS if "by hand" in name}
    assert {kind for name, kind in kinds.items() if "silu" in name} == {"silu"}
    assert {kind for name, kind in kinds.items() if "hardswish" in name} == {"hardswish"}
    assert kinds["hardsigmoid by hand"] == "hardsigmoid"


def _trace(model: nn.Module) -> lf.Network:
    return lf.trace_network(randomise(model), torch.zeros(1, 3, 8, 8, dtype=torch.float64))


class OverMaximum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.abs().max()


class OverMedian(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x - x.median())


class ByPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + torch.arange(x.shape[-1])


class Affine(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 - 2 * x


@pytest.mark.parametrize("kind", [OverMaximum, OverMedian, ByPlace, nn.Softmax2d, Affine])
def test_module_that_only_looks_elementwise_fills_no_slot(kind: Callable[[], nn.Module]) -> None:
    net = check(nn.Sequential(nn.Conv2d(3, 4, 3), kind(), nn.Conv2d(4, 4, 3)), (1, 3, 8, 8))
    assert activations(net)[0] is None
    assert chains(net) == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    "act",
    [lambda x: x / x.sum(), lambda x: x.softmax(1), lambda x: x * x.mean((2, 3), keepdim=True), lambda x: x.flip(3)],
)
def test_call_that_only_looks_elementwise_is_a_barrier(act: Callable[[torch.Tensor], torch.Tensor]) -> None:
    net = check(_Net(act), (1, 3, 8, 8))
    assert chains(net) == [(0, 1), (1, 3)]
    assert net.barriers


def test_gate_that_is_not_the_sigmoid_of_its_own_input_is_a_barrier() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.sigmoid = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Sigmoid()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) * self.sigmoid(self.b(x))

    assert "squeeze-and-excitation" in barriers(check(Gated(), (1, 3, 6, 6)))["mul"]


def test_module_named_sigmoid_is_what_it_is() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.sigmoid = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Hardsigmoid()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.b(x * self.sigmoid(x))

    assert activations(check(Named(), (1, 3, 6, 6))) == ["hardswish", None]


def test_commonest_activation_of_the_chain_fills_an_empty_slot() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1),
    )
    net = check(model, (1, 3, 6, 6))
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(4,), merge_pos=(1, 2, 3, 4, 5)))
    expected = model[7](torch.tanh(model[6](model[4](model[2](model[0](x))))))
    assert relative_error(student(x), expected) <= 1e-9
