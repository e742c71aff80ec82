"""Composition of convs against a naive float64 reference: run one after the other."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layerfold.graph.footprint import Footprint
from layerfold.graph.specs import ConvSpec
from layerfold.merge.algebra import AffineConv, LinearMap, fold_norm, widen_groups
from layerfold.merge.composition import compose
from layerfold.merge.deploy_form import make_conv
from layerfold.merge.segment import InnerResidual, LinearLayer, TrainSegment


def make_layer(spec: ConvSpec) -> LinearLayer:
    conv = nn.Conv2d(spec.in_channels, spec.out_channels, spec.kernel_size, groups=spec.groups).double()
    return LinearLayer(conv, None, spec)


def check(specs: list[ConvSpec], residuals: list[tuple[int, int, list[ConvSpec]]], size: int) -> None:
    """Compare a segment in train form with its one conv, and the conv's shape with the footprint's."""
    prints = [Footprint.identity(specs[0].in_channels)]
    for position, spec in enumerate(specs, start=1):
        value = prints[-1].then(spec)
        for src, dst, shortcut in residuals:
            if dst == position:
                branch = prints[src]
                for each in shortcut:
                    branch = branch.then(each)
                value = value.plus(branch)
        prints.append(value)
    merged = prints[-1].conv(specs[0].in_channels)
    segment = TrainSegment(
        start=0,
        end=len(specs),
        merged=merged,
        input_shape=(specs[0].in_channels, size, size),
        layers=[make_layer(spec) for spec in specs],
        residuals=[InnerResidual(src=src, dst=dst, index=i) for i, (src, dst, _) in enumerate(residuals)],
        shortcuts=[[make_layer(spec) for spec in shortcut] for _, _, shortcut in residuals],
    ).double()
    x = torch.randn(2, specs[0].in_channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected = segment(x)
        got = make_conv(merged, segment.linear_map().as_conv(merged), torch.float64)(x)
    shape = x.shape[1:]
    for spec in specs:
        shape = spec.output_shape(tuple(shape))
    assert expected.shape[1:] == got.shape[1:] == shape
    assert torch.allclose(expected, got, rtol=0, atol=1e-12 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(
    ("kernels", "strides", "dilations", "pad"),
    list(
        itertools.product(
            [(1, 3), (3, 1), (3, 3), (2, 3)], [(1, 1), (2, 1), (1, 2), (2, 3)], [(1, 1), (2, 1), (1, 2)], [0, 1]
        )
    ),
)
def test_two_convs_equal_one(
    kernels: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int], pad: int
) -> None:
    torch.manual_seed(0)
    channels = (3, 4, 5)
    specs = [
        ConvSpec(
            in_channels=channels[i],
            out_channels=channels[i + 1],
            kernel_size=(kernels[i], kernels[i]),
            stride=(strides[i], strides[i]),
            dilation=(dilations[i], dilations[i]),
            padding=((pad, pad), (pad, pad)),
        )
        for i in (0, 1)
    ]
    check(specs, [], 19)
    single = Footprint.identity(3).then(specs[0]).then(specs[1]).conv(3)
    expected = (kernels[0] - 1) * dilations[0] + (kernels[1] - 1) * dilations[1] * strides[0] + 1
    assert single.kernel_size == (expected, expected)
    assert single.stride == (strides[0] * strides[1],) * 2
    assert single.padding[0][0] == pad + pad * strides[0]


@pytest.mark.parametrize("seed", range(60))
def test_random_runs_with_groups_asymmetry_and_residuals(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    length = rng.randint(1, 4)
    channels = [rng.choice([4, 8, 12]) for _ in range(length + 1)]
    specs = []
    for before, after in itertools.pairwise(channels):
        groups = rng.choice([g for g in (1, 2, 4) if before % g == 0 and after % g == 0] + [before] * (before == after))
        kernel = (rng.randint(1, 3), rng.randint(1, 3))
        padding = tuple((rng.randint(0, 2), rng.randint(0, 2)) for _ in range(2))
        specs.append(
            ConvSpec(
                in_channels=before,
                out_channels=after,
                kernel_size=kernel,
                padding=padding,
                groups=groups,
                stride=(rng.choice([1, 1, 2]), rng.choice([1, 1, 2])),
                dilation=(rng.choice([1, 2]), 1),
            )
        )
    check(specs, [], 17)


@pytest.mark.parametrize("kind", ["identity", "inner", "nested", "conv", "wide conv"])
@pytest.mark.parametrize("stride", [1, 2])
def test_residuals_merge_with_their_segment(kind: str, stride: int) -> None:
    torch.manual_seed(0)

    def conv(kernel: int, stride: int = 1, pad: int | None = None, groups: int = 1) -> ConvSpec:
        side = kernel // 2 if pad is None else pad
        return ConvSpec(
            in_channels=4,
            out_channels=4,
            kernel_size=(kernel, kernel),
            stride=(stride, stride),
            padding=((side, side), (side, side)),
            groups=groups,
        )

    if kind in ("conv", "wide conv"):
        shortcut = conv(1 if kind == "conv" else 5, stride)
        check([conv(1), conv(3, stride), conv(1)], [(0, 3, [shortcut])], 12)
    elif kind == "identity":
        check([conv(3), conv(3)], [(0, 2, [])], 12)
    elif kind == "inner":
        check([conv(3, stride), conv(3), conv(3, groups=4), conv(3)], [(1, 3, [])], 16)
    else:
        check([conv(3, stride), conv(3), conv(1), conv(3)], [(1, 4, []), (2, 3, [])], 16)


def test_depthwise_after_depthwise_stays_depthwise() -> None:
    depthwise = ConvSpec(in_channels=6, out_channels=6, kernel_size=(3, 3), padding=((1, 1), (1, 1)), groups=6)
    assert Footprint.identity(6).then(depthwise).then(depthwise).conv(6).is_depthwise
    check([depthwise, depthwise], [(0, 2, [])], 9)


@pytest.mark.parametrize("affine", [True, False])
def test_folded_norm_equals_conv_then_norm(affine: bool) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 5, 3, bias=False).double(), nn.BatchNorm2d(5, affine=affine).double()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 2)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    folded = fold_norm(conv, norm.eval())
    assert torch.allclose(norm(conv(x)), F.conv2d(x, folded.weight_OIHW, folded.bias), atol=1e-12)


def test_widened_groups_compute_the_same() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 2, 3, 3, dtype=torch.float64)
    x = torch.randn(1, 12, 5, 5, dtype=torch.float64)
    for fewer in (3, 2, 1):
        wide = widen_groups(weight, 6, fewer)
        assert torch.allclose(F.conv2d(x, weight, groups=6), F.conv2d(x, wide, groups=fewer), atol=1e-12)


def test_a_bias_passes_through_groups() -> None:
    torch.manual_seed(0)
    start = LinearMap.identity(4, torch.device("cpu"))
    first = ConvSpec(in_channels=4, out_channels=4, kernel_size=(1, 1), groups=2)
    second = ConvSpec(in_channels=4, out_channels=6, kernel_size=(3, 3), groups=1)
    w1, b1 = torch.randn(4, 2, 1, 1).double(), torch.randn(4).double()
    w2, b2 = torch.randn(6, 4, 3, 3).double(), torch.randn(6).double()
    convs = (AffineConv(weight_OIHW=w1, bias=b1), first), (AffineConv(weight_OIHW=w2, bias=b2), second)
    found = compose([start, *(LinearMap.of(conv, spec) for conv, spec in convs)])
    zeros = torch.zeros(1, 4, 3, 3).double()
    expected = F.conv2d(F.conv2d(zeros, w1, b1, groups=2), w2, b2).flatten()
    assert torch.allclose(found.bias, expected, atol=1e-12)
