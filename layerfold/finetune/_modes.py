"""Train and eval modes, put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every submodule back the mode it had before the block, even where they differed."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Return where the model's weights are (a model without any: the CPU)."""
    for tensor in model.parameters():
        return tensor.device
    return torch.device("cpu")
