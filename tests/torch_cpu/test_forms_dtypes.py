"""Both forms are in the network's own dtype, whatever is merged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import layerfold as lf
from tests.torch_cpu.exactness import relative_error, solutions


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.side, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(torch.full((4, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) * self.gamma + self.side(x))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "poolings": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(4, 4, 1)
    ),
    "poolings in front": lambda: nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(3, 1, 1), nn.Conv2d(3, 4, 1), nn.PReLU()),
    "residuals": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Block(), Block(), nn.AvgPool2d(2), nn.AvgPool2d(2)),
    "slices": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(1, 2), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1)),
    "numbers": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Hardswish(),
        nn.BatchNorm2d(4),
        nn.AvgPool2d(2),
        nn.SiLU(),
        nn.Conv2d(4, 4, 1, groups=2),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_merge_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype).eval()
    images = torch.randn(2, 3, 16, 16).to(dtype)
    net = lf.trace_network(model, torch.zeros(1, 3, 16, 16), merge_pooling=True)
    tolerance = 40 * torch.finfo(dtype).eps
    with torch.no_grad():
        for solution in solutions(net, 8):
            student = lf.build_train_form(model, net, solution)
            merged = lf.merge_network(student)
            found = merged(images)
            assert found.dtype is dtype
            assert relative_error(found.double(), student(images).double()) <= tolerance
