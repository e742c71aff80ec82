"""Train and deploy form in training: mixed precision, and two processes that share the work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import layerfold as lf
from tests.torch_cpu.forms import FORMS, make_forms, relative


def take_step(model: nn.Module, images: torch.Tensor) -> None:
    """One step of gradient descent, BatchNorm in eval mode, so that a batch may be cut in two."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    model(images).square().mean().backward()
    optimiser.step()


def train_share(rank: int, folder: str) -> None:
    """Take one step of each form on half of the images, in one of two processes, and write the weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    forms = make_forms()
    for form in FORMS:
        model = DistributedDataParallel(forms.copy_of(form))
        take_step(model, forms.images[2 * rank : 2 * rank + 2])
        torch.save(model.module.state_dict(), f"{folder}/{form}{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_take_the_step_that_one_takes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_share, (str(tmp_path),), nprocs=2)
    forms = make_forms()
    for form in FORMS:
        alone, before = forms.copy_of(form), forms.copy_of(form).state_dict()
        take_step(alone, forms.images)
        ranks = [torch.load(tmp_path / f"{form}{rank}.pt", weights_only=True) for rank in (0, 1)]
        moved = 0
        for name, expected in alone.state_dict().items():
            assert torch.equal(ranks[0][name], ranks[1][name]), name
            step = float((expected - before[name]).abs().max())
            moved += step > 0
            assert float((ranks[0][name] - expected).abs().max()) <= 1e-2 * step + 1e-6, name
        assert moved == len(list(alone.parameters()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["benchmarks:resnet20", "torchvision:mobilenet_v2"])
def test_mixed_precision_trains_every_parameter(name: str, form: str) -> None:
    forms = make_forms(name)
    model = forms.copy_of(form).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(forms.images).square().mean()
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_mixed_precision_gives_nearly_the_same_outputs(form: str) -> None:
    forms = make_forms()
    model = forms.copy_of(form)
    expected = model(forms.images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(forms.images)
    assert found.dtype == torch.bfloat16
    assert relative(found, expected) <= 0.1


def test_merging_inside_autocast_is_as_exact_as_outside() -> None:
    forms = make_forms()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = lf.merge_network(forms.train)
    assert all(torch.equal(value, merged.state_dict()[name]) for name, value in forms.deploy.state_dict().items())
