"""Residual blocks in every order and shape: the structure that is read, and both forms of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale2d
from torch import nn
from torchvision.ops import StochasticDepth, stochastic_depth

from tests.torch_cpu.exactness import activations, barriers, chains, check, kinds, residuals

Maps = torch.Tensor


class Written(nn.Module):
    """A network written as one function of its modules, so that a test shows it whole."""

    def __init__(self, forward: Callable[[Any, Maps], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.written = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Maps) -> Any:
        return self.written(self, x)


def conv(inputs: int = 4, outputs: int = 4, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2)


def conv_norm(*args: int) -> nn.Sequential:
    layer = conv(*args)
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))


def test_activation_behind_the_addition() -> None:
    net = check(
        Written(lambda m, x: m.c(torch.relu(x + m.b(torch.relu(m.a(x))))), a=conv_norm(), b=conv_norm(), c=conv()),
        (1, 4, 9, 10),
    )
    assert residuals(net) == [(0, 2, ())]
    assert net.original_act_pos == (1, 2)


def test_activation_before_the_addition_is_a_position_of_its_own() -> None:
    net = check(
        Written(lambda m, x: m.c(x + torch.relu(m.b(torch.relu(m.a(x))))), a=conv_norm(), b=conv_norm(), c=conv()),
        (1, 4, 9, 10),
    )
    assert kinds(net) == ["conv", "conv", "add", "conv"]
    assert residuals(net) == [(0, 3, ())]
    assert net.original_act_pos == (1, 2)


@pytest.mark.parametrize("has_conv_shortcut", [False, True])
def test_pre_activation_block(has_conv_shortcut: bool) -> None:
    def forward(m: Any, x: Maps) -> Maps:
        x = m.stem(x)
        y = F.relu(m.norm1(x), inplace=True)
        shortcut = m.side(y) if has_conv_shortcut else x
        y = m.a(y)
        y = m.b(F.relu(m.norm2(y))) + shortcut
        return m.last(torch.relu(m.norm3(y)))

    parts: dict[str, nn.Module] = {
        "stem": conv(3, 4),
        "norm1": nn.BatchNorm2d(4),
        "a": conv(),
        "norm2": nn.BatchNorm2d(4),
        "b": conv(),
        "norm3": nn.BatchNorm2d(4),
        "last": conv(),
    }
    if has_conv_shortcut:
        parts["side"] = conv(4, 4, 1)
    net = check(Written(forward, **parts), (1, 3, 9, 10))
    if has_conv_shortcut:  # the stem's norm follows it alone, and so is part of it
        assert kinds(net) == ["conv", "conv", "conv", "norm", "conv"] or kinds(net) == ["conv", "conv", "conv", "conv"]
        assert residuals(net) == [(1, 3, ("conv",))]
    else:
        assert kinds(net)[:2] == ["conv", "norm"]
        assert [(src, dst) for src, dst, _ in residuals(net)] == [(1, 4)]
    assert len(net.chains) == 1


@pytest.mark.parametrize(("size", "larger"), [(9, 2), (10, 2), (9, 3)])
@pytest.mark.parametrize("shortcut_size", [1, 3])
def test_strided_block_with_conv_shortcut(size: int, larger: int, shortcut_size: int) -> None:
    net = check(
        Written(
            lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))) + m.side(x))),
            a=conv_norm(4, 6, 3, 2),
            b=conv_norm(6, 6),
            side=conv_norm(4, 6, shortcut_size, 2),
            c=conv(6, 4),
        ),
        (1, 4, size, size + 1),
        larger=larger,
    )
    assert residuals(net) == [(0, 2, ("conv",))]


def test_shortcut_of_two_convs_and_one_without_norm() -> None:
    net = check(
        Written(
            lambda m, x: m.d(m.side2(m.side1(x)) + m.c(torch.relu(m.b(torch.relu(m.a(x)))))),
            a=conv(4, 5),
            b=conv(5, 5, 1),
            c=conv(5, 6),
            d=conv(6, 4),
            side1=conv(4, 3, 1),
            side2=conv_norm(3, 6, 3),
        ),
        (1, 4, 9, 10),
    )
    assert residuals(net) == [(0, 3, ("conv", "conv"))]


def test_several_additions_into_one_as_in_repvgg() -> None:
    def forward(m: Any, x: Maps) -> Maps:
        for big, small, norm in zip(m.big, m.small, m.norm, strict=True):
            x = torch.relu(big(x) + small(x) + norm(x))
        return x

    net = check(
        Written(
            forward,
            big=nn.ModuleList(conv_norm() for _ in range(3)),
            small=nn.ModuleList(conv_norm(4, 4, 1) for _ in range(3)),
            norm=nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3)),
        ),
        (1, 4, 9, 10),
    )
    assert chains(net) == [(0, 3)]
    assert sorted(residuals(net)) == sorted((i, i + 1, (kind,)) for i in range(3) for kind in ("conv", "norm"))


def test_many_branches_summed_in_a_loop_as_in_mobileone() -> None:
    def forward(m: Any, x: Maps) -> Maps:
        for branches, act in ((m.first, True), (m.second, False)):
            out = 0
            for branch in branches:
                out = out + branch(x)
            x = torch.relu(out) if act else out
        return x

    def branches() -> nn.ModuleList:
        return nn.ModuleList([*(conv_norm() for _ in range(3)), conv_norm(4, 4, 1), nn.BatchNorm2d(4)])

    net = check(Written(forward, first=branches(), second=branches()), (1, 4, 9, 10))
    assert chains(net) == [(0, 2)]
    assert len(net.residuals) == 8


def test_nested_residuals() -> None:
    def forward(m: Any, x: Maps) -> Maps:
        y = torch.relu(m.a(x))
        z = y + m.c(torch.relu(m.b(y)))
        return m.e(torch.relu(x + m.d(z)))

    net = check(Written(forward, a=conv(), b=conv(), c=conv(), d=conv(), e=conv()), (1, 4, 13, 12))
    assert residuals(net) == [(1, 3, ()), (0, 4, ())]


def test_residuals_that_overlap_without_nesting() -> None:
    def forward(m: Any, x: Maps) -> Maps:
        y = torch.relu(m.a(x))
        z = torch.relu(m.b(y)) + x
        return m.d(torch.relu(m.c(z)) + y)

    net = check(Written(forward, a=conv(), b=conv(), c=conv(), d=conv()), (1, 4, 13, 12))
    assert net.residuals
    assert kinds(net).count("conv") == 4


@pytest.mark.parametrize("write", ["+=", "add_", "add", "torch.add"])
def test_every_way_to_write_the_addition(write: str) -> None:
    def forward(m: Any, x: Maps) -> Maps:
        y = m.b(m.act(m.a(x)))
        if write == "+=":
            y += x
        elif write == "add_":
            y.add_(x)
        else:
            y = y.add(x) if write == "add" else torch.add(x, y)
        return m.c(m.act(y))

    net = check(Written(forward, a=conv_norm(), b=conv_norm(), c=conv(), act=nn.ReLU(inplace=True)), (1, 4, 9, 10))
    assert residuals(net) == [(0, 2, ())]
    assert net.original_act_pos == (1, 2)


@pytest.mark.parametrize("shortcut", [nn.Identity(), nn.Sequential()])
def test_in_place_activation_whose_input_is_read_again(shortcut: nn.Module) -> None:
    def forward(m: Any, x: Maps) -> Maps:
        x = m.stem(x)
        kept = m.shortcut(x)
        return m.c(m.b(m.a(m.act(x))) + kept)  # `act` has changed `kept` too

    model = Written(forward, stem=conv(), a=conv(), b=conv(), c=conv(), act=nn.ReLU(inplace=True), shortcut=shortcut)
    net = check(model, (1, 4, 9, 10))
    assert residuals(net) == [(1, 3, ())]
    assert activations(net) == ["relu", None, None, None]


def test_shuffled_names_of_one_tensor() -> None:
    net = check(
        Written(
            lambda m, x: m.b(m.a(x) + m.drop(m.a2(x))) + F.dropout(x, training=m.training),
            a=conv(),
            a2=conv(4, 4, 1),
            b=conv(),
            drop=nn.Dropout2d(0.3),
        ),
        (1, 4, 9, 10),
    )
    assert residuals(net) == [(0, 1, ("conv",)), (0, 2, ())]


def test_sum_of_a_feature_map_with_itself_is_a_barrier() -> None:
    def forward(m: Any, x: Maps) -> Maps:
        y = m.a(x)
        return m.b(y + m.drop(y)) + (x + x)

    net = check(Written(forward, a=conv(), b=conv(), drop=nn.Dropout(0.5)), (1, 4, 9, 10))
    assert kinds(net) == ["conv", "conv"]
    assert "add" in barriers(net)


_SCALES: dict[str, Callable[[Any, Maps], Maps]] = {
    "number": lambda m, x: 0.1 * x,
    "number behind": lambda m, x: x * 0.1,
    "divided": lambda m, x: x / 7,
    "in place": lambda m, x: x.mul_(0.3),
    "shifted": lambda m, x: x - 0.7,
    "parameter": lambda m, x: x * m.gamma,
    "parameter, turned": lambda m, x: m.gamma * x,
    "parameter, reshaped": lambda m, x: m.flat.view(1, -1, 1, 1) * x,
    "parameter, indexed": lambda m, x: x * m.flat[None, :, None, None],
    "parameter, unsqueezed": lambda m, x: x * m.flat.unsqueeze(-1).unsqueeze(-1),
    "parameter, shift": lambda m, x: x + m.gamma,
    "one for all": lambda m, x: x * m.one,
    "one of many": lambda m, x: x * m.flat[1],
    "LayerScale2d": lambda m, x: m.scale(x),
}


@pytest.mark.parametrize("name", _SCALES)
def test_scaled_branch_is_linear(name: str) -> None:
    scale = _SCALES[name]
    net = check(
        Written(
            lambda m, x: m.c(torch.relu(x + m.path(scale(m, m.b(torch.relu(m.a(x))))))),
            a=conv(),
            b=conv(),
            c=conv(),
            path=DropPath(0.2),
            gamma=nn.Parameter(torch.ones(4, 1, 1)),
            flat=nn.Parameter(torch.ones(4)),
            one=nn.Parameter(torch.ones(1)),
            scale=LayerScale2d(4),
        ),
        (1, 4, 9, 10),
    )
    if name == "one of many":
        assert "mul" in barriers(net)
    else:
        assert len(net.chains) == 1
        assert [(each.src, net.layer(each.dst).kind) for each in net.residuals] in ([(0, "conv")], [(0, "scale")])


def test_scaled_shortcut_and_scaled_input() -> None:
    net = check(
        Written(lambda m, x: m.c(0.5 * x + m.b(torch.relu(m.a(2 * x - 1)))), a=conv(), b=conv(), c=conv()),
        (1, 4, 9, 10),
    )
    assert "scale" in kinds(net)
    assert residuals(net)[0][2] in (("scale",), ())


@pytest.mark.parametrize("drop", [nn.Dropout(0.1), nn.Dropout2d(0.2), DropPath(0.3), StochasticDepth(0.2, "row")])
def test_dropout_and_stochastic_depth_change_nothing(drop: nn.Module) -> None:
    net = check(
        Written(
            lambda m, x: m.c(torch.relu(x + m.drop(m.b(m.drop(torch.relu(m.a(x))))))),
            a=conv(),
            b=conv(),
            c=conv(),
            drop=drop,
        ),
        (1, 4, 9, 10),
    )
    assert chains(net) == [(0, 3)]
    assert residuals(net) == [(0, 2, ())]
    assert not net.barriers


def test_stochastic_depth_by_call_changes_nothing() -> None:
    net = check(
        Written(lambda m, x: x + stochastic_depth(m.b(torch.relu(m.a(x))), 0.2, "row", m.training), a=conv(), b=conv()),
        (1, 4, 9, 10),
    )
    assert residuals(net) == [(0, 2, ())]
