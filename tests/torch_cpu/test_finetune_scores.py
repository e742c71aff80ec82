"""Scores, and BatchNorm recalibration, against computations by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from layerfold.errors import DataError, UsageError
from layerfold.finetune import averaging_batch_norm, evaluate_network, recalibrate_batch_norm


def labelled(count: int = 30, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, 3, 3, generator=generator), torch.arange(count) % classes


def network(seed: int, classes: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(18, classes))


def test_scores_are_those_of_all_images_in_eval_mode() -> None:
    images, labels = labelled()
    model, teacher = network(1), network(2)
    scores = evaluate_network(model, TensorDataset(images, labels), teacher=teacher, batch_size=7)
    with torch.no_grad():
        logits, expected = model.eval()(images), teacher.eval()(images)
    assert scores.num_images == 30
    assert scores.accuracy_pct == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    assert scores.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert scores.agreement_pct == pytest.approx(100 * float((logits.argmax(1) == expected.argmax(1)).float().mean()))
    divergence = (expected.softmax(1) * (expected.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    assert scores.divergence == pytest.approx(float(divergence), rel=1e-4)


def test_teachers_logits_stand_for_the_teacher() -> None:
    images, labels = labelled()
    model, teacher = network(1), network(2)
    batches = [(images[i : i + 8], labels[i : i + 8]) for i in range(0, 30, 8)]
    with torch.no_grad():
        logits = teacher.eval()(images)
    assert evaluate_network(model, batches, teacher=logits) == evaluate_network(model, batches, teacher=teacher)


@pytest.mark.parametrize("count", [29, 31])
def test_teachers_logits_of_another_number_of_images_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match=f"teacher: holds logits of {count} images"):
        evaluate_network(network(1), TensorDataset(*labelled()), teacher=torch.zeros(count, 4), batch_size=8)


def test_evaluating_leaves_modes_and_statistics_alone() -> None:
    model = network(1).train()
    model[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate_network(model, TensorDataset(*labelled()), teacher=model)
    assert [module.training for module in model.modules()] == [True, False, True, True, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_model_sees_images_channels_last() -> None:
    seen: list[tuple[int, ...]] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].stride()))
    evaluate_network(model, [(torch.zeros(2, 1, 3, 4), torch.tensor([0, 1]))])
    assert seen == [(12, 1, 4, 1)]


def test_label_outside_the_models_classes_names_the_image() -> None:
    images, labels = labelled()
    with pytest.raises(DataError, match=r"image 11: label 3 is outside 0\.\.2"):
        evaluate_network(network(1, classes=3), [(images[:8], labels[:8] % 3), (images[8:], labels[8:])])


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate_network(network(1), [])


def test_model_that_gives_no_logits_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"model: gives a tensor \[30, 2, 3, 3\]; expected logits"):
        evaluate_network(nn.Identity(), [labelled()])


def test_recalibration_averages_the_statistics_of_the_batches() -> None:
    images, labels = labelled()
    model = network(1).train()
    model[2].eval()
    model[0].momentum = 0.3  # type: ignore[assignment]
    weights = {name: value.clone() for name, value in model.named_parameters()}
    batches = [(images[:10] * 3 + 1, labels[:10]), (images[10:], labels[10:])]
    assert recalibrate_batch_norm(model, batches) == 1
    means = torch.stack([batch.mean((0, 2, 3)) for batch, _ in batches]).mean(0)
    variances = torch.stack([batch.var((0, 2, 3)) for batch, _ in batches]).mean(0)
    assert torch.allclose(model[0].get_buffer("running_mean"), means, atol=1e-6)
    assert torch.allclose(model[0].get_buffer("running_var"), variances, atol=1e-6)
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert model[0].momentum == 0.3
    assert [module.training for module in model.modules()] == [True, True, True, False, True]


def test_recalibration_keeps_dropout_off() -> None:
    images, _ = labelled()
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(2)).train()
    recalibrate_batch_norm(model, [images])
    assert torch.allclose(model[1].get_buffer("running_mean"), images.mean((0, 2, 3)), atol=1e-6)


def test_recalibration_without_batches_leaves_the_statistics_and_says_so() -> None:
    model = network(1)
    model[0].get_buffer("running_mean").fill_(7)
    with pytest.raises(UsageError, match="batches: there are none"):
        recalibrate_batch_norm(model, [])
    assert model[0].get_buffer("running_mean").tolist() == [7, 7]


def test_recalibration_that_fails_midway_puts_the_statistics_back() -> None:
    model = network(1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="running_mean should contain 5"):
        recalibrate_batch_norm(model, [labelled()[0], torch.zeros(2, 5, 3, 3)])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model[0].momentum == 0.1


def test_batch_norm_that_no_pass_reaches_keeps_its_statistics() -> None:
    model = nn.ModuleDict({"used": nn.BatchNorm2d(2), "idle": nn.BatchNorm2d(2)})
    model["idle"].get_buffer("running_mean").fill_(7)
    with averaging_batch_norm(model):
        model["used"](labelled()[0])
    assert model["idle"].get_buffer("running_mean").tolist() == [7, 7]
    assert model["used"].get_buffer("running_mean").abs().sum() > 0


def test_network_without_batch_norm_needs_no_recalibration() -> None:
    assert recalibrate_batch_norm(nn.Linear(2, 2), []) == 0
