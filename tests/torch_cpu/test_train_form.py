"""The train form as a module: modes, precision, gradients, names, warnings."""

from __future__ import annotations

import copy
import functools
import gc
import types
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn

import layerfold as lf
from layerfold.graph import same_model
from layerfold.modules import public_call
from tests.torch_cpu.exactness import all_positions, original_plan, randomise, relative_error


class Everything(nn.Module):
    """Every kind of layer once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.std, self.norm = StdConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))
        self.pool, self.pad, self.odd = nn.AvgPool2d(2), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 8, 2)
        self.last, self.fc = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.norm(self.std(x)) * self.gamma)
        y = self.odd(self.pad(self.pool(x)))
        y = self.last(torch.relu(y) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.fc(y.mean((2, 3)))


@pytest.fixture
def traced() -> tuple[Everything, lf.Network, torch.Tensor]:
    model = randomise(Everything())
    assert isinstance(model, Everything)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    net = lf.trace_network(model, x, merge_pooling=True)
    assert len(net.chains) == 1
    return model, net, x


def merge_all(net: lf.Network) -> lf.Solution:
    return lf.Solution(act_pos=(), merge_pos=(len(net.layers),))


def plans(net: lf.Network) -> list[lf.Solution]:
    return [original_plan(net), merge_all(net)]


@pytest.mark.filterwarnings("error")
def test_model_in_eval_mode_gives_forms_in_eval_mode_without_a_warning(
    traced: tuple[Everything, lf.Network, torch.Tensor],
) -> None:
    model, net, _ = traced
    for plan in plans(net):
        student = lf.build_train_form(model, net, plan)
        assert not any(module.training for module in student.modules())
        assert not any(module.training for module in lf.merge_network(student).modules())


def test_norm_that_the_user_put_in_eval_mode_stays_so(traced: tuple[Everything, lf.Network, torch.Tensor]) -> None:
    model, net, x = traced
    model.train()
    model.norm.eval()
    for plan in plans(net):
        student = lf.build_train_form(model, net, plan)
        norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
        assert sorted(norm.training for norm in norms) == [False, True]
        with pytest.warns(UserWarning, match="in training mode"):
            merged = lf.merge_network(student)
        assert not any(module.training for module in merged.modules())
        assert relative_error(merged(x), student.eval()(x)) <= 1e-9


def test_gradients_reach_every_parameter(traced: tuple[Everything, lf.Network, torch.Tensor]) -> None:
    model, net, x = traced
    for plan in plans(net):
        student = lf.build_train_form(model, net, plan).train()
        student(x).square().sum().backward()
        for name, parameter in student.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        assert all(parameter.grad is None for parameter in model.parameters())


def test_trained_form_still_merges_exactly(traced: tuple[Everything, lf.Network, torch.Tensor]) -> None:
    model, net, x = traced
    for plan in plans(net):
        student = lf.build_train_form(model, net, plan).train()
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            student(x).square().mean().backward()
            optimizer.step()
        merged = lf.merge_network(copy.deepcopy(student).eval())
        assert relative_error(merged(x), student.eval()(x)) <= 1e-9


def test_names_outside_the_merged_segments_are_those_of_the_model(
    traced: tuple[Everything, lf.Network, torch.Tensor],
) -> None:
    model, net, _ = traced
    keys = set(model.state_dict()) - {"gamma"}  # a parameter on its own becomes a module
    assert keys <= set(lf.build_train_form(model, net, original_plan(net)).state_dict())
    assert {"fc.weight", "fc.bias"} <= set(lf.build_train_form(model, net, merge_all(net)).state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forms_keep_the_precision_of_the_model(
    traced: tuple[Everything, lf.Network, torch.Tensor], dtype: torch.dtype
) -> None:
    model, _, x = traced
    model, x = model.to(dtype), x.to(dtype)
    net = lf.trace_network(model, x, merge_pooling=True)
    for plan in plans(net):
        student = lf.build_train_form(model, net, plan)
        merged = lf.merge_network(student)
        for form in (student, merged):
            assert {value.dtype for value in form.state_dict().values() if value.is_floating_point()} == {dtype}
            assert form(x).dtype == dtype
        assert relative_error(merged(x).float(), student(x).float()) <= 64 * torch.finfo(dtype).eps


def test_merging_says_where_it_makes_more_work() -> None:
    convs = [nn.Conv2d(inputs, outputs, 1) for inputs, outputs in ((8, 2), (2, 8), (8, 8), (8, 8))]
    model = randomise(nn.Sequential(*convs[:2], nn.ReLU(), *convs[2:]))
    net = lf.trace_network(model, torch.zeros(1, 8, 6, 6, dtype=torch.float64))
    merged = lf.merge_network(lf.build_train_form(model, net, lf.Solution(act_pos=(2,), merge_pos=(2, 4))))
    found = merged.meta["merged_convs"]
    assert {(each.start, each.end): each.raises_macs for each in found.values()} == {(0, 2): True, (2, 4): False}
    first = next(each for each in found.values() if each.start == 0)
    assert (first.macs_before, first.macs_after) == (36 * 32, 36 * 64)


def test_nan_names_the_first_segment_that_holds_it() -> None:
    model = randomise(nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(6))))
    net = lf.trace_network(model, torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = float("nan")
        model[5].bias[1] = float("inf")
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=(2, 4, 6)))
    with pytest.raises(lf.EquivalenceError, match=r"segment \(2, 4\)"):
        lf.merge_network(student)


def test_weights_of_a_merged_form_do_not_change_the_model(traced: tuple[Everything, lf.Network, torch.Tensor]) -> None:
    model, net, x = traced
    before = model(x)
    for plan in plans(net):
        student = lf.build_train_form(model, net, plan)
        with torch.no_grad(), warnings.catch_warnings():
            for parameter in student.parameters():
                parameter.add_(1)
            lf.merge_network(student)
    assert torch.equal(model(x), before)
    assert all_positions(net)[-1] == len(net.layers)


def test_a_network_of_another_class_is_refused_where_its_modules_have_the_same_names() -> None:
    class Plain(nn.Sequential):
        pass

    class Doubled(nn.Sequential):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    parts = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)]
    plain, doubled = Plain(*parts).eval(), Doubled(*parts).eval()
    net = lf.trace_network(plain, torch.randn(1, 3, 8, 8))
    with pytest.raises(lf.UsageError, match="net was traced from a Plain, not from this Doubled; trace this one"):
        lf.build_train_form(doubled, net, original_plan(net))
    lf.build_train_form(copy.deepcopy(plain), net, original_plan(net))


class _Flagged(nn.Module):
    """One class whose flags decide what it computes, under the same names of modules."""

    def __init__(
        self,
        *,
        stride: int = 1,
        padding: str = "zeros",
        channels: int = 3,
        relu: bool = False,
        scale: float = 1.0,
        eps: float = 1e-5,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(channels, 4, 3, stride=stride, padding=1, padding_mode=padding)
        self.norm = nn.BatchNorm2d(4, eps=eps)
        self.act = nn.LeakyReLU(slope)
        self.last = nn.Conv2d(4, 4, 3)
        self.relu, self.scale = relu, scale
        self.halves, self.more, self.other = [1.0, 1.0], functools.partial(torch.mul, other=1.0), nn.Tanh()
        nn.init.zeros_(self.norm.weight)  # so that nothing before it shows with these weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.more(self.last(self.act(self.norm(self.first(x)))) * self.scale * self.halves[1])
        return torch.relu(x) if self.relu else x


_CALLS = {
    "build_train_form": lambda model, net: lf.build_train_form(model, net, original_plan(net)),
    "verify_solution": lambda model, net: lf.verify_solution(model, net, original_plan(net), "torch"),
    "profile_network": lambda model, net: lf.profile_network(model, net, "torch", progress=False),
    "layer_norms": lf.layer_norms,
}


@pytest.mark.parametrize("call", _CALLS)
@pytest.mark.parametrize(
    ("flags", "cause"),
    [
        ({"stride": 2}, "has another layer 'first'"),
        ({"padding": "circular"}, ""),
        ({"slope": 0.1}, "has another layer"),
        ({"relu": True}, "computes something else"),
        ({"scale": 2.0}, "computes something else"),
        ({"channels": 1}, "does not run on that one's input"),
    ],
)
def test_a_network_of_the_same_class_with_other_flags_is_refused(call: str, flags: dict[str, Any], cause: str) -> None:
    net = lf.trace_network(_Flagged(), torch.randn(1, 3, 9, 9))
    with pytest.raises(lf.UsageError, match=f"net was traced from another _Flagged than this one, which {cause}"):
        _CALLS[call](_Flagged(**flags), net)


def test_the_same_network_with_other_weights_passes_in_every_state() -> None:
    net = lf.trace_network(_Flagged(), torch.randn(1, 3, 9, 9))
    for model in (randomise(_Flagged()), _Flagged().double().train(), nn.DataParallel(_Flagged())):
        assert lf.build_train_form(model, net, original_plan(net)) is not None


def _half_swapped(model: _Flagged) -> None:
    model.halves[1] = 2.0


def _doubled(model: _Flagged, x: torch.Tensor) -> torch.Tensor:
    return _Flagged.forward(model, x) * 2


_CHANGES: dict[str, Callable[[_Flagged], object]] = {
    "an element of a list": _half_swapped,
    "an argument of a partial": lambda model: setattr(model, "more", functools.partial(torch.mul, other=2.0)),
    "a method of an instance": lambda model: setattr(model, "forward", types.MethodType(_doubled, model)),
    "a module by another's": lambda model: setattr(model, "act", model.other),
    "a flag": lambda model: setattr(model, "scale", 2.0),
    "an argument of a layer": lambda model: setattr(model.first, "dilation", (2, 2)),
    "another activation": lambda model: setattr(model, "act", nn.LeakyReLU(0.1)),
    "another forward": lambda model: setattr(model, "forward", lambda x: _Flagged.forward(model, x) * 2),
    "a hook": lambda model: model.last.register_forward_hook(lambda module, inputs, output: output * 2),
    "other shapes": lambda model: setattr(model.last, "weight", nn.Parameter(torch.randn(4, 4, 1, 1))),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_a_model_that_was_changed_since_it_was_checked_is_checked_again(change: str) -> None:
    model = randomise(_Flagged())
    net = lf.trace_network(model, torch.randn(1, 3, 9, 9))
    lf.build_train_form(model, net, original_plan(net))
    lf.build_train_form(model, net, original_plan(net))
    _CHANGES[change](model)
    with pytest.raises(lf.UsageError, match="trace this one"):
        lf.build_train_form(model, net, original_plan(net))


def test_a_public_function_of_a_model_and_its_net_cannot_be_left_unchecked() -> None:
    def measure(model: nn.Module, net: lf.Network) -> None: ...

    with pytest.raises(TypeError, match="measure takes a model and its net: mark it with network_call"):
        public_call(measure)


def test_a_pair_is_run_once_and_a_forward_of_the_class_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    difference = same_model._difference
    monkeypatch.setattr(same_model, "_difference", lambda *given: ran.append(1) or difference(*given))
    model = randomise(_Flagged())
    net = lf.trace_network(model, torch.randn(1, 3, 9, 9))
    for _ in range(3):
        lf.build_train_form(model, net, original_plan(net))
    assert len(ran) == 1
    model.train()
    with torch.no_grad():
        model.first.weight.mul_(2)
    lf.build_train_form(model, net, original_plan(net))
    assert len(ran) == 1, "weights and the mode may be others"
    forward = _Flagged.forward
    monkeypatch.setattr(_Flagged, "forward", lambda self, x: forward(self, x) * 2)
    with pytest.raises(lf.UsageError, match="trace this one"):
        lf.build_train_form(model, net, original_plan(net))


def test_what_is_remembered_of_a_pair_does_not_keep_the_model_alive() -> None:
    model = randomise(_Flagged())
    model.register_forward_hook(lambda module, inputs, output, owner=model: None)
    model.note = lambda owner=model: owner
    net = lf.trace_network(model, torch.randn(1, 3, 9, 9))
    lf.build_train_form(model, net, original_plan(net))
    alive = weakref.ref(model)
    del model, net
    gc.collect()
    assert alive() is None


def test_a_model_that_holds_what_cannot_be_compared_is_checked_each_time() -> None:
    class Config:
        scale = 1.0

    class Configured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cfg, self.conv, self.head = Config(), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv(x))) * self.cfg.scale

    model = Configured()
    net = lf.trace_network(model, torch.randn(1, 3, 9, 9))
    lf.build_train_form(model, net, original_plan(net))
    model.cfg.scale = 3.0
    with pytest.raises(lf.UsageError, match="trace this one"):
        lf.build_train_form(model, net, original_plan(net))
