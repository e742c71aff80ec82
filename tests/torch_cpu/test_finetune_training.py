"""Training learns, resumes exactly, and fails with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from layerfold.data import ImageData, open_data
from layerfold.errors import DataError, DeviceUnavailableError, FinetuneError, UsageError
from layerfold.finetune import check_device, evaluate_network, finetune_network
from layerfold.finetune._objective import distillation_loss
from layerfold.options import FinetuneOptions


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from a second thread, and lose much where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("mnist5k", input_shape=(1, 28, 28))


def small_network(seed: int = 0, width: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(144, 10),
    )


def train(model: nn.Module, data: ImageData, **options: Any) -> Any:
    return finetune_network(model, data, **{"batch_size": 64, "steps": 20, "progress": False, **options})


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def is_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_network_learns_the_digits(digits: ImageData) -> None:
    model = small_network()
    before = evaluate_network(model, digits.test).accuracy_pct
    report = train(model, digits, epochs=2, steps=None, optimizer="adamw", learning_rate=0.01)
    assert before < 30
    assert evaluate_network(model, digits.test).accuracy_pct > 85
    assert [row.epoch for row in report.history] == [1, 2]
    assert report.steps == report.history[-1].steps == 2 * (4000 // 64)
    assert report.history[-1].train_loss < report.history[0].train_loss
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.is_contiguous() for parameter in model.parameters())


def test_teacher_alone_teaches_and_is_left_as_it_was(digits: ImageData) -> None:
    teacher = small_network(1)
    train(teacher, digits, steps=60, optimizer="adamw", learning_rate=0.01)
    teacher.train()
    teacher[1].eval()
    before, modes = state_of(teacher), [module.training for module in teacher.modules()]
    shuffled = replace(digits, fingerprint="")
    student = small_network(2)
    untaught = evaluate_network(student, digits.test, teacher=teacher).agreement_pct
    train(student, shuffled, steps=60, teacher=teacher, distillation_weight=1.0, optimizer="adamw", learning_rate=0.01)
    taught = evaluate_network(student, digits.test, teacher=teacher).agreement_pct
    assert untaught is not None
    assert taught is not None
    assert untaught < 30 < 70 < taught
    assert is_same(before, state_of(teacher))
    assert modes == [module.training for module in teacher.modules()]


class Interrupt:
    """Stands in for Ctrl-C at the n-th training step."""

    def __init__(self, model: nn.Module, after: int) -> None:
        self.left = after
        model.register_forward_hook(self)

    def __call__(self, model: nn.Module, *_: object) -> None:
        self.left -= model.training
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [30, 70])
def test_interrupted_run_ends_as_if_it_had_not_been_interrupted(digits: ImageData, tmp_path: Path, after: int) -> None:
    teacher = small_network(5).eval()
    options: dict[str, Any] = {"steps": 90, "teacher": teacher, "learning_rate": 0.05, "keep": "best"}
    whole = small_network()
    expected = train(whole, digits, **options)
    path = tmp_path / "training.pt"
    broken = small_network()
    Interrupt(broken, after)
    with pytest.raises(KeyboardInterrupt):
        train(broken, digits, checkpoint_path=path, checkpoint_every_s=0, **options)
    resumed = small_network()
    report = train(resumed, digits, checkpoint_path=path, **options)
    assert report.resumed_from_step == after
    assert is_same(state_of(whole), state_of(resumed))
    losses = [(row.train_loss, row.holdout_accuracy_pct, row.learning_rate) for row in report.history]
    assert losses == [(row.train_loss, row.holdout_accuracy_pct, row.learning_rate) for row in expected.history]
    again = train(small_network(), digits, checkpoint_path=path, **options)
    assert (again.resumed_from_step, again.steps) == (90, 90)
    assert [file.name for file in tmp_path.iterdir()] == ["training.pt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.2}, "was made with learning_rate=0.05, now 0.2"),
        ({"seed": 1}, "was made with seed=0, now 1"),
        ({"teacher": small_network(4)}, "was made with teacher=None"),
        ({"model": small_network(9)}, "was made with model="),
    ],
)
def test_checkpoint_of_another_run_is_refused(
    digits: ImageData, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = tmp_path / "training.pt"
    common: dict[str, Any] = {"steps": 2, "learning_rate": 0.05, "score_holdout": False, "checkpoint_path": path}
    train(small_network(), digits, **common)
    model = changes.pop("model", None) or small_network()
    with pytest.raises(UsageError) as caught:
        train(model, digits, **{**common, **changes})
    assert words in str(caught.value)
    assert "delete the file" in str(caught.value)


def test_file_that_is_no_checkpoint_is_refused(digits: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "training.pt"
    path.write_bytes(b"something else")
    with pytest.raises(UsageError, match=r"^checkpoint_path=[^\n]*is no training checkpoint"):
        train(small_network(), digits, checkpoint_path=path)


def test_diverging_run_stops_and_keeps_the_last_good_weights(digits: ImageData) -> None:
    model = small_network()
    before = state_of(model)
    with pytest.raises(FinetuneError, match=r"the loss is (nan|inf) at step \d+ of 20; .* lower learning_rate=1e\+30"):
        train(model, digits, learning_rate=1e30, grad_clip_norm=None, warmup=0.0)
    assert is_same(before, state_of(model))
    assert not model.training


def test_best_epoch_can_be_kept(digits: ImageData) -> None:
    model = small_network()
    report = train(model, digits, steps=None, epochs=3, learning_rate=0.5, keep="best")
    accuracies = [row.holdout_accuracy_pct for row in report.history]
    assert report.kept_epoch == report.best_epoch
    assert evaluate_network(model, digits.holdout).accuracy_pct == max(accuracies)


def test_training_gives_the_global_generator_back_as_it_was(digits: ImageData) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(small_network_without_seeding(), digits, steps=2, score_holdout=False)
    assert torch.equal(torch.rand(2), expected)


def small_network_without_seeding() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        return small_network()


def test_data_without_train_cannot_be_learned(digits: ImageData) -> None:
    with pytest.raises(DataError, match="has no images for training"):
        train(small_network(), replace(digits, train=None))


def test_model_with_too_few_outputs_is_refused(digits: ImageData) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 4))
    with pytest.raises(DataError, match=r"outside 0\.\.3"):
        train(model, digits)


@pytest.mark.parametrize("device", ["gpu", "cpu:0", "cuda:", "cuda:x", "cuda1"])
def test_device_of_another_name_is_refused(digits: ImageData, device: str) -> None:
    with pytest.raises(UsageError, match=f"device='{device}': must be cpu, cuda or"):
        train(small_network(), digits, device=device)


def test_device_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:0", "cuda:1"):
        check_device(device)
    with pytest.raises(DeviceUnavailableError, match=r"device='cuda:2': torch finds 2, numbered from 0"):
        check_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_named(digits: ImageData) -> None:
    with pytest.raises(DeviceUnavailableError, match="device='cuda'"):
        train(small_network(), digits, device="cuda")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"steps": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"optimizer": "lion"},
        {"temperature": 0.0},
        {"distillation_weight": 1.5},
        {"warmup": -0.1},
        {"keep": "first"},
        {"weight_decay": -1.0},
        {"mixed_precision": "fp8"},
    ],
    ids=str,
)
def test_option_outside_its_range_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(UsageError, match=f"^{name}="):
        FinetuneOptions(**wrong)


def test_learning_rate_rises_linearly_then_falls_along_a_cosine() -> None:
    options = FinetuneOptions(learning_rate=0.4, warmup=0.2)
    rates = [options.learning_rate_at(step, 100) for step in range(100)]
    assert rates[:20] == pytest.approx([0.4 * (step + 1) / 20 for step in range(20)])
    assert rates[20] == pytest.approx(0.4)
    assert rates[60] == pytest.approx(0.2)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize("total", [1, 2, 3])
def test_shortest_runs_have_a_learning_rate_too(total: int) -> None:
    assert all(FinetuneOptions().learning_rate_at(step, total) > 0 for step in range(total))


def test_distillation_loss_is_the_softened_divergence() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation_loss(student, teacher, 3.0)) == pytest.approx(float(expected), rel=1e-5)
    assert float(distillation_loss(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)
