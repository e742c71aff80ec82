"""What a user can get wrong is one line that names the argument, its value, the rule and the remedy."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import layerfold as lf
from tests.torch_cpu.exactness import original_plan, randomise


def network() -> nn.Module:
    convs = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)]
    return randomise(nn.Sequential(convs[0], nn.BatchNorm2d(4), nn.ReLU(), *convs[1:]))


X = torch.zeros(1, 3, 9, 9, dtype=torch.float64)


def line_of(error: type[lf.LayerfoldError], call: Any) -> str:
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_model_without_convs() -> None:
    line = line_of(lf.UnsupportedGraphError, lambda: lf.trace_network(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), X))
    assert "Sequential has no conv in any chain" in line
    assert "give a CNN" in line


def test_control_flow_of_the_model_itself_names_line_and_way_out() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.mean() > 0:
                return x
            return self.conv(x)

    line = line_of(lf.UnsupportedGraphError, lambda: lf.trace_network(Choosing().double(), X))
    assert re.search(r"Choosing .*test_exact_bad_input\.py:\d+ `if x\.mean\(\) > 0:`", line)
    assert "into a module of its own" in line


@pytest.mark.parametrize(
    ("shape", "cause"), [((1, 4, 9, 9), "channels"), ((1, 3, 2, 2), "[Kk]ernel size"), ((3, 3), ""), ((1, 3, 0, 9), "")]
)
def test_example_input_that_does_not_fit(shape: tuple[int, ...], cause: str) -> None:
    line = line_of(lf.UnsupportedGraphError, lambda: lf.trace_network(network(), torch.zeros(shape, dtype=X.dtype)))
    assert "x".join(map(str, shape)) in line
    assert re.search(cause, line)


@pytest.mark.parametrize("value", [[X], X.numpy(), None, (), (X, 3), {"x": X}])
def test_example_input_that_is_no_tensor(value: Any) -> None:
    assert "expected a tensor [N, C, H, W]" in line_of(lf.UsageError, lambda: lf.trace_network(network(), value))


def test_wrong_number_of_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3)

        def forward(self, x: torch.Tensor, mask: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return self.conv(x * mask) * scale

    line = line_of(lf.UsageError, lambda: lf.trace_network(Two().double(), X))
    assert "holds 1 tensors; Two takes (x, mask, scale" in line
    assert "holds 2 tensors; Sequential takes" in line_of(lf.UsageError, lambda: lf.trace_network(network(), (X, X)))


@pytest.mark.parametrize("name", ["act_pos", "merge_pos"])
def test_position_outside_the_network(name: str) -> None:
    model = network()
    net = lf.trace_network(model, X)
    solution = lf.Solution(act_pos=(7,) if name == "act_pos" else (), merge_pos=(1, 7))
    line = line_of(lf.SolutionError, lambda: lf.build_train_form(model, net, solution))
    assert line == f"{name} holds 7; this network has positions 1..3"


def test_activation_inside_a_segment_is_refused_by_the_solution_itself() -> None:
    line = line_of(lf.SolutionError, lambda: lf.Solution(act_pos=(1, 2), merge_pos=(1, 3)))
    assert "act_pos=[2]: not in merge_pos" in line


def test_solution_of_another_model_or_size() -> None:
    model = network()
    net = lf.trace_network(model, X)
    other = lf.trace_network(model, torch.zeros(1, 3, 10, 10, dtype=X.dtype))
    solution = lf.Solution(act_pos=(), merge_pos=(3,), network_hash=other.hash)
    line = line_of(lf.SolutionError, lambda: lf.build_train_form(model, net, solution))
    assert other.hash in line
    assert net.hash in line


def test_activation_where_the_chain_has_none_to_copy() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)))
    net = lf.trace_network(model, X)
    solution = lf.Solution(act_pos=(1,), merge_pos=(1, 2))
    assert "act_pos holds 1" in line_of(lf.SolutionError, lambda: lf.build_train_form(model, net, solution))


def test_description_of_another_model() -> None:
    """The hash was not given, so only the modules can tell."""
    net = lf.trace_network(network(), X)
    other = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    line = line_of(lf.LayerfoldError, lambda: lf.build_train_form(other, net, original_plan(net)))
    assert "net was traced from another model" in line
