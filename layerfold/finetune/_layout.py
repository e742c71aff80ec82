"""How tensors are stored while a network trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


def channels_last(images: Tensor) -> Tensor:
    """Return images stored channels last: several times faster in depthwise convs on a CPU."""
    # `to`, not `contiguous`: for one channel the latter leaves the strides, by which torch chooses its kernels, alone.
    return images.to(memory_format=torch.channels_last) if images.dim() == 4 else images


@contextmanager
def stored_channels_last(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a network on a device, stored channels last, within the block; then each tensor back as and where it was."""
    before = {name: (tensor.stride(), tensor.device) for name, tensor in _tensors(model)}
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        for name, tensor in _tensors(model):
            stride, home = before[name]
            if (tensor.stride(), tensor.device) != (stride, home):
                restored = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=home)
                tensor.data = restored.copy_(tensor.detach())


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())
