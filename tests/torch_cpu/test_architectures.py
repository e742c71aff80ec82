"""The bank of architectures: a third of it, with every feature, always; all of it in the slow run.

``benchmarks/package/architectures.py`` runs the same checks with a journal, and records them.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from tests.bank.architectures import BANK, FEATURES, QUICK, find
from tests.bank.checks import check_architecture, prepare, relative_difference
from tests.bank.solutions import QUICK_LIMITS, random_drop_solutions, random_solutions


def test_the_third_has_every_feature() -> None:
    assert len(set(QUICK)) == math.ceil(len(BANK) / 3)
    assert set().union(*(find(name).features for name in QUICK)) == set(FEATURES)
    assert set().union(*(each.features for each in BANK)) == set(FEATURES)


def module_features(model: nn.Module) -> dict[str, bool]:
    """Say of those features that modules alone show whether a model has them."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    names = {type(module).__name__ for module in model.modules()}
    return {
        "depthwise": any(conv.groups == conv.in_channels > 3 for conv in convs),
        "grouped": any(1 < conv.groups < conv.in_channels for conv in convs),
        "dilated": any(max(conv.dilation) > 1 for conv in convs),
        "strided": any(max(conv.stride) > 1 for conv in convs),
        "non_square": any(conv.kernel_size[0] != conv.kernel_size[1] for conv in convs),
        "same_padding": any(name.endswith("Same") for name in names),
        "weight_standardised": bool(names & {"ScaledStdConv2d", "StdConv2d"}),
        "batch_norm": "BatchNorm2d" in names,
        "batch_norm_act": "BatchNormAct2d" in names,
        "frozen_norm": "FrozenBatchNorm2d" in names,
        "layer_norm": any("LayerNorm" in name for name in names),
        "relu6": "ReLU6" in names,
        "leaky_relu": "LeakyReLU" in names,
        "gelu": "GELU" in names,
        "channel_shuffle": "ShuffleNetV2" in names,
    }


@pytest.mark.parametrize("name", QUICK)
def test_what_an_architecture_is_listed_for_is_in_its_modules(name: str) -> None:
    architecture = find(name)
    for feature, is_there in module_features(architecture.make()).items():
        assert (feature in architecture.features) == is_there, feature


@pytest.mark.parametrize("name", QUICK)
def test_random_solutions_are_exact(name: str) -> None:
    """Eight solutions and two that drop layers, at one size; ONNX Runtime runs the first, and one that drops."""
    torch.set_num_threads(1)
    architecture = find(name)
    size = architecture.sizes[0]
    prepared = prepare(architecture, sizes=(size,))
    net = prepared.nets[size]
    solutions = random_solutions(net, 8, limits=QUICK_LIMITS)
    dropping = random_drop_solutions(prepared.model, net, 2, limits=QUICK_LIMITS)
    exporters = ["quick", *[None] * 7, "quick", None]
    found = check_architecture(prepared, [*solutions, *dropping], onnx=exporters)
    assert found.failures == []
    assert found.num_checks == 3 * 10 + 2
    if name not in ("torchvision:squeezenet1_1", "torchvision:densenet121"):  # nearly nothing keeps its shape there
        assert sum(len(net.layers) - len(each.kept_layers or ()) for each in dropping) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", [each.name for each in BANK])
def test_random_solutions_are_exact_at_two_sizes_and_in_onnx_runtime(name: str) -> None:
    torch.set_num_threads(1)
    architecture = find(name)
    prepared = prepare(architecture)
    solutions = random_solutions(prepared.nets[architecture.sizes[0]], 20)
    found = check_architecture(prepared, solutions, onnx=["shipped", *["quick"] * 19])
    assert found.failures == []
    assert found.num_checks == 3 * 2 * 20 + 20  # an exported graph has one size


@pytest.mark.parametrize("name", ["timm:tf_mixnet_s", "torchvision:densenet121", "timm:tf_efficientnet_lite0"])
@torch.no_grad()
def test_a_wrong_border_tap_in_the_first_conv_is_seen_at_the_output(name: str) -> None:
    """The random weights neither hide a mistake nor blow up rounding errors, however deep the network is."""
    prepared = prepare(find(name), sizes=(64,))
    model, images = prepared.model, prepared.images[64]
    expected = model(images)
    wrong, precise = copy.deepcopy(model), copy.deepcopy(model).double()
    first = next(module for module in wrong.modules() if isinstance(module, nn.Conv2d))
    first.weight[:, :, 0, 0] *= 1.01
    assert relative_difference([wrong(images)], [expected]) > 1e-5
    assert relative_difference([precise(images.double())], [expected]) < 1e-5
