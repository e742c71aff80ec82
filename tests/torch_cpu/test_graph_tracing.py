"""Tracing real networks: layers, chains, residuals, barriers, candidates."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

import layerfold as lf
from tests.torch_cpu.networks import make_network


def published_segments(path: Path) -> set[tuple[int, int]]:
    with path.open() as file:
        return {(int(row["st"]), int(row["end"])) for row in csv.DictReader(file)}


def test_mobilenet_v2_has_the_published_candidates(shared_path: Path) -> None:
    model = lf.load_model("torchvision:mobilenet_v2").module
    net = lf.trace_network(model, torch.zeros(1, 3, 224, 224), exclude=("features.0", "features.18"))
    published = published_segments(shared_path / "seed_tables/mbv2_1.0/time_fish_gpu1_1228.csv")
    assert {(s.start, s.end) for s in net.candidates(stop_at_strides=True)} == published
    assert len(published) == 171
    assert len(net.candidates(max_kernel=1000)) == 515


def test_vgg19_has_the_published_candidates(shared_path: Path) -> None:
    net = lf.trace_network(lf.load_model("torchvision:vgg19").module, torch.zeros(1, 3, 64, 64))
    published = published_segments(shared_path / "seed_tables/vgg19_no_trt/time_fish_gpu1_0317.csv")
    assert {(s.start, s.end) for s in net.candidates()} == published


@pytest.mark.parametrize(
    ("name", "num_layers", "chains", "num_residuals"),
    [
        ("torchvision:mobilenet_v2", 52, [(0, 52)], 10),
        ("torchvision:vgg16_bn", 13, [(0, 2), (2, 4), (4, 7), (7, 10), (10, 13)], 0),
        ("torchvision:resnet34", 33, [(0, 1), (1, 33)], 16),
        ("timm:mobilenetv2_100", 52, [(0, 52)], 10),
        ("timm:efficientnet_lite0", 49, [(0, 49)], 9),
        ("timm:tf_efficientnet_lite0", 49, [(0, 49)], 9),
    ],
)
def test_layers_chains_and_residuals(
    name: str, num_layers: int, chains: list[tuple[int, int]], num_residuals: int
) -> None:
    model, images = make_network(name)
    net = lf.trace_network(model, images)
    assert len(net.layers) == num_layers
    assert [(chain.start, chain.end) for chain in net.chains] == chains
    assert len(net.residuals) == num_residuals
    for layer in net.layers:
        assert layer.conv.output_shape(layer.input_shape) == layer.output_shape


def test_resnet34_has_three_conv_shortcuts() -> None:
    model, images = make_network("torchvision:resnet34")
    net = lf.trace_network(model, images)
    shortcuts = [residual.shortcut_names for residual in net.residuals if not residual.is_identity]
    assert shortcuts == [("layer2.0.downsample.0",), ("layer3.0.downsample.0",), ("layer4.0.downsample.0",)]


def test_same_padding_is_uneven_where_the_input_is_even() -> None:
    model, images = make_network("timm:tf_efficientnet_lite0")
    stem = lf.trace_network(model, images).layer(1).conv
    assert stem.stride == (2, 2)
    assert stem.padding == ((0, 1), (0, 1))


def test_squeeze_and_excitation_is_a_barrier_with_a_reason() -> None:
    model = lf.load_model("timm:efficientnet_b0").module
    net = lf.trace_network(model, torch.zeros(1, 3, 64, 64))
    assert any("squeeze-and-excitation" in barrier.reason for barrier in net.barriers)
    assert all(residual.dst <= 81 for residual in net.residuals)
    assert max(chain.end - chain.start for chain in net.chains) <= 5


def test_segment_into_and_out_of_a_residual_is_no_candidate() -> None:
    model, images = make_network("torchvision:resnet34")
    net = lf.trace_network(model, images)
    pairs = {(segment.start, segment.end) for segment in net.candidates(max_kernel=1000)}
    assert (1, 3) in pairs
    assert (1, 2) in pairs
    assert (1, 5) in pairs
    assert (2, 4) not in pairs
    assert (1, 4) not in pairs


class _Branches(nn.Module):
    """A feature map that leaves the chain in the middle: the chain must end there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.a(x))
        second = self.c(torch.relu(self.b(first)))
        return second * first.mean()


def test_chain_ends_where_its_feature_map_is_read_from_outside() -> None:
    net = lf.trace_network(_Branches().eval(), torch.zeros(1, 4, 8, 8))
    assert [(chain.start, chain.end) for chain in net.chains] == [(0, 1), (1, 3)]


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.conv(self.conv(x)))


def test_conv_used_twice_is_a_barrier() -> None:
    net = lf.trace_network(_Shared().eval(), torch.zeros(1, 4, 8, 8))
    assert [layer.name for layer in net.layers] == ["last"]
    assert [barrier.name for barrier in net.barriers] == ["conv", "conv"]


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


def test_untraceable_model_names_the_cause() -> None:
    line = r"cannot be traced.*test_graph_tracing.py.*x.sum\(\) > 0.*control flow"
    with pytest.raises(lf.UnsupportedGraphError, match=line):
        lf.trace_network(_Branching(), torch.zeros(1, 3, 8, 8))


def test_model_without_convs_and_wrong_input_are_refused() -> None:
    with pytest.raises(lf.UnsupportedGraphError, match="nothing to merge"):
        lf.trace_network(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), torch.zeros(1, 3, 2, 2))
    model, _ = make_network("cifar:resnet20")
    with pytest.raises(lf.UnsupportedGraphError, match="1x1x32x32 does not run"):
        lf.trace_network(model, torch.zeros(1, 1, 32, 32))


def test_unknown_exclusion_names_the_nearest() -> None:
    model, images = make_network("torchvision:mobilenet_v2")
    with pytest.raises(lf.UsageError, match=r"features\.1"):
        lf.trace_network(model, images, exclude=("feature.1",))


def test_tracing_leaves_the_model_and_its_mode_alone() -> None:
    model, images = make_network("timm:mobilenetv2_100")
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lf.trace_network(model, images)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
