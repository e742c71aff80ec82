"""What the example input decides is decided in tracing: shapes, dtypes, kinds, defaults; what it does not, is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layerfold as lf
from tests.torch_cpu.exactness import chains, check, original_plan, randomise, relative_error


class Body(nn.Module):
    """Three convs with a ReLU between, as the part that every network below can merge."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)
        self.gain = 0.5

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x))))))


def network(forward: Callable[..., Any]) -> nn.Module:
    return type("Network", (Body,), {"forward": forward})()


def scales_what_is_a_tensor(self: Any, x: Any) -> Any:
    if torch.is_tensor(x) and not isinstance(x, (list, tuple)):
        x = x.float() / 127.5 - 1 if x.dtype is None else x / 127.5 - 1
    return self.body(x)


def gain_of_a_default(self: Any, x: Tensor, gain: float | None = None, *, offset: float = 0.25) -> Tensor:
    return self.body(x * (self.gain if gain is None else gain) + offset)


def only_in_training(self: Any, x: Tensor) -> Tensor:
    if self.training or torch.jit.is_tracing() or torch.jit.is_scripting():
        x = x * 3
    return self.body(x)


def by_rank_and_dtype(self: Any, x: Tensor) -> Tensor:
    if x.ndim == 3:
        x = x.unsqueeze(0)
    if x.dtype == torch.uint8:
        x = x / 255
    assert x.dim() == 4 == len(x.shape), f"bad shape {x.shape}"
    assert x.size(1) == 3
    if not x.is_floating_point() or x.is_cuda or x.device.type == "cuda":
        raise TypeError(f"bad kind {x.dtype}")
    return self.body(x)


def loops_over_channels(self: Any, x: Tensor) -> Tensor:
    mean = [0.1, 0.2, 0.3]
    return self.body(torch.cat([x[:, i : i + 1] - mean[i] for i in range(x.shape[1])], 1))


def splits_and_joins(self: Any, x: Tensor) -> Tensor:
    x = self.body(x)
    first, second = torch.split(x, [3, 5], dim=1)
    parts = [first, *x.chunk(4, 1), *list(second.split(2, 1))]
    parts.append(sum(part.mean(1, keepdim=True) for part in parts[:2]))
    return torch.cat(parts, 1)


def shuffles_channels(self: Any, x: Tensor) -> Tensor:
    x = self.body(x)
    batch, channels, height, width = x.shape
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)
    return self.third(x) if channels % 2 == 0 else x


def makes_tensors(self: Any, x: Tensor) -> Tensor:
    ones = x.new_ones(x.shape[0], 1, *x.shape[2:])
    rows = torch.arange(x.shape[2], dtype=x.dtype, device=x.device).view(1, 1, -1, 1)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype).view(1, 3, 1, 1)
    zeros = torch.zeros(x.size(0), 1, 1, 1, dtype=x.dtype, device=x.device)
    return self.body(x * ones * scale + rows / 10 + zeros)


def keeps_a_table(self: Any, x: Tensor) -> Tensor:
    key = (x.shape[2], str(x.dtype))
    tables = self.__dict__.setdefault("tables", {})
    if key not in tables:
        tables[key] = torch.linspace(0, 1, x.shape[3], dtype=x.dtype)
    return self.body(x + tables[key])


def resizes_back(self: Any, x: Tensor) -> Tensor:
    small = F.avg_pool2d(self.body(x), 2)
    if small.shape[-2:] != x.shape[-2:]:
        small = F.interpolate(small, size=x.shape[-2:], mode="nearest")
    return small + x.mean(1, keepdim=True)


def pads_by_need(self: Any, x: Tensor) -> Tensor:
    missing = [max(math.ceil(size / 4) * 4 - size, 0) for size in (int(x.shape[3]), int(x.shape[2]))]
    if any(missing):
        x = F.pad(x, (0, missing[0], 0, missing[1]))
    return self.body(x)


def flattens(self: Any, x: Tensor) -> Tensor:
    x = self.body(x).mean((2, 3))
    if x.shape[1] > 4:
        x = x.unflatten(1, (2, 4)).reshape(x.shape[0], -1)
    return x.reshape(-1, 8)


def writes_into(self: Any, x: Tensor) -> Tensor:
    x = self.body(x)
    wide = x.new_zeros(x.shape[0], 12, x.shape[2], x.shape[3])
    wide[:, 2:10] = x
    return wide


def changes_its_input(self: Any, x: Tensor) -> Tensor:
    x = x.mul_(0.5).add_(1)
    x[:, 1] = x[:, 0] * 2
    return self.body(x.detach().requires_grad_(False))


def counts_down(self: Any, x: Tensor, steps: int = 2, names: tuple[str, ...] = ("third",), **unused: Any) -> Any:
    x = self.body(x)
    for _ in range(steps):
        for name in names:
            x = getattr(self, name)(x)
    return {"maps": [x], "size": tuple(x.shape[1:])} if not unused else x


@pytest.mark.parametrize(
    "forward",
    [
        scales_what_is_a_tensor,
        gain_of_a_default,
        only_in_training,
        by_rank_and_dtype,
        loops_over_channels,
        shuffles_channels,
        resizes_back,
        flattens,
        writes_into,
        changes_its_input,
    ],
)
def test_what_the_input_decides_is_traced_and_merges_at_every_size(forward: Callable[..., Any]) -> None:
    net = check(network(forward), (1, 3, 10, 12), larger=2)
    assert max(chain.end - chain.start for chain in net.chains) >= 2
    assert not net.notes


@pytest.mark.parametrize("forward", [makes_tensors, keeps_a_table, pads_by_need, splits_and_joins])
def test_what_the_size_decides_is_traced_for_that_size_and_any_batch(forward: Callable[..., Any]) -> None:
    net = check(network(forward), (2, 3, 10, 11), larger=0)
    assert chains(net)[0][1] >= 3
    model = randomise(network(forward))
    net = lf.trace_network(model, torch.zeros(1, 3, 10, 11, dtype=torch.float64))
    with torch.no_grad():
        student = lf.build_train_form(model, net, original_plan(net))
        for batch in (1, 3, 8):
            x = 100 * torch.randn(batch, 3, 10, 11, dtype=torch.float64)
            assert relative_error(student(x), model(x)) <= 1e-9


def test_defaults_of_every_kind_are_kept() -> None:
    model = randomise(network(counts_down))
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    net = lf.trace_network(model, x)
    with torch.no_grad():
        found, expected = lf.build_train_form(model, net, original_plan(net))(x), model(x)
    assert relative_error(found["maps"], expected["maps"]) <= 1e-9
    assert found["size"] == expected["size"]


def test_an_optional_tensor_is_an_input_only_where_it_is_given() -> None:
    def forward(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.body(x) if mask is None else self.body(x * mask)

    model = randomise(network(forward))
    x, mask = torch.randn(2, 2, 3, 9, 9, dtype=torch.float64)
    for inputs in ((x,), (x, mask)):
        net = lf.trace_network(model, inputs)
        with torch.no_grad():
            assert relative_error(lf.build_train_form(model, net, original_plan(net))(*inputs), model(*inputs)) <= 1e-9


def by_largest_value(self: Any, x: Tensor) -> Tensor:
    return self.body(x / 255 if x.max() > 2 else x)


def by_one_pixel(self: Any, x: Tensor) -> Tensor:
    return self.body(x if x[0, 0, 0, 0].item() else -x)


def by_batch(self: Any, x: Tensor) -> Tensor:
    return self.body(x) if x.shape[0] > 4 else self.body(2 * x)


def by_one_image(self: Any, x: Tensor) -> Tensor:
    return self.body(x) if x.shape[0] == 1 else self.body(2 * x)


def by_several_images(self: Any, x: Tensor) -> Tensor:
    return self.body(x) if len(x) > 1 else self.body(2 * x)


def image_by_image(self: Any, x: Tensor) -> Tensor:
    return torch.cat([self.body(x[i : i + 1]) for i in range(len(x))])


def over_images(self: Any, x: Tensor) -> Tensor:
    return torch.stack([self.body(image[None])[0] for image in x])


def by_count_of_pixels(self: Any, x: Tensor) -> Tensor:
    return self.body(x) if int(x.numel()) > 100000 else self.body(x + 1)


@pytest.mark.parametrize(
    ("forward", "cause"),
    [
        (by_largest_value, "values of a tensor"),
        (by_one_pixel, "values of a tensor"),
        (by_batch, "number of images"),
        (by_one_image, "number of images"),
        (by_several_images, "number of images"),
        (image_by_image, "number of images"),
        (over_images, "number of images"),
        (by_count_of_pixels, "number of images"),
    ],
)
def test_what_the_input_does_not_decide_is_refused_or_stays_whole(forward: Callable[..., Any], cause: str) -> None:
    with pytest.raises(lf.UnsupportedGraphError, match=cause) as caught:
        lf.trace_network(network(forward), torch.zeros(1, 3, 9, 9))
    assert forward.__code__.co_filename.rpartition("/")[2] in str(caught.value)
    whole = check(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), network(forward)), (1, 3, 9, 9))
    assert chains(whole) == [(0, 2)]
    assert cause in whole.notes[0]
    assert "Network" in whole.notes[0]
