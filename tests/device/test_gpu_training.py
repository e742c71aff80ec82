"""Training and importances on an NVIDIA GPU: they learn, go on where they were stopped, and agree with the CPU."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.importance import FinalistScores, WholeScores, remove_journal

pytestmark = [pytest.mark.device, pytest.mark.skipif("not torch.cuda.is_available()", reason="no NVIDIA GPU here")]


@pytest.fixture(scope="module")
def data() -> lf.ImageData:
    """Four classes, told apart by their brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(256) % 4
    images = torch.randn(256, 3, 16, 16, generator=generator) + 0.5 * labels[:, None, None, None]
    splits = [TensorDataset(images[part], labels[part]) for part in (slice(128), slice(128, None))]
    return lf.ImageData(
        name="made up", num_classes=4, input_shape=(3, 16, 16), train=splits[0], holdout=splits[1], test=splits[1]
    )


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    convs = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise((3, 16, 16, 16, 16))
    ]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def train(model: nn.Module, data: lf.ImageData, **options: object) -> None:
    lf.finetune_network(
        model,
        data,
        **{"batch_size": 32, "epochs": 6, "learning_rate": 0.05, "device": "cuda", "progress": False, **options},
    )


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_network_learns_and_comes_back_to_the_cpu(model: nn.Module, data: lf.ImageData, precision: str) -> None:
    before = lf.evaluate_network(model, data.test).accuracy_pct
    train(model, data, mixed_precision=precision)
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert lf.evaluate_network(model, data.test).accuracy_pct > max(before, 60)


def test_training_goes_on_from_its_checkpoint(model: nn.Module, data: lf.ImageData, tmp_path: Path) -> None:
    checkpoint = tmp_path / "training.pt"
    before = {name: value.clone() for name, value in model.state_dict().items()}

    class Stopped(Exception):
        pass

    def stop(module: nn.Module, *_: object) -> None:
        steps.append(module.training)
        if sum(steps) > 13:
            raise Stopped

    steps: list[bool] = []
    with model.register_forward_hook(stop), pytest.raises(Stopped):
        train(model, data, checkpoint_path=checkpoint)
    assert checkpoint.exists()
    model.load_state_dict(before)
    model.to("cpu")
    report = lf.finetune_network(
        model,
        data,
        batch_size=32,
        epochs=6,
        learning_rate=0.05,
        device="cuda",
        progress=False,
        checkpoint_path=checkpoint,
    )
    assert report.resumed_from_step == 12
    assert lf.evaluate_network(model, data.test).accuracy_pct > 60


@pytest.mark.parametrize(
    ("method", "steps", "tolerance"), [("recalibrate", None, 1e-3), ("shared", 2, 1e-2), ("finetune", 4, 1e-2)]
)
def test_importances_agree_with_those_of_the_cpu(
    model: nn.Module, data: lf.ImageData, tmp_path: Path, method: str, steps: int | None, tolerance: float
) -> None:
    train(model, data)
    net = lf.trace_network(model, torch.zeros(1, 3, 16, 16))
    tables = {}
    for device in ("cpu", "cuda"):
        journal = tmp_path / f"{device}.journal"
        tables[device] = lf.estimate_importance(
            model,
            net,
            data,
            method,
            score="loss",
            steps=steps,
            batch_size=32,
            journal_path=journal,
            progress=False,
            executor=lf.Executor(devices=(device,)),
            candidates=net.candidates(max_kernel=7, max_growth=20.0),
        )
        remove_journal(journal)
    expected, found = ([entry.importance for entry in tables[device].entries] for device in ("cpu", "cuda"))
    assert len(found) == len(expected) > 3
    assert max(abs(one - other) for one, other in zip(found, expected, strict=True)) < tolerance
    assert max(expected) - min(expected) > 5 * tolerance  # or agreeing would say nothing


def test_plans_score_on_the_gpu_as_on_the_cpu(model: nn.Module, data: lf.ImageData) -> None:
    train(model, data)
    net = lf.trace_network(model, torch.zeros(1, 3, 16, 16))
    plans = [lf.Solution(act_pos=stops, merge_pos=stops) for stops in ((1, 2, 3, 4), (2, 4), (4,))]
    training = lf.FinetuneOptions(steps=4, batch_size=32, learning_rate=0.02)
    for score, tolerance in ((WholeScores, 1e-3), (partial(FinalistScores, options=training), 5e-3)):
        expected, found = (
            [score(model, net, data, device=device)(plan) for plan in plans] for device in ("cpu", "cuda")
        )
        assert found == pytest.approx(expected, abs=tolerance)
        assert max(expected) - min(expected) > 5 * tolerance


@pytest.mark.parametrize("epochs", [0, 1])
def test_compress_trains_on_the_gpu(model: nn.Module, data: lf.ImageData, tmp_path: Path, epochs: int) -> None:
    train(model, data)
    options = lf.CompressOptions(
        speedup=1.001, max_kernel=5, finetune_epochs=epochs, batch_size=32, formats=("onnx",), train_device="cuda"
    )
    found = lf.compress_network(model, data, out=tmp_path / "out", options=options, progress=False)
    assert all(each.device.type == "cpu" for each in (*found.merged.parameters(), *model.parameters()))
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    again = lf.evaluate_network(found.merged, data.test)
    assert scores["compressed"]["loss"] == pytest.approx(again.loss, abs=1e-2)


def test_merged_network_gives_on_the_gpu_what_its_train_form_does(model: nn.Module, data: lf.ImageData) -> None:
    net = lf.trace_network(model, torch.zeros(1, 3, 16, 16))
    form = lf.build_train_form(model, net, lf.Solution(act_pos=(2,), merge_pos=(2, 4)))
    train(form, data)
    merged = lf.merge_network(form.eval()).cuda()
    images = torch.stack([data.test[index][0] for index in range(32)])
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        assert torch.allclose(merged(images.cuda()).cpu(), form(images), atol=1e-4)
