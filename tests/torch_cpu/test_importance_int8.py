"""Importances in int8: what merging loses and what rounding the merged kernel loses, in one number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.errors import UsageError
from layerfold.importance.requests import Request
from layerfold.importance.subject import Subject
from layerfold.merge.segment import TrainSegment
from layerfold.qat._fake import RoundedFeatureMap
from layerfold.qat._rounded import RoundedConv, RoundedSegment
from tests.torch_cpu.small_training import images


def network(scale: float = 1.0) -> nn.Sequential:
    """Return three layers; one channel between the last two is ``scale`` times as large, which the last takes back."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    with torch.no_grad():
        model[4].weight[0] *= scale
        model[6].weight[:, 0] /= scale
    return model.eval()


def tables(model: nn.Module, **how: Any) -> tuple[lf.ImportanceTable, lf.ImportanceTable]:
    net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
    options = lf.ImportanceOptions(method="recalibrate", score="kl", **how)
    found = [
        lf.estimate_importance(model, net, images(), options=replace(options, precision=precision), progress=False)
        for precision in ("float32", "int8")
    ]
    return found[0], found[1]


def test_importance_in_int8_holds_the_loss_of_rounding() -> None:
    in_float, in_int8 = tables(network())
    assert len(in_float.entries) == len(in_int8.entries)
    for one, other in zip(in_float.entries, in_int8.entries, strict=True):
        assert (one.start, one.end) == (other.start, other.end)
        assert one.importance != other.importance
        assert other.importance == pytest.approx(one.importance, abs=1e-3)


def test_merging_saves_what_rounding_would_lose_in_between() -> None:
    """A feature map whose channels differ in size cannot be held in eight bits; merged, there is none."""
    plain = {(each.start, each.end): each.importance for each in tables(network())[1].entries}
    in_float, in_int8 = ({(e.start, e.end): e.importance for e in table.entries} for table in tables(network(1e4)))
    assert in_float[1, 3] == pytest.approx(plain[1, 3], abs=1e-3)
    assert in_float[1, 2] == in_float[2, 3] == 0
    # Which way is chance: the network is not trained.
    for key in ((1, 2), (2, 3)):
        assert abs(in_int8[key]) > 5e-4 > 5 * abs(plain[key])
    assert in_int8[1, 3] == pytest.approx(plain[1, 3], abs=1e-3)


def test_sidecar_says_the_precision(tmp_path: Any) -> None:
    in_float, in_int8 = tables(network())
    in_int8.write(tmp_path / "importance.csv")
    back = lf.ImportanceTable.read(tmp_path / "importance.csv")
    assert back.provenance.dtype == back.provenance.options["precision"] == "int8"
    assert in_float.provenance.dtype == ""
    assert "precision" not in in_float.provenance.options


def test_only_the_entrys_own_kernel_and_ends_are_rounded() -> None:
    model = network()
    net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
    options = lf.ImportanceOptions(precision="int8")
    subject = Subject(model, net, images(), options, is_recalibrated=True)
    seen: list[nn.Module] = []

    def kinds(request: Request) -> list[str]:
        seen.clear()
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
        try:
            subject.score_rounded(request)
        finally:
            handle.remove()
        kept = (RoundedConv, RoundedSegment, RoundedFeatureMap, TrainSegment, nn.Conv2d)
        # The last pass of the suffix.
        names = [type(each).__name__ for each in seen if isinstance(each, kept)]
        return names

    merged = set(kinds(Request(start=1, end=3, start_act=1, end_act=1)))
    assert merged == {"RoundedSegment", "RoundedFeatureMap", "TrainSegment", "Conv2d"}
    # Of an unchanged layer, behind which another one stays in float32.
    single = kinds(Request(start=1, end=2, start_act=1, end_act=1))
    assert set(single) == {"RoundedConv", "RoundedFeatureMap", "Conv2d"}


def test_other_methods_in_int8_are_refused_and_auto_is_recalibrate() -> None:
    model = network()
    net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(UsageError, match="precision='int8': method='distill' scores entries in float32"):
        lf.estimate_importance(model, net, images(), "distill", precision="int8", progress=False)
    found = lf.estimate_importance(model, net, images(), precision="int8", score="kl", progress=False)
    assert found.provenance.options["method"] == "recalibrate"
