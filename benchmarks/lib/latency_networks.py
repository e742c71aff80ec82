"""The five networks whose latency is predicted and whose budgets are tested."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from record import ROOT
from torch import nn

import layerfold as lf
from layerfold.graph import Network, Segment

MAX_GROWTH = 4.0
"""Limit on candidates, as of ``layerfold profile``."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network at one input shape, batch 1."""

    source: str
    input_shape: tuple[int, int, int] = (3, 224, 224)


CASES = {
    "mobilenet_v2": Case(source="timm:mobilenetv2_100"),
    "resnet34": Case(source="torchvision:resnet34"),
    "vgg16_bn": Case(source="torchvision:vgg16_bn"),
    "efficientnet_lite0": Case(source="timm:tf_efficientnet_lite0"),
    "cifar_resnet56": Case(source=f"{Path(__file__).with_name('cifar_resnet.py')}:resnet56", input_shape=(3, 32, 32)),
}
WORK = ROOT / "build" / "latency"
"""Where measurements are kept, so that a stopped run goes on."""


def open_case(name: str) -> tuple[nn.Module, Network, list[Segment]]:
    """Return a case's model (random weights: latency does not depend on them), its description, its candidates."""
    case = CASES[name]
    torch.manual_seed(0)
    loaded = replace(lf.load_model(case.source), input_shape=case.input_shape)
    model = loaded.module.eval()
    net = lf.trace_network(model, torch.zeros(1, *case.input_shape))
    return model, net, net.candidates(max_growth=MAX_GROWTH)
