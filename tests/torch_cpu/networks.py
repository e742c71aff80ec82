"""Real networks for the tests: random weights, random BatchNorm statistics, random solutions."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torchvision.models import VGG

import layerfold as lf

NAMES = (
    "torchvision:mobilenet_v2",
    "torchvision:vgg16_bn",
    "torchvision:resnet34",
    "timm:mobilenetv2_100",
    "timm:efficientnet_lite0",
    "timm:tf_efficientnet_lite0",
    "cifar:resnet20",
)
_CIFAR = Path(__file__).resolve().parents[2] / "benchmarks" / "lib" / "cifar_resnet.py"


def cifar_module() -> ModuleType:
    """Import ``benchmarks/lib/cifar_resnet.py``, which is no package."""
    spec = importlib.util.spec_from_file_location("cifar_resnet", _CIFAR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network with random weights and statistics, and a batch of two small images for it."""
    torch.manual_seed(0)
    if name.startswith("cifar:"):
        model: nn.Module = getattr(cifar_module(), name.split(":")[1])()
        size = 32
    else:
        model, size = lf.load_model(name, num_classes=10).module, 64
        if isinstance(model, VGG):  # its classifier has 120 million parameters, and nothing here changes it
            model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 10)
    randomise_norms(model)
    return model.eval(), torch.randn(2, 3, size, size)


def randomise_norms(model: nn.Module) -> None:
    """Give every BatchNorm statistics and an affine part that a mistake in folding would show up in."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)


def random_solution(net: lf.Network, candidates: list[lf.Segment], rng: random.Random) -> lf.Solution:
    """Return a random S from the candidates and a random A within it; empty slots are filled too."""
    ends: dict[int, list[int]] = {}
    for segment in candidates:
        ends.setdefault(segment.start, []).append(segment.end)
    merge_pos, act_pos = [], []
    for chain in net.chains:
        position = chain.start
        while position < chain.end:
            position = rng.choice(ends[position])
            merge_pos.append(position)
            keeps = 0.7 if net.has_activation(position) else 0.3 * (chain.activation is not None)
            if position < chain.end and rng.random() < keeps:
                act_pos.append(position)
    return lf.Solution(act_pos=tuple(act_pos), merge_pos=tuple(merge_pos))
