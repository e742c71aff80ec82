"""Importance tables on a small trained-like network and real images."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.data import ImageData
from layerfold.finetune import finetune_network
from layerfold.importance import Request, list_requests, suffix
from layerfold.importance.estimators import Recalibrate
from layerfold.importance.subject import Subject
from layerfold.importance.suffix import (
    FeatureBank,
    _tap,
    crossing_names,
    shared_names,
    split_suffix,
    take_over_shapes,
)
from tests.torch_cpu import small_training

Trained = tuple[nn.Module, lf.Network, ImageData]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """Return MobileNetV2-0.35 after 80 steps on MNIST at 32x32: good enough that a change shows."""
    data = lf.open_data("mnist5k", input_shape=(1, 32, 32), mean=(0.5,), std=(0.5,))
    model = lf.load_model("timm:mobilenetv2_035", num_classes=10, in_channels=1).module
    finetune_network(model, data, steps=80, optimizer="adamw", learning_rate=0.01, score_holdout=False, progress=False)
    return model, lf.trace_network(model, torch.zeros(1, 1, 32, 32)), data


def test_mobilenet_v2_needs_the_315_entries_of_the_paper() -> None:
    model = lf.load_model("torchvision:mobilenet_v2").module
    net = lf.trace_network(model, torch.zeros(1, 3, 64, 64), exclude=("features.0", "features.18"))
    segments = [s for s in net.candidates(stop_at_strides=True) if s.num_layers > 1]
    assert len(list_requests(net, segments, fill_slots=True)) == 315


def test_entry_of_the_original_changes_nothing(trained: Trained) -> None:
    _, net, _ = trained
    same = Request(start=0, end=1, start_act=1, end_act=1)
    assert same.changes_nothing(net)
    assert same.act_pos(net) == net.original_act_pos
    other = Request(start=0, end=2, start_act=1, end_act=int(net.has_activation(2)))
    assert not other.changes_nothing(net)
    assert 1 not in other.act_pos(net)
    assert 1 not in other.merge_pos(net)


@pytest.mark.parametrize(("start", "end"), [(0, 2), (6, 9), (21, 23), (48, 51)])
def test_suffix_on_kept_feature_maps_computes_the_whole_network(trained: Trained, start: int, end: int) -> None:
    model, net, data = copy.deepcopy(trained[0]).double(), *trained[1:]
    images = next(iter(data.loader("holdout", 16)))[0].double()
    original = lf.build_train_form(model, net, _solution(net, net.original_act_pos, range(1, len(net.layers) + 1)))
    take_over_shapes(net, original)
    bank = FeatureBank(original.eval(), [images])
    request = Request(start=start, end=end, start_act=1, end_act=int(net.has_activation(end)))
    changed = lf.build_train_form(model, net, _solution(net, request.act_pos(net), request.merge_pos(net))).eval()
    with torch.no_grad():
        expected = changed(images)
        shared = shared_names(changed, original)
        names = crossing_names(changed, shared)
        suffix = split_suffix(changed, shared)
        found = suffix(*bank.values(names)[0])
    assert bank.is_affordable(names)
    assert start == 0 or names != ("x",), "nothing was kept, so the suffix is the whole network"
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("most", [0, 3_000_000, 1 << 28])
def test_kept_feature_maps_are_those_of_the_original_in_whatever_order_they_are_asked_for(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    model, net, data = trained
    subject = Subject(
        model, net, data, lf.ImportanceOptions(calibration_images=48, holdout_images=48), is_recalibrated=False
    )
    form, batches = subject.original_form, subject.calibration.images
    monkeypatch.setattr(suffix, "_KEPT_BYTES", most)
    bank = FeatureBank(form, batches)
    names = [node.name for node in form.graph.nodes if node.op not in ("placeholder", "output")][:-4]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:60].tolist()
    for one, other in itertools.pairwise(order):
        # One value, or two of which the later may be computed from the other.
        asked = tuple(names[place] for place in sorted({one, other})) if one % 2 else (names[one],)
        found = bank.values(asked)
        assert sum(map(bank._bytes, bank._kept)) <= max(most, bank._bytes(asked))
        for values, batch in zip(found, batches, strict=True):
            assert all(
                torch.equal(value, expected) for value, expected in zip(values, _tap(form, asked)(batch), strict=True)
            )
        assert bank.values(asked) is found
    for asked, found in bank._kept.items():
        assert torch.equal(found[0][0], _tap(form, asked)(batches[0])[0])  # what was computed from it left it alone


def _solution(net: lf.Network, act_pos: Iterable[int], merge_pos: Iterable[int]) -> lf.Solution:
    stops = tuple(merge_pos)
    return lf.Solution(act_pos=tuple(p for p in act_pos if p in stops), merge_pos=stops)


def test_interrupted_estimate_goes_on_and_gives_the_same_table(trained: Trained, tmp_path: Path) -> None:
    model, net, data = trained
    journal = tmp_path / "journal"
    candidates = [net.segment(0, 1), net.segment(0, 2), net.segment(45, 48), net.segment(48, 51)]

    def estimate(path: Path | None) -> lf.ImportanceTable:
        return lf.estimate_importance(
            model,
            net,
            data,
            "recalibrate",
            candidates=candidates,
            holdout_images=128,
            calibration_images=128,
            journal_path=path,
            progress=False,
        )

    expected = estimate(None)
    estimate(journal)
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + 3
    journal.write_text("\n".join(lines[:2]) + "\n" + lines[2][:10])
    measured = _count_measured(lambda: estimate(journal))
    assert measured == 2
    assert [e.importance for e in estimate(journal).entries] == [e.importance for e in expected.entries]
    assert expected.entry(0, 1).importance == 0.0
    assert json.loads(lines[0])["network"] == net.hash


def _count_measured(work: Callable[[], object]) -> int:
    count = 0
    original = Recalibrate.scores_of

    def counting(self: Recalibrate, request: Request) -> dict[str, float]:
        nonlocal count
        count += 1
        return original(self, request)

    Recalibrate.scores_of = counting  # type: ignore[method-assign]
    try:
        work()
    finally:
        Recalibrate.scores_of = original  # type: ignore[method-assign]
    return count


@pytest.mark.parametrize("seed", range(3))
def test_an_entry_is_its_network_finetuned_for_the_steps_asked_for(seed: int) -> None:
    """From random weights on, so that the longer training does far more than the kernels' rounding."""
    data, model = small_training.images(96), small_training.network(seed, dropout=0.0).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
    how: dict[str, Any] = {"batch_size": 16, "learning_rate": 0.05, "progress": False}
    losses = []
    for steps in (2, 40):
        table = lf.estimate_importance(
            model,
            net,
            data,
            "finetune",
            candidates=[net.segment(0, 2)],
            steps=steps,
            score="loss",
            fill_slots=False,
            **how,
        )
        by_hand = lf.build_train_form(model, net, _solution(net, (2,), (2,)))
        finetune_network(by_hand, data, steps=steps, score_holdout=False, **how)
        change = table.entries[0].val_loss
        assert change is not None
        assert table.entries[0].importance == pytest.approx(-change)
        losses.append(table.provenance.options["original"]["val_loss"] + change)
        assert losses[-1] == pytest.approx(lf.evaluate_network(by_hand, data.holdout).loss, rel=1e-3)
    assert losses[1] < losses[0] / 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unknown_method_names_the_nearest(trained: Trained) -> None:
    model, net, data = trained
    with pytest.raises(lf.UsageError, match="nearest: finetune"):
        lf.estimate_importance(model, net, data, "finetun")
