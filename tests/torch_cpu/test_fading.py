"""Activations fade: from the original's function at the start to the train form's at the end, and then are gone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import layerfold as lf
from layerfold.graph.fading import FadingActivation, fade_to, fading_activations, remove_fading
from layerfold.merge import add_fading
from tests.torch_cpu.networks import make_network, random_solution, randomise_norms
from tests.torch_cpu.search_networks import random_network
from tests.torch_cpu.test_search_training import images

_TRAIN: dict[str, Any] = {"batch_size": 8, "progress": False, "learning_rate": 0.01}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_fading_relu_is_a_slope_left_of_zero(share: float) -> None:
    x = torch.linspace(-9, 9, 181, dtype=torch.float64)
    fading = FadingActivation(nn.ReLU())
    fading.share = share
    assert torch.allclose(fading(x), F.leaky_relu(x, share), rtol=0, atol=1e-12)
    six = FadingActivation(nn.ReLU6())
    six.share = share
    assert torch.allclose(six(x), F.leaky_relu(x, share) + (share - 1) * F.relu(x - 6), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["timm:mobilenetv2_100", "torchvision:resnet34", "cifar:resnet20", *range(8)])
def test_form_begins_as_the_original_and_ends_as_the_train_form(name: str | int) -> None:
    if isinstance(name, int):
        model, x = random_network(name, blocks=4).eval(), torch.randn(2, 3, 12, 12)
        randomise_norms(model)
    else:
        model, x = make_network(name)
    model, x = model.double(), x.double()
    net = lf.trace_network(model, x)
    rng = random.Random(str(name))
    # Without merging no padding moves, so that the original's function is there to be compared with.
    every = lf.Solution(
        act_pos=[p for p in net.original_act_pos if rng.random() < 0.5], merge_pos=range(1, len(net.layers) + 1)
    )
    # Larger ones show nothing new, and take seconds each in float64.
    candidates = [
        each
        for each in net.candidates(max_kernel=7, max_growth=3)
        if not each.is_changed or each.conv.num_params <= 1_000_000
    ]
    for solution in (every, random_solution(net, candidates, rng)):
        expected = lf.build_train_form(model, net, solution).eval()
        form = lf.build_train_form(model, net, solution).eval()
        removed = set(net.original_act_pos) - set(solution.act_pos) - {chain.end for chain in net.chains}
        assert add_fading(form, model, net, solution) == len(removed) == len(list(fading_activations(form)))
        with torch.no_grad():
            assert torch.equal(form(x), expected(x))
            fade_to(form, 0.0)
            if solution is every:
                assert torch.allclose(form(x), model(x), rtol=0, atol=1e-10)
            elif removed:
                assert not torch.allclose(form(x), expected(x))
            remove_fading(form)
            assert torch.equal(form(x), expected(x))
        assert form.state_dict().keys() == expected.state_dict().keys()
        assert str(form) == str(expected)
        lf.merge_network(form)


def _case(seed: int = 3) -> tuple[nn.Module, lf.Network, lf.Solution]:
    model = random_network(seed, blocks=4).eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 12, 12))
    return model, net, lf.Solution(act_pos=(), merge_pos=[chain.end for chain in net.chains])


def _student(case: tuple[nn.Module, lf.Network, lf.Solution]) -> Any:
    model, net, solution = case
    form = lf.build_train_form(model, net, solution)
    add_fading(form, model, net, solution)
    return form


def test_shares_rise_over_the_given_part_of_the_run_and_leave_nothing() -> None:
    case = _case()
    student, seen = _student(case), []
    first = next(fading_activations(student))
    first.register_forward_hook(lambda module, *_: seen.append(module.share) if module.training else None)
    lf.finetune_network(student, images(), steps=8, fade=0.5, **_TRAIN)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert list(fading_activations(student)) == []
    student, x = student.double(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(lf.merge_network(student)(x), student(x), rtol=1e-9, atol=1e-9)


def test_interrupted_run_fades_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    case = _case()
    whole, broken, resumed = (_student(case) for _ in range(3))
    lf.finetune_network(whole, images(), steps=12, fade=0.8, **_TRAIN)
    path, left = tmp_path / "state.pt", [7]

    def interrupt(module: nn.Module, *_: object) -> None:
        left[0] -= module.training
        if left[0] < 0:
            raise KeyboardInterrupt

    broken.register_forward_hook(interrupt)
    options = {**_TRAIN, "steps": 12, "fade": 0.8, "checkpoint_path": path}
    with pytest.raises(KeyboardInterrupt):
        lf.finetune_network(broken, images(), checkpoint_every_s=0, **options)
    assert {each.share for each in fading_activations(broken)} == {1.0}
    with pytest.raises(lf.UsageError, match=r"was made with fade=0\.8, now 0\.4"):
        lf.finetune_network(_student(case), images(), **{**options, "fade": 0.4})
    report = lf.finetune_network(resumed, images(), **options)
    assert report.resumed_from_step == 7
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_wrong_fade_is_one_line() -> None:
    model, net, solution = _case()
    plain = lf.build_train_form(model, net, solution)
    for student, more, words in (
        (plain, {"fade": 1.5}, r"^fade=1\.5: must be within 0\.\.1$"),
        (plain, {"fade": 0.5}, r"^fade=0\.5: no activation fades in this network; add them \(add_fading\)"),
        (_student(_case()), {"fade": 0.5, "keep": "best"}, r"^keep='best': epochs in which activations fade"),
    ):
        with pytest.raises(lf.UsageError, match=words):
            lf.finetune_network(student, images(), steps=2, **more, **_TRAIN)
