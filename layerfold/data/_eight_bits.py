"""From any Pillow image to grey or colour of 8 bits: the one place where pixels of other kinds are scaled. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of a TIFF file, and a value
_ON_THE_WAY = {"La": "LA", "LAB": "RGB"}  # Pillow knows no direct way from these to every mode
_ROUNDING = 1e-5
"""How far a float image may leave 0..1: what rounding does, not another range."""


def in_eight_bits(image: Any, channels: int) -> Any:
    """Return a Pillow image in mode L or RGB.

    Images of 8 bits are converted as Pillow does it, which is what timm and torchvision do: transparency is left out.
    Unsigned integers of more bits are scaled by the range of their type (16 bits: by 65,535), floats by 1. The first of
    several frames is taken.

    Args:
        image: a Pillow image of any mode, opened.
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: pixels whose range is not known: 32-bit or signed integers, floats that are not within 0..1.
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = _scaled(image)
    if image.mode in _ON_THE_WAY:
        image = image.convert(_ON_THE_WAY[image.mode])
    return image.convert("L" if channels == 1 else "RGB")


def check_mode(image: Any) -> None:
    """Raise the ``ValueError`` of ``in_eight_bits`` where the header alone tells that no pixels can be made."""
    if image.mode == "I":
        _range_of(image)


def _scaled(image: Any) -> Any:
    from PIL import Image

    values = np.asarray(image)
    grey = _from_floats(values) if image.mode == "F" else _from_integers(values, _range_of(image))
    if _tags(image).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow turns only images of 8 bits round
        grey = 255 - grey
    return Image.fromarray(grey)


def _range_of(image: Any) -> int:
    """Return the largest value that the pixels of an integer image could have."""
    if image.mode != "I":  # I;16, I;16B, ...: some TIFF files use only 12 of the bits
        bits = _tags(image).get(_BITS_PER_SAMPLE, (16,))
        return int(2 ** bits[0] - 1)
    # Pillow scales PGM files of more than 8 bits to 16, and older versions open PNG files of 16 bits in this mode.
    if image.format in ("PPM", "PNG"):
        return 65535
    raise ValueError(
        "its pixels are 32-bit or signed integers, of which no file says the range; save it with unsigned 8 or 16 bits"
    )


def _from_integers(values: NDArray[Any], largest: int) -> NDArray[np.uint8]:
    wide = values.astype(np.int64)
    return np.asarray((wide * 255 + largest // 2) // largest).clip(0, 255).astype(np.uint8)


def _from_floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise ValueError("some of its float pixels are NaN or infinite")
    lowest, highest = float(values.min(initial=0)), float(values.max(initial=0))
    if lowest < -_ROUNDING or highest > 1 + _ROUNDING:
        raise ValueError(
            f"its float pixels lie in {lowest:g}..{highest:g}, and only 0..1 has a meaning; divide them "
            "by their range, or save it with 8 or 16 bits"
        )
    scaled: NDArray[np.uint8] = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return scaled


def _tags(image: Any) -> Any:
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
