"""Train and deploy form as ordinary modules: state, copies, files, names."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import layerfold as lf
from tests.torch_cpu.forms import FORMS, Forms, make_forms

NAMES = ("benchmarks:resnet20", "timm:mobilenetv2_100")


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[Forms, Forms]:
    """Return one network and solution with two sets of weights."""
    found = make_forms(request.param), make_forms(request.param, weights_seed=1)
    assert found[0].solution == found[1].solution
    return found


@pytest.fixture
def forms(pair: tuple[Forms, Forms]) -> Forms:
    return pair[0]


@pytest.fixture
def others(pair: tuple[Forms, Forms]) -> Forms:
    return pair[1]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_state_goes_into_another_network_of_the_same_solution(forms: Forms, others: Forms, form: str) -> None:
    source, target = forms.copy_of(form), others.copy_of(form)
    assert not torch.equal(target(forms.images), source(forms.images))
    target.load_state_dict(source.state_dict(), strict=True)
    assert torch.equal(target(forms.images), source(forms.images))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_saved_state_is_read_back_with_weights_only(forms: Forms, others: Forms, form: str, tmp_path: Path) -> None:
    source, target = forms.copy_of(form), others.copy_of(form)
    torch.save(source.state_dict(), tmp_path / "form.pt")
    target.load_state_dict(torch.load(tmp_path / "form.pt", weights_only=True), strict=True)
    assert torch.equal(target(forms.images), source(forms.images))


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_copy_is_equal_and_shares_nothing(forms: Forms, form: str) -> None:
    source = forms.copy_of(form)
    expected = source(forms.images)
    copied = copy.deepcopy(source)
    assert torch.equal(copied(forms.images), expected)
    for value in (*copied.parameters(), *copied.buffers()):
        value.zero_()
    assert torch.equal(source(forms.images), expected)


@torch.no_grad()
def test_a_copied_train_form_can_be_merged(forms: Forms) -> None:
    assert torch.equal(lf.merge_network(copy.deepcopy(forms.train))(forms.images), forms.deploy(forms.images))


@torch.no_grad()
def test_merging_in_float64_and_rounding_equals_merging_in_float32(forms: Forms) -> None:
    merged = lf.merge_network(copy.deepcopy(forms.train).double()).float()
    assert all(torch.equal(value, merged.state_dict()[name]) for name, value in forms.deploy.state_dict().items())


def test_modules_outside_the_merged_segments_keep_their_names_and_weights(forms: Forms) -> None:
    """Layers that stay single keep all their keys in the train form and their conv's in the deploy form."""
    original = forms.model.state_dict()
    stays = [segment for segment in forms.net.segments_of(forms.solution.merge_pos) if segment.num_layers == 1]
    inside = {
        name
        for segment in forms.net.segments_of(forms.solution.merge_pos)
        for residual in forms.net.residuals
        if segment.start <= residual.src and residual.dst <= segment.end
        for name in (forms.net.layer(residual.dst).name,)
    }
    names = [forms.net.layer(segment.end).name for segment in stays]
    kept = [name for name in names if name not in inside]
    assert kept, "the solution leaves no layer alone, so this shows nothing"
    train, deploy = forms.train.state_dict(), forms.deploy.state_dict()
    for name in kept:
        assert torch.equal(train[f"{name}.weight"], original[f"{name}.weight"])
        assert f"{name}.weight" in deploy
    outside = [name for name in original if name.startswith(("linear.", "classifier."))]
    assert len(outside) == 2
    assert all(torch.equal(form[name], original[name]) for name in outside for form in (train, deploy))


def test_every_key_of_the_train_form_that_the_original_has_holds_the_same_values(forms: Forms) -> None:
    original = forms.model.state_dict()
    train = lf.build_train_form(forms.model, forms.net, forms.solution).state_dict()
    common = set(original) & set(train)
    assert len(common) > len(original) // 10
    assert all(torch.equal(train[name], original[name]) for name in common)
