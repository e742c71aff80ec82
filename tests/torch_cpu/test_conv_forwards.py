"""Conv classes with a forward of their own: convs where they compute one, and never taken for one where they do not."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerfold as lf
from layerfold.graph.conv_forwards import computes_conv, padding_at
from tests.torch_cpu.exactness import chains, check


def conv_class(forward: Callable[..., Any] | None, **attributes: Any) -> type[nn.Conv2d]:
    own = {} if forward is None else {"forward": forward}
    return type("OwnConv", (nn.Conv2d,), {**own, **attributes})


def pads_to_same(self: Any, x: Tensor) -> Tensor:
    """As efficientnet_pytorch does: what is missing follows from the image's size."""
    settings = zip(x.size()[-2:], self.kernel_size, self.stride, self.dilation, strict=True)
    totals = [
        max((math.ceil(size / step) - 1) * step + (kernel - 1) * dilation + 1 - size, 0)
        for size, kernel, step, dilation in settings
    ]
    if any(total > 0 for total in totals):
        height, width = totals
        x = F.pad(x, [width // 2, width - width // 2, height // 2, height - height // 2])
    return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def pads_at_the_top(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (0, 2, 3, 0)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def casts(self: Any, x: Tensor) -> Tensor:
    return self._conv_forward(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def skips_empty_images(self: Any, x: Tensor) -> Tensor:
    if x.numel() == 0:
        return x.new_zeros(x.shape[0], self.out_channels, 1, 1)
    return super(nn.Conv2d, self).forward(x) if False else nn.Conv2d.forward(self, x)


def by_hand(self: Any, x: Tensor) -> Tensor:
    columns = F.unfold(x, self.kernel_size, self.dilation, 0, self.stride)
    found = self.weight.flatten(1) @ columns
    if self.bias is not None:
        found = found + self.bias[:, None]
    height = (x.shape[2] - (self.kernel_size[0] - 1) * self.dilation[0] - 1) // self.stride[0] + 1
    return found.view(x.shape[0], self.out_channels, height, -1)


COMPUTE = {
    "none of its own": (conv_class(None), {"padding": 1}),
    "same, even stride": (conv_class(pads_to_same), {"stride": 2}),
    "same, dilated": (conv_class(pads_to_same), {"dilation": 2}),
    "same, depthwise": (conv_class(pads_to_same), {"stride": (1, 2), "groups": 4}),
    "uneven": (conv_class(pads_at_the_top), {"stride": 3}),
    "casts": (conv_class(casts), {"padding": (0, 2), "bias": False}),
    "skips empty images": (conv_class(skips_empty_images), {"padding": 1, "groups": 2}),
    "by hand": (conv_class(by_hand), {"dilation": (1, 2)}),
}


@pytest.mark.parametrize("name", COMPUTE)
def test_a_class_that_computes_a_conv_merges_with_its_neighbours(name: str) -> None:
    kind, options = COMPUTE[name]
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.ReLU(),
        kind(4, 4, 3, **options),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
    )
    # "Same" padding follows the size, so that a merged conv holds for the size it was traced at.
    net = check(model, (1, 3, 14, 15), larger=0 if name.startswith("same") else 3)
    assert chains(net) == [(0, 3)]
    assert [layer.name for layer in net.layers] == ["0", "2", "5"]


def test_padding_is_found_for_each_size() -> None:
    conv = conv_class(pads_to_same)(3, 8, 3, stride=2)
    assert padding_at(conv, (8, 9)) == ((0, 1), (1, 1))
    assert padding_at(conv, (9, 8)) == ((1, 1), (0, 1))


def gated(self: Any, x: Tensor) -> Tensor:
    return nn.Conv2d.forward(self, x) * torch.sigmoid(x.mean())


def standardised(self: Any, x: Tensor) -> Tensor:
    weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
    return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, self.stride, self.padding)


def masked(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding)


def wraps_around(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), self.weight, self.bias, self.stride)


def clamps(self: Any, x: Tensor) -> Tensor:
    return nn.Conv2d.forward(self, x).clamp(-40, 40)


def ignores_its_bias(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, self.weight, None, self.stride, self.padding)


def halves_its_stride(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, self.weight, self.bias, (1, 1), self.padding)


OTHERS = {
    "gated": gated,
    "standardised": standardised,
    "masked": masked,
    "wraps around": wraps_around,
    "clamps": clamps,
    "ignores its bias": ignores_its_bias,
    "halves its stride": halves_its_stride,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_class_that_computes_something_else_is_never_taken_for_a_conv(name: str) -> None:
    conv = conv_class(OTHERS[name], mask=torch.ones(1, dtype=torch.float64))(4, 4, 3, stride=2, padding=1)
    if name == "masked":
        conv = conv_class(masked)(4, 4, 3, stride=2, padding=1)
        conv.register_buffer("mask", torch.ones(4, 1, 3, 3))
    assert not computes_conv(conv)
    # Whatever becomes of it, both forms compute the model.
    check(nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)), (1, 3, 12, 13), larger=2)


def test_a_forward_set_on_one_module_alone_is_not_lost() -> None:
    convs = [nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)]
    convs[1].forward = types.MethodType(lambda self, x: nn.Conv2d.forward(self, x).tanh(), convs[1])
    norm, activation = nn.BatchNorm2d(4), nn.ReLU()
    norm.forward = types.MethodType(lambda self, x: x * 3, norm)
    activation.forward = types.MethodType(lambda self, x: x + 1, activation)
    net = check(nn.Sequential(*convs, norm, activation, nn.Conv2d(4, 4, 3)), (1, 3, 9, 9))
    assert net.layer(2).activation is not None
    assert net.layer(2).activation.kind == "tanh"


def test_norm_class_without_a_forward_of_its_own_is_folded() -> None:
    kind: Any = type("OwnNorm", (nn.BatchNorm2d,), {"extra": 1})
    net = check(nn.Sequential(nn.Conv2d(3, 4, 1), kind(4), nn.ReLU(), nn.Conv2d(4, 4, 3)), (1, 3, 9, 9))
    assert net.layer(1).norm == "1"


def test_network_of_such_convs_merges_in_half_precision() -> None:
    kind, options = COMPUTE["same, even stride"]
    for dtype in (torch.bfloat16, torch.float16):
        model = nn.Sequential(kind(3, 4, 3, **options), nn.Conv2d(4, 4, 3)).to(dtype).eval()
        net = lf.trace_network(model, torch.zeros(1, 3, 12, 12))
        merged = lf.merge_network(lf.build_train_form(model, net, lf.Solution(act_pos=(), merge_pos=(2,))))
        assert merged(torch.ones(1, 3, 12, 12, dtype=dtype)).dtype is dtype
