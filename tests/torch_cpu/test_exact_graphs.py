"""Around the chains: several inputs and outputs, shared modules, parts that cannot be traced."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

import layerfold as lf
from tests.torch_cpu.exactness import barriers, chains, check, kinds, original_plan, randomise, relative_error

Maps = torch.Tensor


def three() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
    )


class Outputs(nn.Module):
    """A backbone, a head and an output of a given kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body, self.head = kind, three(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Maps) -> Any:
        features = self.body(x)
        out = self.head(torch.relu(features))
        if self.kind == "dict":
            return {"features": features, "out": out}
        if self.kind == "OrderedDict":
            result = OrderedDict()
            result["out"], result["features"] = out, features
            return result
        if self.kind == "nested":
            return {"all": [features, (out, features)]}
        return [features, out] if self.kind == "list" else (features, out)


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "OrderedDict", "nested"])
def test_several_outputs_keep_their_form(kind: str) -> None:
    model = Outputs(kind)
    net = check(model, (1, 3, 8, 9))
    assert chains(net) == [(0, 3), (3, 4)]
    x = torch.randn(1, 3, 8, 9, dtype=torch.float64)
    student = lf.build_train_form(model, net, original_plan(net))
    assert isinstance(model(x), type(student(x)))  # an OrderedDict is read as a dict
    if "ict" in kind:
        assert list(student(x)) == list(model(x))


def test_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = three(), three(), nn.Conv2d(4, 4, 3)

        def forward(self, x: Maps, y: Maps, scale: float = 1.0) -> Maps:
            return self.c(self.a(x) + self.b(y)) * scale

    net = check(Two(), (1, 3, 8, 9), (1, 3, 8, 9))
    assert kinds(net).count("conv") == 7
    assert len(net.input_shapes) == 2


@pytest.mark.parametrize("part", ["conv", "block"])
def test_shared_module_is_a_barrier(part: str) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
            self.alias, self.first, self.last = self.block, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Maps) -> Maps:
            x = self.block(self.first(x))
            return self.last(self.alias(x) if part == "block" else self.block[0](x))

    net = check(Shared(), (1, 3, 8, 9))
    assert [layer.name for layer in net.layers] == ["first", "last"]
    assert "more than once" in barriers(net)["Conv2d"]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Maps) -> Maps:
        return self.conv(x) if float(x.sum()) > 0 else x


def test_part_that_cannot_be_traced_stays_whole_with_a_note() -> None:
    net = check(nn.Sequential(three(), Untraceable(), nn.Conv2d(4, 4, 3)), (1, 3, 8, 9))
    assert chains(net) == [(0, 3), (3, 4)]
    (note,) = net.notes
    assert "1 (Untraceable) is kept whole" in note
    assert "float(x.sum()) > 0" in note
    assert "Untraceable" in barriers(net)


def test_global_average_by_every_call_of_user_code() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = three(), nn.Linear(4, 3)

        def forward(self, x: Maps) -> Maps:
            x = self.body(x)
            x = nn.functional.avg_pool2d(x, x.size()[3])
            return self.fc(x.view(x.size(0), -1))

    net = check(Head(), (2, 3, 8, 8))
    assert chains(net) == [(0, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scaled_network_traces_in_its_own_precision(dtype: torch.dtype) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Maps) -> Maps:
            return self.b(torch.relu(0.1 * self.a(x) + x / 3))

    model = randomise(Scaled()).to(dtype)
    x = torch.randn(1, 3, 8, 8).to(dtype)
    net = lf.trace_network(model, x)
    student = lf.build_train_form(model, net, original_plan(net))
    merged = lf.merge_network(student)
    assert student(x).dtype == merged(x).dtype == dtype
    assert relative_error(merged(x).float(), model(x).float()) <= 8 * torch.finfo(dtype).eps


class _SumsOfSums(nn.Module):
    """Sums of three and more, each a term of the next: what is reordered first is a term of what follows."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=groups) for groups in (1, 4, 2, 1, 4, 2))
        self.stem, self.order = nn.Conv2d(3, 4, 1), order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        terms = [self.stem(x)]
        for conv in self.convs:
            total = terms[self.order[0] % len(terms)] + (conv(terms[-1]) + terms[self.order[1] % len(terms)])
            terms.append(terms[self.order[2] % len(terms)] + total if len(terms) % 2 else total)
        return torch.relu(terms[-1] + terms[-2])


@pytest.mark.parametrize("order", [(0, 1, 2), (-1, -2, -1), (2, 0, -1), (-2, 1, 0), (-1, -1, -3), (3, -1, 1)])
def test_sums_of_sums_are_read_and_merge_exactly(order: tuple[int, ...]) -> None:
    check(_SumsOfSums(order), (1, 3, 9, 9), most=4)
