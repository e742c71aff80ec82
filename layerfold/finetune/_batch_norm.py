"""BatchNorm statistics measured anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerfold.errors import UsageError
from layerfold.finetune._modes import channels_last, device_of, modes_kept


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> int:
    """Replace every BatchNorm's running mean and variance by their average over the given batches, in place.

    A network whose activations or convs were changed sees other feature maps than its statistics describe; this
    mends that without training. Only BatchNorm layers run in train mode, so dropout stays off; weights, momenta and
    modes are left as they were.

    Args:
        model: stays on its device.
        batches: images, or (images, labels), each batch of two images or more.

    Returns:
        How many BatchNorm layers were recalibrated (0: nothing was run).

    Raises:
        UsageError: no batches.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return 0
    before = [(norm, norm.momentum, {name: value.clone() for name, value in norm.named_buffers(recurse=False)})
              for norm in norms]
    device, count = device_of(model), 0
    with modes_kept(model), torch.no_grad():
        model.eval()
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch then averages over all batches alike
                norm.train()
            for batch in batches:
                images = batch if isinstance(batch, Tensor) else batch[0]
                model(channels_last(images.to(device)))
                count += 1
        except BaseException:
            _restore_buffers(before)
            raise
        finally:
            for norm, momentum, _ in before:
                norm.momentum = momentum
    if not count:
        _restore_buffers(before)
        raise UsageError("batches: there are none; BatchNorm needs images to be recalibrated on")
    return len(norms)


def _restore_buffers(before: list[tuple[_BatchNorm, float | None, dict[str, Tensor]]]) -> None:
    for norm, _, buffers in before:
        for name, value in buffers.items():
            norm.get_buffer(name).copy_(value)
