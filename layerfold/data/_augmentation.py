"""Augmentation of a batch of uint8 images. No torch.

NumPy slices, one image at a time: on two cores this takes 0.5 ms for 128 CIFAR images, several times less than one
gather over all pixels, and it does not compete with torch's threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def crop_and_flip(
    images_NHWC: NDArray[np.uint8], padding: int, flip: bool, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Shift each image at random by up to ``padding`` pixels each way (black moves in), and mirror half of them.

    Args:
        images_NHWC: [batch, height, width, channels].
        padding: pixels, at least 0.
        flip: whether images may be mirrored left to right.
        generator: source of randomness.

    Returns:
        A new array of the same shape.
    """
    count, height, width, _ = images_NHWC.shape
    padded = np.pad(images_NHWC, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    tops, lefts = generator.integers(0, 2 * padding + 1, size=(2, count))
    mirrored = generator.integers(0, 2, size=(count,))
    augmented = np.empty_like(images_NHWC)
    for index in range(count):
        top, left = int(tops[index]), int(lefts[index])
        window = padded[index, top : top + height, left : left + width]
        augmented[index] = window[:, ::-1] if flip and mirrored[index] else window
    return augmented
