"""From encoded bytes to the pixels a model sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from layerfold.data._eight_bits import in_eight_bits
from layerfold.data._encoded import check_header, opened
from layerfold.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# 320 for an input of 224: a random crop takes 0.44 of the area on average, 0.66 of a side, and so about 212 pixels.
_WHOLE = 10 / 7
_MOST_RESIZED = 10**8
"""Pixels of a resized image before its centre is cut out."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "hamming", "box")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resize, centre crop, normalise: timm's transform for evaluation.

    Attributes:
        input_shape: (channels, height, width); one channel is read as grey.
        mean, std: per channel, for images in 0..1.
        interpolation: how images are resized.
        crop_pct: the short side is resized to the crop's size / ``crop_pct`` before the centre crop.
        is_resized: False where the stored images already have the input size: they are taken as they are.
    """

    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    is_resized: bool = True

    def __post_init__(self) -> None:
        channels = self.input_shape[0]
        if channels not in (1, 3):
            raise UsageError(f"input_shape={self.input_shape}: images have 1 or 3 channels")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise UsageError(f"{name}={values}: the input has {channels} channels; give {channels} numbers")
            if not all(map(_is_finite, values)):
                raise UsageError(f"{name}={values}: every number must be finite")
        if not all(value > 0 for value in self.std):
            raise UsageError(f"std={self.std}: every number must be above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation={self.interpolation!r}: must be one of {', '.join(INTERPOLATIONS)}")
        if not 0 < self.crop_pct <= 1:
            raise UsageError(f"crop_pct={self.crop_pct}: must be above 0 and at most 1")

    @property
    def whole_size(self) -> tuple[int, int]:
        """(height, width) at which a whole image is kept for random crops: enough for an average one."""
        height, width = self.input_shape[1:]
        return (round(height * _WHOLE), round(width * _WHOLE)) if self.is_resized else (height, width)

    def pixels(self, encoded: Path | bytes) -> NDArray[np.uint8]:
        """Return the image in a file or in bytes as uint8 [height, width, channels].

        Raises:
            Exception: whatever it is that makes the image unreadable; ``reason_of`` says it in words.
        """
        with opened(encoded) as image:
            self.check(image)
            return self.fit(image)

    def check(self, image: Any) -> None:
        """Raise a ``ValueError`` where the header of an opened image shows that no input can be made of it."""
        check_header(image)
        self._check_proportions(image)

    def _check_proportions(self, image: Any) -> None:
        # An image is resized until it covers the input: of a line of pixels that would make gigabytes.
        height, width = self.input_shape[1:]
        scale = max(height / image.height, width / image.width) / self.crop_pct
        if image.width * image.height * scale**2 > _MOST_RESIZED:
            raise ValueError(f"it has {image.width} x {image.height} pixels: resized, one side would be far too long")

    def fit(self, image: Any) -> NDArray[np.uint8]:
        """Return a Pillow image as the model sees it, uint8 [height, width, channels]."""
        self._check_proportions(image)
        image = in_eight_bits(image, self.input_shape[0])
        height, width = self.input_shape[1:]
        if self.is_resized or image.size != (width, height):
            pixels = np.moveaxis(np.asarray(self._resize(image)), 0, -1)
        else:
            pixels = np.asarray(image)
        return pixels.reshape(height, width, self.input_shape[0])

    def squash(self, image: Any) -> NDArray[np.uint8]:
        """Return a whole Pillow image, its sides changed to ``whole_size``, uint8 [height, width, channels]."""
        height, width = self.whole_size
        resized = in_eight_bits(image, self.input_shape[0]).resize((width, height), self.pillow_interpolation)
        return np.asarray(resized).reshape(height, width, self.input_shape[0])

    @cached_property
    def pillow_interpolation(self) -> Any:
        """Pillow's name of ``interpolation``."""
        from PIL import Image

        return Image.Resampling[self.interpolation.upper()]

    @cached_property
    def _resize(self) -> Callable[[Any], NDArray[np.uint8]]:
        from timm.data.transforms_factory import transforms_imagenet_eval

        transform: Callable[[Any], NDArray[np.uint8]] = transforms_imagenet_eval(
            img_size=self.input_shape[1:], crop_pct=self.crop_pct, interpolation=self.interpolation, use_prefetcher=True
        )
        return transform

    def normalise(self, images_NHWC: NDArray[np.uint8]) -> Tensor:
        """Return float32 [batch, channels, height, width], stored channels last, of uint8 [batch, h, w, channels]."""
        count, height, width, channels = images_NHWC.shape
        mean = np.tile(np.asarray(self.mean, dtype=np.float32) * 255, width)
        scale = np.tile(1 / (np.asarray(self.std, dtype=np.float32) * 255), width)
        # Whole rows at a time: an inner loop over three channels would be many times slower.
        rows = images_NHWC.reshape(count * height, width * channels).astype(np.float32)
        rows -= mean
        rows *= scale
        return torch.from_numpy(rows.reshape(images_NHWC.shape)).permute(0, 3, 1, 2)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """Say whether a value is a whole number (no bool) of at least 1."""
    return isinstance(value, (int, np.integer)) and type(value) is not bool and int(value) >= 1


def default_normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return ImageNet's mean and std per channel; for another number of channels, their average."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (sum(IMAGENET_MEAN) / 3,) * channels, (sum(IMAGENET_STD) / 3,) * channels
