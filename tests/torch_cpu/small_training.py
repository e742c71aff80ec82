"""Runs that take well under a second, and how they are interrupted."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from layerfold.data import ImageData
from layerfold.finetune import finetune_network


def images(count: int = 64, classes: int = 3, channels: int = 3) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    pictures = torch.randn(count, channels, 8, 8, generator=generator) + labels[:, None, None, None]
    split = TensorDataset(pictures, labels)
    return ImageData(
        name="made up", num_classes=classes, input_shape=(channels, 8, 8), train=split, holdout=split, test=split
    )


def network(seed: int = 0, outputs: int = 3, dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8, outputs),
    )


def train(model: nn.Module, data: ImageData, **options: Any) -> Any:
    return finetune_network(
        model, data, **{"batch_size": 16, "epochs": 2, "learning_rate": 0.05, "progress": False, **options}
    )


def is_same(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Within the block, writing more than ``size`` bytes into a file fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class Interrupt(Exception):
    """Stands in for a kill at the n-th step."""


def interrupted_after(model: nn.Module, steps: int) -> nn.Module:
    left = [steps]

    def count(module: nn.Module, *_: object) -> None:
        left[0] -= module.training
        if left[0] < 0:
            raise Interrupt

    model.register_forward_hook(count)
    return model
