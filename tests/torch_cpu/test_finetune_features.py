"""Feature maps at the ends of segments: the right nodes, the right distance, and a student that learns by it."""

from __future__ import annotations

import pytest
import torch

import layerfold as lf
from layerfold.finetune._features import feature_distance, tapped
from layerfold.merge import build_train_form, segment_ends
from tests.torch_cpu.search_networks import random_network
from tests.torch_cpu.test_search_training import images


def _student(seed: int = 0) -> tuple[torch.nn.Module, lf.Network, lf.Solution, torch.fx.GraphModule]:
    model = random_network(seed).eval()
    net = lf.trace_network(model, torch.zeros(1, 3, 12, 12))
    segments = [each for each in net.candidates() if each.end - each.start > 1]
    widest = max(segments, key=lambda each: (each.end - each.start, each.start))
    stops = tuple(k for k in range(1, len(net.layers) + 1) if not widest.start < k < widest.end)
    solution = lf.Solution(act_pos=tuple(k for k in stops if net.has_activation(k)), merge_pos=stops)
    return model, net, solution, build_train_form(model, net, solution)


@pytest.mark.parametrize("seed", range(4))
def test_feature_maps_at_segment_ends_have_the_shapes_of_the_originals(seed: int) -> None:
    model, net, solution, student = _student(seed)
    pairs = segment_ends(student, net, solution)
    assert pairs
    model, student = model.double(), student.double()
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits, mine = tapped(student.eval(), [pair[0] for pair in pairs], "model")(x)
    expected, theirs = tapped(net.graph.on(model), [pair[1] for pair in pairs], "teacher")(x)
    assert torch.equal(logits, student(x))
    assert torch.allclose(expected, model(x), rtol=0, atol=1e-12)
    assert [each.shape for each in mine] == [each.shape for each in theirs]


def test_original_in_train_form_is_at_no_distance_from_itself() -> None:
    model, net, solution, student = _student()
    pairs = segment_ends(student, net, solution)
    teacher = tapped(net.graph.on(model), [pair[1] for pair in pairs], "teacher")
    with torch.no_grad():
        _, features = teacher(torch.randn(2, 3, 12, 12))
    assert float(feature_distance(features, features)) == 0
    doubled = [2 * each for each in features]
    assert float(feature_distance(doubled, features)) == pytest.approx(1)  # |2t - t|^2 / |t|^2


def test_feature_weight_brings_the_feature_maps_closer() -> None:
    def distance(weight: float) -> float:
        model, net, solution, student = _student()
        teacher, pairs = net.graph.on(model), segment_ends(student, net, solution)
        lf.finetune_network(
            student,
            images(),
            teacher=teacher,
            features=pairs,
            feature_weight=weight,
            steps=20,
            batch_size=8,
            learning_rate=0.01,
            augment=False,
            progress=False,
        )
        x = torch.stack([images().holdout[k][0] for k in range(16)])
        with torch.no_grad():
            _, mine = tapped(student.eval(), [pair[0] for pair in pairs], "model")(x)
            _, theirs = tapped(teacher, [pair[1] for pair in pairs], "teacher")(x)
        return float(feature_distance(mine, theirs))

    assert distance(1.0) < 0.8 * distance(0.0)


def test_features_without_a_teacher_or_names_are_refused() -> None:
    model, net, solution, student = _student()
    pairs = segment_ends(student, net, solution)
    for more, words in (
        ({"features": pairs}, "feature_weight=1: needs a teacher"),
        ({"teacher": model, "features": pairs}, "teacher: is a"),
        ({"teacher": net.graph.on(model), "features": [("nowhere", pairs[0][1])]}, "model has no node 'nowhere'"),
    ):
        with pytest.raises(lf.UsageError, match=words):
            lf.finetune_network(student, images(), feature_weight=1.0, steps=1, batch_size=8, progress=False, **more)
