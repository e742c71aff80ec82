"""Opening encoded images that somebody else made: regular files only, known formats only, bounded sizes. No torch."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from layerfold.data._eight_bits import check_mode
from layerfold.terminal import name_text

# Not all that Pillow knows: it would hand what looks like PostScript to another program, for example.
_FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
)
_HAVE_FRAMES = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")  # where others than the first mean something; photos as MPO don't


@contextmanager
def opened(encoded: Path | bytes | BinaryIO) -> Iterator[Any]:
    """Yield the Pillow image of a file, of bytes or of a stream; its pixels are decoded when they are first used.

    Raises:
        OSError: no regular file, or one that cannot be read.
        ValueError: empty, no image of a known format, or more pixels than Pillow decodes.
        Exception: what else Pillow raises for a damaged header; :func:`reason_of` says it in words.
    """
    from PIL import Image

    _quiet_pillow()
    with _stream(encoded) as stream, Image.open(stream, formats=_formats()) as image:
        yield image


def check_header(image: Any) -> None:
    """Raise a ``ValueError`` where the header of an opened image shows that it cannot be used: no pixels, no range."""
    if min(image.size) < 1:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    check_mode(image)


def has_frames(image: Any) -> bool:
    """Say whether an opened image has others behind the first."""
    return image.format in _HAVE_FRAMES and bool(getattr(image, "is_animated", False))


def reason_of(error: Exception) -> str:
    """Return in a few words why an image could not be read."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its own text has an address in memory
        return "is no image that Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"it has more pixels than the {most:,} that are decoded at most, and could fill the memory"
    if isinstance(error, MemoryError):
        return "there is too little memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return name_text(" ".join(str(error).split()))[:160] or type(error).__name__


@contextmanager
def _stream(encoded: Path | bytes | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(encoded, bytes):
        encoded = io.BytesIO(encoded)
    if not isinstance(encoded, Path):
        if not encoded.seek(0, os.SEEK_END):
            raise ValueError("it is empty")
        encoded.seek(0)
        yield encoded
        return
    # Without O_NONBLOCK opening a pipe waits for whoever writes to it.
    handle = os.open(encoded, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as stream:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a folder, a pipe or a device, not a file")
        if not status.st_size:
            raise ValueError("it is empty")
        yield stream


@cache
def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _quiet_pillow() -> None:
    """Keep Pillow's warnings about users' files off the terminal: what matters of them is said in our own words."""
    rule = r"PIL\."
    # Looked up each time: whoever calls this program as a library may have set the filters again.
    if not any(
        action == "ignore" and getattr(module, "pattern", "") == rule
        for action, _, _, module, _ in warnings.filters[:3]
    ):
        warnings.filterwarnings("ignore", module=rule)
