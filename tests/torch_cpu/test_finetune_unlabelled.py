"""Without labels a network learns its teacher's answers and is scored by agreement; no label is made up."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from layerfold.data import ImageData
from layerfold.errors import DataError
from layerfold.finetune import evaluate_network, finetune_network
from layerfold.report.training import training_png

_SHAPE = (3, 8, 8)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
    ).eval()


def images(count: int = 128) -> ImageData:
    pictures = torch.randn(count, *_SHAPE, generator=torch.Generator().manual_seed(0))
    whole = TensorDataset(pictures)
    return ImageData(
        name="mine", num_classes=4, input_shape=_SHAPE, train=whole, holdout=whole, test=whole, is_labelled=False
    )


def train(student: nn.Module, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "teacher": network(0),
        "epochs": 6,
        "batch_size": 32,
        "augment": False,
        "progress": False,
    }
    return finetune_network(student, images(), **{**defaults, **options})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"label_smoothing": 0.1},
        {"distillation_weight": 0.0},
        {"keep": "best"},
        {"ema_decay": 0.5},
    ],
    ids=str,
)
def test_student_comes_to_agree_with_its_teacher(options: dict[str, Any]) -> None:
    student = network(1)
    before = evaluate_network(student, images().test, teacher=network(0))
    report = train(student, **options)
    after = evaluate_network(student, images().test, teacher=network(0))
    assert (after.accuracy_pct, after.loss) == (None, None)
    assert after.divergence < 0.7 * before.divergence
    assert all(row.holdout_accuracy_pct is None and row.holdout_loss is None for row in report.history)
    agreements = [row.holdout_agreement_pct for row in report.history]
    assert report.best_epoch == max(range(1, 7), key=lambda epoch: (agreements[epoch - 1], epoch))


def test_labels_have_no_part_in_it() -> None:
    students = [network(1), network(1)]
    for student, label in zip(students, (0, 3), strict=True):
        pictures = images().train._dataset.tensors[0]
        labelled = TensorDataset(pictures, torch.full((len(pictures),), label))
        data = replace(images(), train=labelled, holdout=labelled, test=labelled, fingerprint="")
        finetune_network(student, data, teacher=network(0), epochs=1, batch_size=32, progress=False)
    first, second = (student.state_dict() for student in students)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_interrupted_training_ends_as_a_whole_one(tmp_path: Path) -> None:
    whole, parts = network(1), network(1)
    expected = train(whole, epochs=4)
    path = tmp_path / "training.pt"
    steps = 0

    def stop(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt

    handle = parts.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        train(parts, epochs=4, checkpoint_path=path, checkpoint_every_s=0)
    handle.remove()
    parts = network(1)
    report = train(parts, epochs=4, checkpoint_path=path)
    assert report.resumed_from_step > 0
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())
    assert [row.holdout_agreement_pct for row in report.history] == [
        row.holdout_agreement_pct for row in expected.history
    ]
    training_png(report.history, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert set(asdict(report.history[0])) > {"holdout_agreement_pct"}


def test_neither_labels_nor_a_teacher_is_refused_before_the_first_step() -> None:
    student = network(1)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(DataError, match="have no labels, and without a teacher there is nothing to learn"):
        train(student, teacher=None)
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in before.items())
    with pytest.raises(DataError, match="has no label"):
        evaluate_network(student, images().test)
