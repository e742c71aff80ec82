"""Train form and deploy form compute the same function, on real networks."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

import layerfold as lf
from tests.torch_cpu.networks import NAMES, make_network, random_solution


@pytest.mark.parametrize("name", NAMES)
def test_train_form_equals_deploy_form_for_random_solutions(name: str) -> None:
    model, images = make_network(name)
    net = lf.trace_network(model, images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    # Larger ones show nothing new, and take seconds each in float64.
    candidates = [
        each
        for each in net.candidates(max_growth=3, max_kernel=7)
        if not each.is_changed or each.conv.num_params <= 3_000_000
    ]
    precise = copy.deepcopy(model).double()
    expected = precise(images.double())
    rng = random.Random(1)
    num_merged = 0
    with torch.no_grad():
        for _ in range(5):
            solution = random_solution(net, candidates, rng)
            student = lf.build_train_form(precise, net, solution)
            merged = lf.merge_network(student)
            outputs, merged_outputs = student(images.double()), merged(images.double())
            assert outputs.shape == merged_outputs.shape == expected.shape
            largest = outputs.abs().max()
            assert float((outputs - merged_outputs).abs().max() / largest) <= 1e-9
            num_merged += len(net.layers) - len(net.segments_of(solution.merge_pos))
            assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in merged.modules())
    assert num_merged > 5, "the random solutions merged next to nothing, so this test would show little"
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_the_original_plan_computes_the_original(name: str) -> None:
    model, images = (each.double() for each in make_network(name))
    net = lf.trace_network(model, images)
    original = lf.Solution(act_pos=net.original_act_pos, merge_pos=tuple(range(1, len(net.layers) + 1)))
    student = lf.build_train_form(model, net, original)
    with torch.no_grad():
        expected = model(images)
        largest = expected.abs().max()
        assert float((student(images) - expected).abs().max() / largest) <= 1e-12
        assert float((lf.merge_network(student)(images) - expected).abs().max() / largest) <= 1e-9


def test_train_form_has_gradients_and_keeps_names_of_untouched_modules() -> None:
    model, images = make_network("torchvision:mobilenet_v2")
    net = lf.trace_network(model, images)
    keep = tuple(p for p in range(1, len(net.layers) + 1) if not 0 < p < 3)
    acts = tuple(p for p in net.original_act_pos if p in keep)
    student = lf.build_train_form(model, net, lf.Solution(act_pos=acts, merge_pos=keep))
    names = dict(student.named_parameters())
    assert "classifier.1.weight" in names
    assert "features.5.conv.0.0.weight" in names
    student.train()
    student(images).square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    restored = copy.deepcopy(student)
    restored.load_state_dict(student.state_dict())
    with torch.no_grad():
        assert torch.equal(restored.eval()(images), student.eval()(images))


def test_merging_warns_about_training_mode_and_merges_as_in_eval_mode() -> None:
    model, images = (each.double() for each in make_network("cifar:resnet20"))
    net = lf.trace_network(model, images)
    everything = tuple(range(1, len(net.layers) + 1))
    student = lf.build_train_form(model, net, lf.Solution(act_pos=net.original_act_pos, merge_pos=everything))
    with pytest.warns(UserWarning, match="training mode"):
        merged = lf.merge_network(student.train())
    with torch.no_grad():
        assert torch.allclose(merged(images), student.eval()(images), rtol=0, atol=1e-9)


def test_merging_reports_weights_that_hold_nan() -> None:
    model, images = make_network("cifar:resnet20")
    net = lf.trace_network(model, images)
    stops = tuple(p for p in range(1, len(net.layers) + 1) if p != 2)
    acts = tuple(p for p in net.original_act_pos if p in stops)
    student = lf.build_train_form(model, net, lf.Solution(act_pos=acts, merge_pos=stops))
    segment = student.get_submodule("segment_1_3")
    with torch.no_grad():
        next(segment.parameters()).fill_(float("nan"))
    with pytest.raises(lf.EquivalenceError, match=r"segment \(1, 3\)"):
        lf.merge_network(student)


def test_solution_of_another_network_is_refused() -> None:
    model, images = make_network("cifar:resnet20")
    net = lf.trace_network(model, images)
    with pytest.raises(lf.SolutionError, match="hash"):
        lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=(1,), network_hash="0123"))
    with pytest.raises(lf.SolutionError, match=f"positions 1..{len(net.layers)}"):
        lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=(99,)))
    with pytest.raises(lf.SolutionError, match="crosses the residual"):
        lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=(2, 4)))


def test_only_a_train_form_is_merged() -> None:
    with pytest.raises(lf.MergeError, match="build_train_form"):
        lf.merge_network(nn.Conv2d(3, 3, 3))
