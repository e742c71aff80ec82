"""Forms with every kind of layer, and with zero borders cut off, written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.merge.files import Recipe, load_form, save_form
from tests.torch_cpu.exactness import original_plan, randomise, relative_error
from tests.torch_cpu.test_train_form import Everything, merge_all


def _recipe(solution: lf.Solution, size: int, *, merge_pooling: bool) -> Recipe:
    return Recipe(model="", input_shape=(3, size, size), merge_pooling=merge_pooling, solution=solution)


@pytest.mark.parametrize("plan", [original_plan, merge_all])
@pytest.mark.parametrize("kind", ["train", "deploy"])
def test_form_of_every_kind_of_layer_is_read_back(plan: object, kind: str, tmp_path: Path) -> None:
    model = randomise(Everything()).float()
    x = torch.randn(2, 3, 8, 8)
    net = lf.trace_network(model, x, merge_pooling=True)
    solution = plan(net)  # type: ignore[operator]
    module = lf.build_train_form(model, net, solution)
    if kind == "deploy":
        module = lf.merge_network(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01)
    recipe = _recipe(solution, 8, merge_pooling=True)
    save_form(module, tmp_path / "form.safetensors", kind=kind, recipe=recipe)  # type: ignore[arg-type]
    loaded = load_form(tmp_path / "form.safetensors", model=randomise(Everything(), seed=9).float())
    assert relative_error(loaded.module(x), module(x)) == 0


def test_zero_borders_are_cut_and_read_back(tmp_path: Path) -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)))
    with torch.no_grad():
        model[0].weight[:, :, 0] = model[0].weight[:, :, 4] = 0  # rows: one on each side
        model[0].weight[..., :2] = 0  # columns: two on the left
        model[1].weight[..., 0] = 0
    x = torch.randn(1, 3, 9, 10, dtype=torch.float64)
    net = lf.trace_network(model, x)
    solution = lf.Solution(act_pos=(), merge_pos=(3,))
    student = lf.build_train_form(model, net, solution)
    merged = lf.merge_network(student)
    (found,) = merged.meta["merged_convs"].values()
    assert net.segment(0, 3).conv.kernel_size == (7, 7)
    assert found.conv.kernel_size == (5, 4)
    assert found.conv.padding == ((2, 2), (0, 3))
    assert relative_error(merged(x), student(x)) <= 1e-9
    assert merged.get_submodule(next(iter(merged.meta["merged_convs"]))).kernel_size == (5, 4)
    save_form(
        merged,
        tmp_path / "form.safetensors",
        kind="deploy",
        recipe=Recipe(model="", input_shape=(3, 9, 10), solution=solution),
    )
    whole = randomise(nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)))
    loaded = load_form(tmp_path / "form.safetensors", model=whole.float())
    assert relative_error(loaded.module(x), merged(x)) == 0


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_whose_taps_are_all_zero_is_cut_to_one(stride: int) -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3, stride=stride, padding=1), nn.Conv2d(4, 4, 3, padding=1)))
    with torch.no_grad():
        model[1].weight.zero_()
    x = torch.randn(1, 3, 9, 10, dtype=torch.float64)
    net = lf.trace_network(model, x)
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=(2,)))
    merged = lf.merge_network(student)
    (found,) = merged.meta["merged_convs"].values()
    assert found.conv.kernel_size == (1, 1)
    assert relative_error(merged(x), student(x)) <= 1e-9


def test_without_padding_nothing_is_cut() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)))
    with torch.no_grad():
        model[0].weight[:, :, 0] = 0
    x = torch.randn(1, 3, 9, 10, dtype=torch.float64)
    net = lf.trace_network(model, x)
    student = lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=(2,)))
    merged = lf.merge_network(student)
    assert next(iter(merged.meta["merged_convs"].values())).conv.kernel_size == (3, 3)
    assert relative_error(merged(x), student(x)) <= 1e-9
