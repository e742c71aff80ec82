"""Two networks that should be one function: compared on real and on random images, in the images' own number range.

Zeros, or numbers of another range than the model was trained on, hide a scaling, a clamp and much else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from layerfold.data import ImageData
from layerfold.errors import EquivalenceError, LayerfoldError
from layerfold.finetune import first_images
from layerfold.graph.copying import copy_module

MOST_DIFFERENCE = 1e-3
"""In float32, relative to the largest output."""
_MOST_IN_FLOAT64 = 1e-7
"""In float64, by which a difference above is told from rounding."""
_NUM_EACH = 3


def probe_images(data: ImageData, seed: int = 0) -> Tensor:
    """Return the first images of the holdout, and as many of noise between their least and their largest value."""
    real = first_images(data, _NUM_EACH)
    generator = torch.Generator().manual_seed(seed)
    low, high = float(real.min()), float(real.max())
    noise = low + (high - low) * torch.rand(_NUM_EACH, *real.shape[1:], generator=generator)
    return torch.cat([real, noise])


def batches_of(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield all images in batches of ``size``, which an ONNX file fixes; the last one is filled up from the first."""
    for start in range(0, len(images), size):
        rows = torch.arange(start, start + size) % len(images)
        yield images[rows]


def check_same(found: nn.Module, expected: nn.Module, images: Tensor, what: str) -> float:
    """Refuse two networks that give different answers.

    Args:
        found, expected: networks in float32, on the CPU; run in eval mode, without gradients.
        images: [images, channels, height, width].
        what: says of ``found`` what it is, and of ``expected`` what it should equal; the beginning of the error line.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        EquivalenceError: the difference is more than rounding makes.
    """
    difference = _difference(found, expected, images)
    if difference <= MOST_DIFFERENCE:
        return difference
    try:
        precise = [copy_module(each).double() for each in (found, expected)]
        exact = _difference(precise[0], precise[1], images.double())
    except LayerfoldError:
        raise
    except Exception:  # some networks make float32 tensors of their own
        exact = difference
    if exact <= _MOST_IN_FLOAT64:
        return difference
    raise EquivalenceError(
        f"{what}: their answers on the first images of the data and on noise like them differ by {difference:.3g} of "
        f"the largest, more than {MOST_DIFFERENCE:g}; report this model as a bug in layerfold"
    )


@torch.no_grad()
def _difference(found: nn.Module, expected: nn.Module, images: Tensor) -> float:
    """Return the largest difference of all outputs, relative to the largest value of each; infinity of other shapes."""
    ours, theirs = (_outputs(each, images) for each in (found, expected))
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        return float("inf")
    most = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        if not torch.equal(mine.isfinite(), other.isfinite()):
            return float("inf")
        finite = other.isfinite()
        if finite.any():
            scale = float(other[finite].abs().max().clamp_min(1e-30))
            most = max(most, float((mine[finite] - other[finite]).abs().max()) / scale)
    return most


def _outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    modes = [(module, module.training) for module in network.modules()]
    try:
        value: Any = network.eval()(images)
    finally:
        for module, training in modes:
            module.training = training
    return [each.double() for each in _pytree.tree_leaves(value) if isinstance(each, Tensor)]
