"""Which images are kept decoded, and where. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from layerfold.cache_folder import default_cache_folder
from layerfold.data._decoded import DecodedImages, StoredImages
from layerfold.data._stores import FileStore, MemoryStore, Pixels, PixelStore, Places
from layerfold.errors import UsageError
from layerfold.files import JsonObject

# Files of another layout, or of another way to make pixels of an image, have other names; so have those of other
# versions of Pillow. 2: images of 16 bits are scaled.
_LAYOUT = 2


class ImageCache:
    """Gives each split its store: the file of its source, else memory, else none.

    Args:
        folder: of the files; None for the user's folder for caches, ``"off"`` for no files.
        most_memory_bytes: a split whose pixels need more is never held in memory.

    Raises:
        UsageError: ``folder`` is no folder.
    """

    def __init__(self, folder: str | Path | None, most_memory_bytes: int) -> None:
        if folder is not None and str(folder) != "off" and not _may_be_folder(str(folder)):
            raise UsageError(
                f"cache={str(folder)!r}: is no folder; give a folder (it is made where there is none), or off"
            )
        self._most_memory_bytes = most_memory_bytes
        self._folder: Path | None = default_cache_folder() / "images" if folder is None else Path(folder)
        if str(folder) == "off":
            self._folder = None

    def fits_memory(self, count: int, shape: tuple[int, ...]) -> bool:
        """Say whether that many images of this shape may be held in memory."""
        return count * int(np.prod(shape)) <= self._most_memory_bytes

    def decoded(
        self,
        source: StoredImages,
        rows: Places,
        shape: tuple[int, int, int],
        decode: Callable[[Any], Pixels],
        identity: JsonObject,
    ) -> DecodedImages:
        """Return the images at ``rows`` of ``source``.

        Args:
            source: the images.
            rows: of the split.
            shape: (height, width, channels) once decoded.
            decode: makes such an array of a Pillow image.
            identity: plain values that decide the pixels of ``source``'s rows, beside the shape.
        """
        # No closure: a split may go to another process.
        spare = partial(_memory, len(rows), shape, self.fits_memory(len(rows), shape))
        if self._folder is None:
            return DecodedImages(source, rows, shape, decode, spare(), spare)
        path = self._folder / f"{_key(shape, identity)}.npy"
        # One file for all rows of the source: another split of the same images finds them there.
        store = FileStore(path, len(source.labels), shape, rows)
        return DecodedImages(source, rows, shape, decode, store, spare)

    def headers_seen(self, identity: JsonObject) -> bool:
        """Say whether :meth:`keep_headers_seen` was told of these images, in this run or another."""
        return self._folder is not None and (self._folder / f"{_key((0, 0, 0), identity)}.headers").is_file()

    def keep_headers_seen(self, identity: JsonObject) -> None:
        """Remember that the headers of all images were looked at, and all could be read."""
        if self._folder is not None:
            with suppress(OSError):  # looked at again next time
                self._folder.mkdir(parents=True, exist_ok=True)
                (self._folder / f"{_key((0, 0, 0), identity)}.headers").touch()


def _may_be_folder(path: str) -> bool:
    """Say whether a folder is at a path, or could be made there."""
    known = next(each for each in (Path(path).absolute(), *Path(path).absolute().parents) if os.path.lexists(each))
    return bool(path) and known.is_dir()


def _memory(count: int, shape: tuple[int, int, int], fits: bool) -> PixelStore | None:
    return MemoryStore(count, shape) if fits else None


def _key(shape: tuple[int, int, int], identity: JsonObject) -> str:
    import PIL

    text = json.dumps([_LAYOUT, PIL.__version__, shape, identity], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
