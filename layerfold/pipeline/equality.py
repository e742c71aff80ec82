"""Two networks that should be one function: compared on real and on random images, in the images' own number range.

Zeros, or numbers of another range than the model was trained on, hide a scaling, a clamp and much else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from layerfold.data import ImageData
from layerfold.errors import EquivalenceError
from layerfold.finetune import first_images
from layerfold.graph.same_function import Difference, difference, eval_copy, run

MOST_DIFFERENCE = 1e-3
"""Of outputs in float32, relative to the largest one."""
_MOST_OF_VARIATION = 0.05
"""Relative to how much the outputs change from image to image, beside which a fault may be large."""
_NO_DIFFERENCE = 1e-6
"""In float64, relative to the largest output: merged weights are rounded to float32."""
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
    """Refuse two networks that give different answers, where one has the other's weights merged, and so rounded again.

    For networks with the very same weights :func:`layerfold.graph.check_same_function` is stricter.

    Args:
        found, expected: networks in one dtype, on the CPU; run in eval mode, without gradients.
        images: [images, channels, height, width], two or more.
        what: says of ``found`` what it is, and of ``expected`` what it should equal; the beginning of the error line.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        EquivalenceError: the difference is more than rounding makes.
    """
    pair = eval_copy(found), eval_copy(expected)
    plain = _difference(pair, images)
    if _is_rounding(plain):
        return plain.of_scale
    try:
        exact = _difference((pair[0].double(), pair[1].double()), images.double())
    except Exception:  # some networks make float32 tensors of their own
        exact = plain
    if _is_rounding(exact) or exact.of_scale <= _NO_DIFFERENCE:
        return plain.of_scale
    raise EquivalenceError(
        f"{what}: their answers to the same {len(images)} images differ by {plain.of_scale:.3g} of the largest (at "
        f"most {MOST_DIFFERENCE:g} is rounding) and by {plain.of_variation:.3g} of what they vary from image to image; "
        "use no result of it, and report this model as a bug in layerfold"
    )


def _difference(pair: tuple[nn.Module, nn.Module], images: Tensor) -> Difference:
    found, expected = ([run(each, (images,))] for each in pair)
    return difference(found, expected, [len(images)])


def _is_rounding(found: Difference) -> bool:
    return found.of_scale <= MOST_DIFFERENCE and found.of_variation <= _MOST_OF_VARIATION
