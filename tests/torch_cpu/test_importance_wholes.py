"""Scores of whole plans, against networks that are built, recalibrated and scored by hand."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.data import ImageData
from layerfold.errors import DataError, SolutionError
from layerfold.finetune import Scores, evaluate_network, recalibrate_batch_norm
from layerfold.importance import WholeScores
from tests.torch_cpu.small_training import images, network, train

IMAGES = 64


def deep(seed: int = 0) -> nn.Sequential:
    """Return a network of six convs, so that plans have something to choose."""
    torch.manual_seed(seed)
    blocks = [
        part
        for width in (3, 8, 8, 8, 8, 8)
        for part in (nn.Conv2d(width, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, lf.Network, ImageData]:
    data = images(IMAGES)
    model = deep()
    train(model, data, epochs=6)
    model.eval()
    return model, lf.trace_network(model, torch.zeros(1, 3, 8, 8)), data


def plans(count: int) -> list[lf.Solution]:
    rng = random.Random(0)
    found = []
    for _ in range(count):
        stops = [position for position in range(1, 6) if rng.random() < 0.5] + [6]
        active = [position for position in stops if position == 6 or rng.random() < 0.8]
        found.append(lf.Solution(act_pos=active, merge_pos=stops))
    return found


def by_hand(model: nn.Module, net: lf.Network, data: ImageData, solution: lf.Solution) -> Scores:
    form = lf.build_train_form(model, net, solution).eval()
    recalibrate_batch_norm(form, [x for x, _ in data.loader("train", IMAGES)])
    return evaluate_network(form, data.loader("holdout", IMAGES), teacher=model)


def test_whole_is_scored_as_the_network_that_it_stands_for(trained) -> None:
    model, net, data = trained
    score = WholeScores(model, net, data)
    assert score.score == "loss"
    original = by_hand(model, net, data, lf.Solution(act_pos=range(1, 7), merge_pos=range(1, 7)))
    wholes = []
    for solution in plans(20):
        expected = original.loss - by_hand(model, net, data, solution).loss
        assert score(solution) == pytest.approx(expected, abs=2e-5)
        wholes.append(score(solution))
    assert score(lf.Solution(act_pos=range(1, 7), merge_pos=range(1, 7))) == pytest.approx(0, abs=1e-6)
    assert min(wholes) < -0.05, "plans lose something, or nothing was compared"


def test_without_labels_the_divergence_from_the_original_counts(trained) -> None:
    model, net, data = trained
    unlabelled = replace(data, is_labelled=False)
    score = WholeScores(model, net, unlabelled)
    assert score.score == "kl"
    original = by_hand(model, net, data, lf.Solution(act_pos=range(1, 7), merge_pos=range(1, 7)))
    wholes = []
    for solution in plans(20):
        found = by_hand(model, net, data, solution)
        assert score(solution) == pytest.approx((original.divergence or 0) - (found.divergence or 0), abs=2e-5)
        wholes.append(score(solution))
    assert min(wholes) < -1e-3


def test_network_without_finite_answers_has_lost_all(trained) -> None:
    model, net, data = trained
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[-1].weight.fill_(float("inf"))
    assert WholeScores(broken, net, data)(plans(1)[0]) == -math.inf


def test_plan_of_another_network_is_refused(trained) -> None:
    model, net, data = trained
    with pytest.raises(SolutionError):
        WholeScores(model, net, data)(lf.Solution(act_pos=(9,), merge_pos=(3, 9)))


def test_labels_beyond_the_classes_are_refused() -> None:
    data, model = images(classes=5), network(outputs=3).eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(DataError, match="label"):
        WholeScores(model, net, data)(lf.Solution(act_pos=(1, 2), merge_pos=(1, 2)))
