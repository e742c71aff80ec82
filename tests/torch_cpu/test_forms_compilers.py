"""Train and deploy form under torch.compile, torch.export and the channels-last layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.torch_cpu.forms import FORMS, Forms, make_forms, relative

NAMES = ("benchmarks:resnet20", "timm:tf_efficientnet_lite0")


TOLERANCE = 1e-9
"""In float64: compilers add up in another order, and how much deep networks in float32 make of that is no claim."""


@pytest.fixture(scope="module", params=NAMES)
def forms(request: pytest.FixtureRequest) -> Forms:
    """Return the forms of a network in float64."""
    found = make_forms(request.param)
    return replace(found, train=found.train.double(), deploy=found.deploy.double(), images=found.images.double())


@pytest.mark.parametrize("form", FORMS)
def test_compiled_in_one_graph_it_gives_the_same_outputs_and_gradients(forms: Forms, form: str) -> None:
    plain, model = forms.copy_of(form), forms.copy_of(form)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    outputs, expected = compiled(forms.images), plain(forms.images)
    assert relative(outputs, expected) <= TOLERANCE
    outputs.square().mean().backward()
    expected.square().mean().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert float((ours.grad - theirs.grad).abs().max()) <= TOLERANCE * float(theirs.grad.abs().max()) + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_compiled_to_machine_code_it_gives_the_same_outputs(forms: Forms, form: str) -> None:
    model = forms.copy_of(form)
    expected = model(forms.images)
    torch.compiler.reset()
    assert relative(torch.compile(model, backend="inductor", fullgraph=True)(forms.images), expected) <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_exported_program_gives_the_same_outputs_at_another_batch_size(forms: Forms, form: str) -> None:
    model = forms.copy_of(form)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (forms.images,), dynamic_shapes=({0: batch},), strict=True)
    for images in (forms.images, torch.cat([forms.images, forms.images.flip(0)[:3]])):
        assert relative(program.module()(images), model(images)) <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_channels_last_stays_channels_last_to_the_end(forms: Forms, form: str) -> None:
    model = forms.copy_of(form)
    expected = model(forms.images)
    model = model.to(memory_format=torch.channels_last)
    seen: list[bool] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append(output.is_contiguous(memory_format=torch.channels_last))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    assert relative(model(forms.images.to(memory_format=torch.channels_last)), expected) <= TOLERANCE
    assert len(seen) > 5
    assert all(seen)
