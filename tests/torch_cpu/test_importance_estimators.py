"""What each estimator says, against the networks that its entries stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import layerfold as lf
from layerfold.data import ImageData
from layerfold.finetune import finetune_network
from layerfold.importance import SCORES, Request
from layerfold.importance.estimators import ESTIMATORS, Distill, Taylor, Training
from layerfold.importance.scores import column_of
from layerfold.importance.subject import Subject

Trained = tuple[nn.Module, lf.Network, ImageData]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """Return MobileNetV2-0.35 after 30 steps on MNIST at 32x32: good enough that a change shows."""
    data = lf.open_data("mnist5k", input_shape=(1, 32, 32), mean=(0.5,), std=(0.5,))
    model = lf.load_model("timm:mobilenetv2_035", num_classes=10, in_channels=1).module
    finetune_network(model, data, steps=30, batch_size=64, optimizer="adamw", score_holdout=False, progress=False)
    return model, lf.trace_network(model, torch.zeros(1, 1, 32, 32)), data


def subject_of(trained: Trained, *, is_recalibrated: bool = True) -> Subject:
    model, net, data = trained
    return Subject(model, net, data, calibration_images=128, holdout_images=128, seed=0,
                   is_recalibrated=is_recalibrated)


@pytest.mark.parametrize("method", ESTIMATORS)
def test_every_method_fills_the_table_by_every_score_it_knows(trained: Trained, method: str) -> None:
    model, net, data = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    segments = [net.segment(0, 1), net.segment(0, 2), net.segment(6, 9)]
    known = [score for score in SCORES if column_of(score) in ESTIMATORS[method].known_scores]
    for score in known[:2]:
        table = lf.estimate_importance(model, net, data, method, candidates=segments, score=score, steps=2,
                                       holdout_images=64, calibration_images=64, fill_slots=False, progress=False)
        assert [(entry.start, entry.end) for entry in table.entries] == [(0, 1), (0, 2), (6, 9)]
        assert table.entries[0].importance == 0.0
        assert all(entry.importance != 0.0 for entry in table.entries[1:]) or score not in ("loss", "kl")
        assert table.provenance.options["method"] == method
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_score_that_a_method_cannot_tell_names_those_it_can(trained: Trained) -> None:
    model, net, data = trained
    with pytest.raises(lf.UsageError, match="score='accuracy': method='taylor' cannot tell it; use score=loss"):
        lf.estimate_importance(model, net, data, "taylor", progress=False)


def test_distilled_segment_comes_nearer_to_the_original(trained: Trained) -> None:
    subject = subject_of(trained)
    request = Request(start=6, end=9, start_act=1, end_act=int(trained[1].has_activation(9)))
    untrained, little, much = (
        ESTIMATORS[method](subject, Training(steps=steps)).scores_of(request)["kl"]
        for method, steps in (("recalibrate", 1), ("distill", 5), ("distill", 80))
    )  # fmt: skip
    assert much < little
    assert much < 0.7 * untrained


def test_segment_of_which_nothing_is_left_is_not_trained(trained: Trained) -> None:
    model, net, _ = trained
    segment = next(s for s in net.candidates(layer_norms=lf.layer_norms(model, net)) if s.is_identity)
    request = Request(start=segment.start, end=segment.end, start_act=1, end_act=int(net.has_activation(segment.end)),
                      dropped=segment.dropped, merged=segment.merged)
    subject = subject_of(trained)
    found = [ESTIMATORS[method](subject, Training(steps=3)).scores_of(request) for method in ("recalibrate", "distill")]
    assert found[0] == found[1]


def test_same_seed_distills_the_same(trained: Trained) -> None:
    request = Request(start=0, end=2, start_act=1, end_act=1)
    one, two = (Distill(subject_of(trained), Training(steps=4, seed=3)).scores_of(request) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("position", [1, 2, 7, 20])
def test_taylors_first_order_term_is_the_derivative(trained: Trained, position: int) -> None:
    """Fading an activation a little changes the loss by that part of the term."""
    net = trained[1]
    subject = subject_of(trained, is_recalibrated=False)
    assert net.has_activation(position)
    term = float(Taylor(subject, Training())._terms["activation", position].mean())
    form = subject.original_form.double()
    names = {node.name: node for node in form.graph.nodes}
    name = str(names[net.graph.layers[position - 1].activation].target)
    activation = form.get_submodule(name)

    images = torch.cat(subject.calibration.images).double()
    labels = torch.cat(subject.calibration_labels)

    def loss(share: float) -> float:
        form.set_submodule(name, _Fading(activation, share))
        with torch.no_grad():
            found = F.cross_entropy(form(images), labels)
        form.set_submodule(name, activation)
        return float(found)

    step = 1e-7  # no image's value crosses the activation's kink on so short a way
    slope = (loss(step) - loss(-step)) / (2 * step)
    assert term == pytest.approx(slope, rel=2e-3, abs=1e-4)


class _Fading(nn.Module):
    """An activation of which a share is gone already."""

    def __init__(self, activation: nn.Module, share: float) -> None:
        super().__init__()
        self.activation, self.share = activation, share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (1 - self.share) * self.activation(x.clone()) + self.share * x
