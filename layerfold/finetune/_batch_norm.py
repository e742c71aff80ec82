"""BatchNorm statistics measured anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerfold.errors import UsageError
from layerfold.finetune._layout import channels_last
from layerfold.finetune._modes import device_of, modes_kept

_Saved = tuple[_BatchNorm, float | None, dict[str, Tensor]]


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Tensor | tuple[Tensor, Tensor]]) -> int:
    """Replace every BatchNorm's running mean and variance by their average over the given batches, in place.

    A network whose activations or convs were changed sees other feature maps than its statistics describe; this
    mends that without training. Only BatchNorm layers run in train mode, so dropout stays off; weights, momenta and
    modes are left as they were.

    Args:
        model: stays on its device.
        batches: images, or (images, labels), each batch of two images or more; every batch counts alike.

    Returns:
        How many BatchNorm layers were recalibrated (0: nothing was run).

    Raises:
        UsageError: no batches.
    """
    count = len(_norms_with_statistics(model))
    if count:
        device = device_of(model)
        with averaging_batch_norm(model):
            for batch in batches:
                images = batch if isinstance(batch, Tensor) else batch[0]
                model(channels_last(images.to(device)))
    return count


@contextmanager
def averaging_batch_norm(model: nn.Module) -> Iterator[None]:
    """Within the block, run the model: its BatchNorms then hold the average statistics of those passes.

    The model is in eval mode but for its BatchNorms, and gradients are off. A BatchNorm that no pass reached keeps
    its statistics; if the block fails, all do.

    Raises:
        UsageError: no pass reached any BatchNorm.
    """
    norms = _norms_with_statistics(model)
    before: list[_Saved] = [
        (norm, norm.momentum, {name: value.clone() for name, value in norm.named_buffers(recurse=False)})
        for norm in norms
    ]
    with modes_kept(model), torch.no_grad():
        model.eval()
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch then averages over all batches alike
                norm.train()
            yield
            idle = [saved for saved in before if int(saved[0].get_buffer("num_batches_tracked")) == 0]
            _restore_statistics(idle)
            if idle and len(idle) == len(norms):
                raise UsageError("batches: there are none; BatchNorm needs images to be recalibrated on")
        except BaseException:
            _restore_statistics(before)
            raise
        finally:
            for norm, momentum, _ in before:
                norm.momentum = momentum


def _restore_statistics(saved: list[_Saved]) -> None:
    for norm, _, buffers in saved:
        for name, value in buffers.items():
            norm.get_buffer(name).copy_(value)


def _norms_with_statistics(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
