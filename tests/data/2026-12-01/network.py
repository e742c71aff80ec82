"""The network that the files here were made from: a stem, a bottleneck with a shortcut, and a stride."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn


class Bottleneck(nn.Module):
    """Expand, depthwise, project, plus the shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU6(),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU6(),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.body(images)


def build() -> nn.Module:
    """Return the network with its weights of then: a seed gives others on other processors."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Bottleneck(8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    network.load_state_dict(load_file(Path(__file__).with_name("network.safetensors")))
    return network


class Images(torch.utils.data.Dataset):
    """Noise around one of three means."""

    classes = ("low", "middle", "high")

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.targets, self.shape = [index % 3 for index in range(count)], shape

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(index))
        return noise + self.targets[index] - 1, self.targets[index]


def images(input_shape: tuple[int, ...]) -> tuple[Images, Images]:
    """Return images to learn from, and others to score with."""
    return Images(96, input_shape), Images(24, input_shape)
