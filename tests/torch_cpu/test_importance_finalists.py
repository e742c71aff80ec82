"""Scores of plans after a short finetuning, against networks that are built, trained and scored by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import layerfold as lf
from layerfold.data import ImageData
from layerfold.errors import DataError, SolutionError, UsageError
from layerfold.importance import FinalistScores
from layerfold.importance.finalists import STEPS
from layerfold.pipeline.options import CompressOptions
from layerfold.pipeline.plan_scores import finalist_scores, finalist_steps
from tests.torch_cpu.small_training import images, is_same, network, train

IMAGES = 64
PLANS = [
    lf.Solution(act_pos=(1, 2), merge_pos=(1, 2)),
    lf.Solution(act_pos=(2,), merge_pos=(1, 2)),
    lf.Solution(act_pos=(2,), merge_pos=(2,)),
]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, lf.Network, ImageData]:
    labels = torch.arange(IMAGES) % 3
    noise = torch.randn(IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    holdout = TensorDataset(noise + labels[:, None, None, None], labels)
    data, model = replace(images(IMAGES), holdout=holdout), network()
    train(model, data, epochs=4)
    model.eval()
    return model, lf.trace_network(model, torch.zeros(1, 3, 8, 8)), data


def by_hand(model: nn.Module, net: lf.Network, data: ImageData, solution: lf.Solution, steps: int) -> float:
    form = lf.build_train_form(model, net, solution)
    lf.finetune_network(
        form, data, teacher=model, steps=steps, batch_size=16, learning_rate=0.02, seed=5, progress=False
    )
    return lf.evaluate_network(form, data.loader("holdout", IMAGES)).loss


def test_finalist_is_scored_as_its_network_after_that_training(trained) -> None:
    model, net, data = trained
    before = copy.deepcopy(model)
    options = lf.FinetuneOptions(steps=6, batch_size=16, learning_rate=0.02, seed=5)
    score = FinalistScores(model, net, data, options)
    found = [score(solution) for solution in PLANS]
    assert found == pytest.approx([-by_hand(model, net, data, solution, 6) for solution in PLANS], abs=1e-6)
    assert abs(found[0] - found[2]) > 0.01, "plans differ, or nothing was compared"
    assert found[1] == pytest.approx(found[2], abs=1e-4), "merged or not, the same network"
    assert [score(solution) for solution in PLANS] == found
    assert is_same(model, before)


def test_longer_training_is_another_score(trained) -> None:
    model, net, data = trained
    options = lf.FinetuneOptions(batch_size=16, learning_rate=0.02, seed=5)
    scores = [FinalistScores(model, net, data, replace(options, steps=steps))(PLANS[2]) for steps in (1, 40)]
    assert abs(scores[1] - scores[0]) > 0.01
    assert FinalistScores(model, net, data, options).steps == STEPS == FinalistScores(model, net, data).steps


def test_training_that_diverges_has_lost_all(trained) -> None:
    model, net, data = trained
    options = lf.FinetuneOptions(steps=8, batch_size=16, learning_rate=1e30, grad_clip_norm=None)
    assert FinalistScores(model, net, data, options)(PLANS[2]) == -math.inf


def test_what_cannot_be_trained_or_scored_is_refused(trained) -> None:
    model, net, data = trained
    with pytest.raises(DataError, match="train"):
        FinalistScores(model, net, replace(data, train=None))
    with pytest.raises(DataError, match="has no labels"):
        FinalistScores(model, net, replace(data, is_labelled=False))
    with pytest.raises(UsageError, match="device='gpu'"):
        FinalistScores(model, net, data, device="gpu")
    with pytest.raises(DataError, match="one label"):
        FinalistScores(model, net, replace(data, holdout=TensorDataset(torch.zeros(8, 3, 8, 8), torch.zeros(8).long())))
    with pytest.raises(SolutionError):
        FinalistScores(model, net, data)(lf.Solution(act_pos=(9,), merge_pos=(3, 9)))


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({"finetune_epochs": 60}, 60),  # of 4 steps each
        ({"finetune_epochs": 59}, None),
        ({"finetune_epochs": 1, "finalist_steps": 3}, 3),
        ({"finetune_epochs": 100, "finalist_steps": 0}, None),
        ({"finetune_epochs": 0}, None),
    ],
)
def test_finalists_are_for_a_finetuning_four_times_as_long(trained, asked: dict[str, int], steps: int | None) -> None:
    model, net, data = trained
    options = CompressOptions(speedup=1.1, batch_size=16, learning_rate=0.02, seed=5, **asked)
    found = finalist_scores(model, net, data, options, progress=False)
    assert (found and found.steps) == steps
    if found and steps == 3:
        assert found(PLANS[1]) == pytest.approx(-by_hand(model, net, data, PLANS[1], 3), abs=1e-6)
    assert finalist_scores(model, net, replace(data, is_labelled=False), options, progress=False) is None


@pytest.mark.parametrize("other", [{"finetune_epochs": 0}, {"whole_plans": 0}, {"fastest": True, "speedup": None}])
def test_finalists_without_what_leads_to_them_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"finalist_steps=7: .* leave it out with"):
        CompressOptions(**{"speedup": 1.1, "finalist_steps": 7, **other})
    CompressOptions(**{"speedup": 1.1, "finalist_steps": 0, **other})


def test_steps_of_finalists_are_settled_before_a_run(trained) -> None:
    data = trained[2]
    options = CompressOptions(speedup=1.1, batch_size=16, finetune_epochs=10**4)
    assert finalist_steps(options, data) == 60
    assert finalist_steps(replace(options, finetune_epochs=1), data) == 0
    assert finalist_steps(replace(options, finalist_steps=7), data) == 7
    assert finalist_steps(replace(options, whole_plans=0), data) == 0
