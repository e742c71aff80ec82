"""What is counted is what there is: plans against enumeration, shares against the modules themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import layerfold as lf
from layerfold.errors import SolutionError
from layerfold.graph.counts import (
    count_merge_sets,
    count_plans,
    lean_candidates,
    mergeable_share,
    replaced_macs,
)
from layerfold.models import load_model
from tests.torch_cpu.networks import cifar_module

_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "blocks of MobileNetV2": (lambda: load_model("timm:mobilenetv2_035").module.blocks[:2], (16, 16, 16)),
    "first stage of ResNet-18": (lambda: load_model("torchvision:resnet18").module.layer1, (64, 8, 8)),
    "head of VGG11": (lambda: load_model("torchvision:vgg11").module.features[:12], (3, 32, 32)),
    "no activation": (lambda: nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(4))), (3, 16, 16)),
    "Fire modules": (lambda: load_model("torchvision:squeezenet1_1").module.features[:5], (3, 32, 32)),
}


def _traced(name: str) -> tuple[nn.Module, lf.Network]:
    make, shape = _NETWORKS[name]
    model = make()
    return model, lf.trace_network(model, torch.zeros(1, *shape))


def _pairs(net: lf.Network, max_kernel: int) -> Iterator[tuple[int, int]]:
    """Yield the size of each allowed S and the number of its allowed A, by trying every set of positions."""
    chain_ends = {chain.end for chain in net.chains}
    free = [position for position in range(1, len(net.layers) + 1) if position not in chain_ends]
    for size in range(len(free) + 1):
        for stops in itertools.combinations(free, size):
            try:
                segments = net.segments_of({*stops, *chain_ends})
            except SolutionError:
                continue
            if any(s.num_layers > 1 and max(s.conv.kernel_size) > max_kernel for s in segments):
                continue
            allowed = 0
            for chosen in range(size + 1):
                for active in itertools.combinations(stops, chosen):
                    allowed += all(net.chain_of(position).activation is not None for position in active)
            yield size, allowed


@pytest.mark.parametrize("max_kernel", [3, 5, 15])
@pytest.mark.parametrize("name", _NETWORKS)
def test_number_of_plans_matches_enumeration(name: str, max_kernel: int) -> None:
    _, net = _traced(name)
    candidates = net.candidates(max_kernel=max_kernel)
    pairs = list(_pairs(net, max_kernel))
    assert count_merge_sets(net, candidates) == len(pairs) >= 1
    assert count_plans(net, candidates) == sum(allowed for _, allowed in pairs)


def test_every_pair_counted_can_be_built() -> None:
    model, net = _traced("first stage of ResNet-18")
    built = 0
    for size in range(4):
        for stops in itertools.combinations((1, 2, 3), size):
            for chosen in range(size + 1):
                for active in itertools.combinations(stops, chosen):
                    try:
                        lf.build_train_form(model, net, lf.Solution(act_pos=active, merge_pos=(*stops, 4)))
                    except SolutionError:
                        continue
                    built += 1
    assert built == count_plans(net, net.candidates())


def _module_macs(model: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """Return the multiply-adds of each conv and linear layer, counted while the model itself runs."""
    found: dict[str, int] = {}

    def count(name: str, module: nn.Module, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            found[name] = output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            found[name] = module.weight.numel()

    handles = [
        module.register_forward_hook(lambda m, _, output, name=name: count(name, m, output))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("name", "alone"),
    [
        ("torchvision:resnet18", ["conv1", "fc"]),
        ("torchvision:resnet50", ["conv1", "fc"]),
        ("torchvision:vgg11", ["features.0", "features.3", "classifier.0", "classifier.3", "classifier.6"]),
        ("torchvision:mobilenet_v2", ["classifier.1"]),
    ],
)
def test_mergeable_share_is_all_but_what_stands_alone(name: str, alone: list[str]) -> None:
    loaded = load_model(name)
    macs = _module_macs(loaded.module, loaded.input_shape)
    net = lf.trace_network(loaded.module, torch.zeros(1, *loaded.input_shape))
    assert net.macs == sum(macs.values())
    expected = 1 - sum(macs[each] for each in alone) / sum(macs.values())
    assert mergeable_share(net, net.candidates()) == pytest.approx(expected, rel=1e-12)


def test_squeeze_and_excitation_leaves_nothing_to_gain() -> None:
    shares = {}
    for name in ("timm:efficientnet_b0", "torchvision:mobilenet_v2"):
        net = lf.trace_network(load_model(name).module, torch.zeros(1, 3, 224, 224))
        shares[name] = mergeable_share(net, lean_candidates(net, net.candidates()))
    assert shares["timm:efficientnet_b0"] == 0
    assert shares["torchvision:mobilenet_v2"] > 0.9


def test_network_that_merges_nothing_has_share_zero() -> None:
    net = lf.trace_network(load_model("torchvision:convnext_tiny").module, torch.zeros(1, 3, 64, 64))
    assert mergeable_share(net, net.candidates()) == 0
    assert count_plans(net, net.candidates()) == 1


def test_lean_candidates_never_raise_multiply_adds() -> None:
    net = lf.trace_network(cifar_module().resnet20(), torch.zeros(1, 3, 32, 32))
    lean = lean_candidates(net, net.candidates())
    assert all(s.macs <= replaced_macs(net, s.start, s.end) for s in lean if s.num_layers > 1)
    assert {s.start for s in lean if s.num_layers == 1} == set(range(len(net.layers)))
