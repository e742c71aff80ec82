"""The parts of training: schedules against timm's, mixing, averages, layout, memory, logs, presets."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim._optim_factory import list_optimizers
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from layerfold.cli import _training
from layerfold.errors import FinetuneError, OptionalDependencyError, UsageError
from layerfold.finetune import PRESETS, evaluate_network, preset
from layerfold.finetune._mixing import BatchMixer
from layerfold.options import FinetuneOptions
from tests.torch_cpu.small_training import Interrupt, images, interrupted_after, is_same, network, train


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"schedule": "cosine"}, {"sched": "cosine"}),
        (
            {"schedule": "step", "decay_rate": 0.3, "decay_every": 0.25},
            {"sched": "step", "decay_rate": 0.3, "decay_epochs": 25},
        ),
        (
            {"schedule": "multistep", "decay_rate": 0.2, "milestones": (0.3, 0.8)},
            # timm goes down when the next step reaches a milestone.
            {"sched": "multistep", "decay_rate": 0.2, "decay_milestones": [31, 81]},
        ),
        ({"schedule": "poly", "decay_power": 1.5}, {"sched": "poly", "decay_rate": 1.5}),
        ({"schedule": "constant"}, {"sched": "constant"}),
    ],
    ids=lambda value: str(value.get("schedule", "")),
)
def test_schedule_is_that_of_timm(options: dict[str, Any], theirs: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=100, warmup_epochs=0, **theirs)
    mine = FinetuneOptions(learning_rate=0.4, warmup=0.0, **options)
    for step in range(100):
        scheduler.step(step)
        assert mine.learning_rate_at(step, 100) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_warmup_comes_before_every_schedule() -> None:
    options = FinetuneOptions(learning_rate=1.0, warmup=0.2, schedule="constant")
    assert [options.learning_rate_at(step, 10) for step in range(4)] == pytest.approx([0.5, 1, 1, 1])


# Kron compiles itself, which takes a minute.
OPTIMIZERS = ["lookahead_adam", *(name for name in list_optimizers() if not name.startswith("kron"))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_timm_trains_or_says_what_it_needs(name: str) -> None:
    if name.startswith(("fused", "bnb")) or name == "adahessian":
        needs = "(a package|second derivatives)"
        with pytest.raises((OptionalDependencyError, UsageError), match=f"^optimizer='{name}': needs {needs}"):
            train(network(), images(), optimizer=name, learning_rate=0.001)
        return
    model, data = network(), images()
    before = model[-1].weight.clone()
    report = train(model, data, optimizer=name, learning_rate=0.001)
    assert not torch.equal(before, model[-1].weight)
    assert bool(model[-1].weight.isfinite().all())
    assert report.options["optimizer"] == name


def test_optimizer_that_timm_lacks_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"optimizer='adamww': timm has no such optimizer; nearest: adamw"):
        FinetuneOptions(optimizer="adamww", learning_rate=0.1)


def test_optimizer_of_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(OptionalDependencyError, match=r"^optimizer='fusedsgd': needs a package"):
        train(network(), images(), optimizer="fusedsgd")


def test_mixing_depends_on_seed_and_step_alone_and_leaves_numpy_as_it_was() -> None:
    mixer = BatchMixer(FinetuneOptions(mixup=0.5, cutmix=1.0), 5)
    generator = torch.Generator().manual_seed(0)
    pictures, labels = torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 5
    np.random.seed(7)
    expected = np.random.rand(3)
    np.random.seed(7)
    first = [mixer.mix(pictures.clone(), labels, step) for step in range(6)]
    assert np.array_equal(np.random.rand(3), expected)
    again = [mixer.mix(pictures.clone(), labels, step) for step in range(6)]
    for (x, y), (other_x, other_y) in zip(first, again, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)
        assert torch.allclose(y.sum(1), torch.ones(8))
    assert len({tuple(y[0].tolist()) for _, y in first}) > 1


def test_average_of_the_weights_is_scored_and_kept() -> None:
    data, plain, averaged = images(), network(), network()
    last = train(plain, data)
    report = train(averaged, data, ema_decay=0.9)
    assert not is_same(plain, averaged)
    # The weights that were trained are the same: only what is kept and scored differs.
    assert [row.train_loss for row in report.history] == [row.train_loss for row in last.history]
    assert evaluate_network(averaged, data.holdout).loss == pytest.approx(report.history[-1].holdout_loss, abs=1e-6)


@pytest.mark.parametrize("steps", [3, 6])
def test_resumed_run_with_everything_random_ends_bit_equal(tmp_path: Path, steps: int) -> None:
    data, path = images(), tmp_path / "training.pt"
    options: dict[str, Any] = {
        "mixup": 0.4,
        "cutmix": 1.0,
        "ema_decay": 0.9,
        "label_smoothing": 0.1,
        "keep_other": True,
        "schedule": "poly",
        "optimizer": "nadamw",
        "learning_rate": 0.01,
    }
    whole, resumed = network(), network()
    expected = train(whole, data, **options)
    with pytest.raises(Interrupt):
        train(interrupted_after(network(), steps), data, checkpoint_path=path, checkpoint_every_s=0, **options)
    report = train(resumed, data, checkpoint_path=path, **options)
    assert report.resumed_from_step == steps
    assert is_same(whole, resumed)
    assert all(torch.equal(value, expected.other_weights[key]) for key, value in report.other_weights.items())


def test_half_precision_that_a_cpu_does_not_compute_in_is_refused() -> None:
    with pytest.raises(UsageError, match="mixed_precision='fp16': needs a GPU; use 'bf16'"):
        train(network(), images(), mixed_precision="fp16")


def test_mixed_precision_trains_float32_weights_nearly_alike_and_resumes(tmp_path: Path) -> None:
    data, path = images(), tmp_path / "run.ckpt"
    exact, mixed = network(), network()
    expected = [row.train_loss for row in train(exact, data).history]
    found = [row.train_loss for row in train(mixed, data, mixed_precision="bf16").history]
    assert found == pytest.approx(expected, abs=0.02)
    assert found != expected, "then nothing was computed in half precision"
    assert all(each.dtype == torch.float32 for each in mixed.parameters())
    with pytest.raises(Interrupt):
        train(interrupted_after(network(), 5), data, mixed_precision="bf16", checkpoint_path=path, checkpoint_every_s=0)
    resumed = network()
    train(resumed, data, mixed_precision="bf16", checkpoint_path=path)
    assert is_same(resumed, mixed)


def test_both_checkpoints_are_those_of_their_epochs() -> None:
    data, last, best = images(), network(), network()
    options = {"epochs": 4, "learning_rate": 0.3}
    kept_last = train(last, data, keep_other=True, **options)
    kept_best = train(best, data, keep="best", keep_other=True, **options)
    assert kept_last.best_epoch == kept_best.kept_epoch
    assert all(torch.equal(value, best.state_dict()[key]) for key, value in kept_last.other_weights.items())
    assert all(torch.equal(value, last.state_dict()[key]) for key, value in kept_best.other_weights.items())
    assert "other_weights" not in kept_last.as_dict()


def test_weights_come_back_in_the_layout_they_came_in() -> None:
    model = network()
    model[3].to(memory_format=torch.channels_last)
    before = {name: value.stride() for name, value in model.state_dict().items()}
    seen: list[bool] = []
    model[0].register_forward_pre_hook(
        lambda module, _: seen.append(module.weight.is_contiguous(memory_format=torch.channels_last))
    )
    train(model, images(), epochs=1)
    assert all(seen)
    assert {name: value.stride() for name, value in model.state_dict().items()} == before


class _Huge(nn.Module):
    """Wants more memory than there is, in its third step."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.steps = network(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        if self.steps == 3:
            torch.empty(1 << 55)
        found: torch.Tensor = self.inner(x)
        return found


def test_memory_that_is_too_small_names_a_smaller_batch() -> None:
    words = r"^finetuning: out of memory with batch_size=16; take batch_size=8"
    with pytest.raises(FinetuneError, match=words) as caught:
        train(_Huge(), images())
    assert "\n" not in str(caught.value)


def test_other_runtime_errors_are_not_taken_for_memory() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise RuntimeError("something else")
            return x

    with pytest.raises(RuntimeError, match="something else"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(192, 3), Broken()), images())


def test_diverging_average_gives_the_last_good_one_back() -> None:
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(FinetuneError, match=r"the loss is (nan|inf) at step \d+ of 8"):
        train(model, images(), learning_rate=1e30, grad_clip_norm=None, warmup=0.0, ema_decay=0.9)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_teacher_with_other_outputs_is_refused_before_training() -> None:
    model = network()
    with pytest.raises(UsageError, match=r"^teacher: has 4 outputs, the model 3; .* give a teacher with as many"):
        train(interrupted_after(model, 0), images(), teacher=network(1, outputs=4))


def test_log_has_a_row_an_epoch_also_after_a_resume(tmp_path: Path) -> None:
    path, log = tmp_path / "training.pt", tmp_path / "log.csv"
    with pytest.raises(Interrupt):
        train(interrupted_after(network(), 6), images(), epochs=3, checkpoint_path=path, log_path=log)
    assert [row["epoch"] for row in csv.DictReader(log.read_text().splitlines())] == ["1"]
    report = train(network(), images(), epochs=3, checkpoint_path=path, log_path=log)
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    expected = [row.train_loss for row in report.history]
    assert [float(row["train_loss"]) for row in rows] == pytest.approx(expected, rel=1e-5)


def test_presets_are_the_published_settings_and_the_command_line_knows_them() -> None:
    assert _training._PRESETS == PRESETS
    small, large, vgg = (preset(name) for name in PRESETS)
    assert (small.epochs, small.learning_rate, small.batch_size, small.weight_decay) == (180, 0.05, 256, 1e-5)
    assert (large.learning_rate, large.label_smoothing, large.augment) == (0.1, 0.1, "rand-m5-mstd0.5-inc1")
    assert (vgg.epochs, vgg.learning_rate, vgg.grad_clip_norm) == (20, 0.01, None)
    with pytest.raises(UsageError, match=r"^preset 'vgg16': must be one of .*; nearest: vgg19"):
        preset("vgg16")


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "linear"},
        {"decay_rate": 0.0},
        {"milestones": (0.8, 0.2)},
        {"mixup": -1.0},
        {"ema_decay": 1.0},
        {"random_erasing": 2.0},
        {"feature_weight": float("nan")},
        {"decay_power": 0.0},
        {"batch_size": 5, "mixup": 0.2},
    ],
    ids=str,
)
def test_option_outside_its_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))}="):
        FinetuneOptions(**wrong)
