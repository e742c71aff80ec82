"""Importance of networks that read parameters and buffers in their own forward, behind what an entry changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import layerfold as lf
from layerfold.importance import list_requests
from layerfold.importance.subject import Subject
from tests.torch_cpu.small_training import images


class _Net(nn.Module):
    """Four convs, and an end that reads its own tensors."""

    def __init__(self, end: Callable[[_Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for channels in (3, 6, 6, 6):
            layers += [nn.Conv2d(channels, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(6, 3)
        self.gain = nn.Parameter(torch.full((1, 6, 1, 1), 1.5))
        self.register_buffer("shift", torch.linspace(-1, 1, 6))
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, self.body(x))


def _linear(net: _Net, x: Tensor) -> Tensor:
    return functional.linear(x.mean((2, 3)), net.head.weight, net.head.bias)


def _normalised(net: _Net, x: Tensor) -> Tensor:
    return x.mean((2, 3)) @ functional.normalize(net.head.weight, dim=1).t()


ENDS: dict[str, Callable[[_Net, Tensor], Tensor]] = {
    "a functional linear layer": _linear,
    "a gain for each channel": lambda net, x: net.head((x * net.gain).mean((2, 3))),
    "a buffer": lambda net, x: net.head(x.mean((2, 3)) + net.shift),
    "a computed weight": _normalised,
    "a tensor made there": lambda net, x: net.head(x.mean((2, 3)) * torch.arange(1, 7)),
    "a weight that the front shares": lambda net, x: net.head(functional.conv2d(x, net.body[3].weight).mean((2, 3))),
}


@pytest.mark.parametrize("method", ["recalibrate", "distill", "shared"])
@pytest.mark.parametrize("end", ENDS)
def test_tensors_that_the_end_reads_are_no_feature_maps(end: str, method: str) -> None:
    model = _Net(ENDS[end])
    net = lf.trace_network(model, torch.randn(1, 3, 8, 8))
    steps: dict[str, Any] = {} if method == "recalibrate" else {"steps": 1}
    table = lf.estimate_importance(model, net, images(), method, progress=False, **steps)
    assert len(table.entries) > 4


@pytest.mark.parametrize("end", ENDS)
def test_what_lies_behind_a_change_computes_the_whole_changed_network(end: str) -> None:
    model = _Net(ENDS[end])
    net = lf.trace_network(model, torch.randn(1, 3, 8, 8))
    subject = Subject(
        model, net, images(), lf.ImportanceOptions(calibration_images=20, holdout_images=None), is_recalibrated=False
    )
    for request in list_requests(net, net.candidates(), fill_slots=False):
        changed = subject.changed_form(request)
        with torch.no_grad():
            expected = changed(subject.calibration.images[0])
            suffix = subject.behind_the_change(changed)
            found = suffix.network(*suffix.calibration[0])
        assert torch.allclose(found, expected, rtol=0, atol=1e-5), request


@pytest.mark.parametrize("end", ENDS)
def test_only_the_feature_map_in_front_of_the_change_is_kept(end: str) -> None:
    model = _Net(ENDS[end])
    net = lf.trace_network(model, torch.randn(1, 3, 8, 8))
    subject = Subject(
        model, net, images(), lf.ImportanceOptions(calibration_images=20, holdout_images=None), is_recalibrated=False
    )
    late = [each for each in list_requests(net, net.candidates(), fill_slots=False) if each.start == 2]
    for request in late:
        suffix = subject.behind_the_change(subject.changed_form(request))
        inputs = [node.name for node in suffix.network.graph.nodes if node.op == "placeholder"]
        assert len(inputs) == 1
        assert inputs[0].startswith("kept_"), "not the images: what lies in front is computed once"
    assert late


class _Early(_Net):
    """Reads a parameter in front of the chain, as something that depends on the images in form only."""

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain.type_as(x)
        return self.head((self.body(x) * gain).mean((2, 3)))


@pytest.mark.parametrize("method", ["distill", "shared"])
def test_values_without_a_row_per_image_are_not_kept(method: str) -> None:
    model = _Early(_linear)
    net = lf.trace_network(model, torch.randn(1, 3, 8, 8))
    table = lf.estimate_importance(model, net, images(), method, progress=False, steps=1)
    assert len(table.entries) > 4
