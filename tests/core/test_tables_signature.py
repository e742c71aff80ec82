"""Sizes read from a segment's signature equal those of its specs."""

from __future__ import annotations

import pytest

from layerfold.graph.description import Residual, Segment
from layerfold.graph.specs import ActivationSpec, ConvSpec
from layerfold.tables.signature import conv_sizes

CONV = ConvSpec(
    in_channels=8,
    out_channels=12,
    kernel_size=(5, 3),
    stride=(2, 1),
    padding=((1, 2), (0, 1)),
    dilation=(1, 2),
    groups=4,
)
SHORTCUT = (ConvSpec(in_channels=8, out_channels=12, kernel_size=(1, 1), stride=(2, 1)),)


@pytest.mark.parametrize(
    "residuals",
    [
        (),
        (Residual(src=0, dst=2, source_shape=(12, 15, 14)),),
        (Residual(src=0, dst=2, shortcut=SHORTCUT, source_shape=(8, 30, 17)),),
    ],
    ids=["none", "identity", "shortcut conv"],
)
def test_sizes_equal_those_of_the_specs(residuals: tuple[Residual, ...]) -> None:
    segment = Segment(
        start=0,
        end=2,
        conv=CONV,
        input_shape=(8, 30, 17),
        output_shape=CONV.output_shape((8, 30, 17)),
        activation=ActivationSpec(kind="leaky_relu", params=(("negative_slope", 0.01),)),
        open_residuals=residuals,
    )
    sizes = conv_sizes(segment.signature)
    assert sizes.kernel == 5
    assert sizes.macs == segment.macs
    assert sizes.params == CONV.num_params + sum(c.num_params for r in residuals for c in r.shortcut)


@pytest.mark.parametrize("text", ["", "x", "3x3 conv:o1", "8x4x4 conv:o1,k0x0,s0x0,p0.0.0.0,d1x1,g0", "=1+1 y"])
def test_unreadable_signature_tells_nothing(text: str) -> None:
    sizes = conv_sizes(text)
    assert (sizes.kernel, sizes.params, sizes.macs) == (None, None, None)
