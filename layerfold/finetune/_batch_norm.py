"""BatchNorm statistics measured again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerfold.data import BatchLoader, ImageData
from layerfold.errors import DataError, UsageError
from layerfold.finetune._layout import channels_last
from layerfold.finetune._modes import device_of, modes_kept
from layerfold.modules import public_call

ORIGINAL, RECALIBRATED, FINETUNED, NO_BATCH_NORM = "original", "recalibrated", "finetuned", "none"
"""Where the BatchNorm statistics of a form come from: the fact ``batch_norm`` that is kept with it."""

_MOST_IMAGES = 2048
"""That statistics are measured on: means of so many no longer move."""
_FEWEST_IMAGES = 2

_Saved = tuple[_BatchNorm, float | None, dict[str, Tensor]]


@public_call
def recalibrate_batch_norm(
    model: nn.Module, images: ImageData | Iterable[Tensor | tuple[Tensor, Tensor]], *, batch_size: int = 128
) -> int:
    """Replace every BatchNorm's running mean and variance by their average over the given images, in place.

    A network whose activations or convs were changed sees other feature maps than its statistics describe; this
    mends that without training. Whatever leads to a merged network without finetuning does it, in this way: the train
    form is recalibrated, then merged. Only BatchNorm layers run in train mode, so dropout stays off; weights, momenta
    and modes are left as they were.

    Args:
        model: stays on its device.
        images: of an ``ImageData`` up to 2,048 training images (where it has none, of its holdout), always the same
            ones. Or batches: images, or (images, labels), each of two images or more; every batch counts alike.
        batch_size: of the images of an ``ImageData``, at least 2.

    Returns:
        How many BatchNorm layers were recalibrated (0: there are none, and nothing was run).

    Raises:
        UsageError: no batches.
        DataError: a single image, which has no variance.

    Example:
        >>> from layerfold.finetune import recalibrate_batch_norm
        >>> norm = nn.BatchNorm2d(1)
        >>> recalibrate_batch_norm(norm, [torch.full((2, 1, 1, 1), 5.0)])
        1
        >>> norm.running_mean
        tensor([5.])
    """
    count = len(_norms_with_statistics(model))
    if count:
        device, dtype = device_of(model), _dtype_of(model)
        batches = _batches_of(images, batch_size) if isinstance(images, ImageData) else images
        with averaging_batch_norm(model):
            for batch in batches:
                given = batch if isinstance(batch, Tensor) else batch[0]
                model(channels_last(given.to(device, dtype)))
    return count


def has_batch_norm(model: nn.Module) -> bool:
    """Say whether a network has BatchNorm statistics, which go stale when what lies before them changes."""
    return bool(_norms_with_statistics(model))


def _dtype_of(model: nn.Module) -> torch.dtype:
    """Return what a model computes in: its first weights'."""
    return next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)


def _batches_of(data: ImageData, batch_size: int) -> BatchLoader:
    loader = data.loader("holdout" if data.train is None else "train", batch_size, limit=_MOST_IMAGES, drop_last=True)
    if loader.num_images < _FEWEST_IMAGES:
        raise DataError(
            f"{data.name}: has a single image to measure BatchNorm statistics on, and one has no variance; "
            f"give {_FEWEST_IMAGES} or more"
        )
    return loader


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
