"""What a model says of its images: size, normalisation, resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from layerfold.arguments import image_shape, shown
from layerfold.errors import UsageError

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Facts that a model states of its images, by timm's names; by default as ImageNet's are prepared.

    Attributes:
        input_size: (channels, height, width).
        mean, std: one number per channel.
        interpolation: by which images are resized.
        crop_pct: share of the image's side that is kept.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875


def image_config(module: nn.Module, source: str) -> ImageConfig:
    """Return the settings in a module's ``pretrained_cfg``, and the default for those that it does not have.

    Raises:
        UsageError: one is of a wrong type or outside its range.
    """
    found = getattr(module, "pretrained_cfg", None) or {}
    said = {}
    for each in fields(ImageConfig):
        value = found.get(each.name) if isinstance(found, dict) else getattr(found, each.name, None)
        if value is not None:
            said[each.name] = _checked(each.name, value, f"MODEL={source!r}: its pretrained_cfg")
    return ImageConfig(**said)


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return three channels' numbers for another number of channels: their average for each."""
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (sum(float(value) for value in values) / len(values),) * channels


def _checked(key: str, value: Any, where: str) -> Any:
    if key == "input_size":
        return image_shape(f"{where}: input_size", value)
    if key == "interpolation":
        if not isinstance(value, str):
            raise UsageError(f"{where}: interpolation={shown(value)}: must be a name, for example bicubic")
        return value
    if key == "crop_pct":
        if not _is_number(value) or not 0 < value <= 1:
            raise UsageError(f"{where}: crop_pct={shown(value)}: must be above 0 and at most 1")
        return float(value)
    numbers = [value] if _is_number(value) else value
    if not isinstance(numbers, (list, tuple)) or not numbers or not all(_is_number(each) for each in numbers):
        raise UsageError(f"{where}: {key}={shown(value)}: must be numbers, one per channel")
    if key == "std" and min(numbers) <= 0:
        raise UsageError(f"{where}: std={shown(value)}: must be above 0")
    return tuple(float(each) for each in numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
