"""Images of one split, decoded when they are first asked for. No torch."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from layerfold.data._encoded import reason_of
from layerfold.data._stores import Mask, Pixels, PixelStore, Places, Sizes
from layerfold.data._threads import for_each
from layerfold.errors import DataError

_DECODED_TOGETHER = 512


class StoredImages(Protocol):
    """Images as a source has them, row by row."""

    labels: NDArray[np.int64]
    is_encoded: bool
    """Whether a file or its bytes have to be decoded, which may fail."""

    def open(self, row: int) -> AbstractContextManager[Any]:
        """Return a Pillow image to be used within a ``with``, which need not be decoded yet."""

    def locate(self, row: int) -> str:
        """Say where the row comes from, for an error: file and row."""


class DecodedImages:
    """The images at some rows of a source, all of one size.

    Args:
        source: the images.
        rows: their rows in the source.
        shape: (height, width, channels) once decoded.
        decode: makes such an array (uint8) of a Pillow image.
        store: keeps what is decoded; None to decode each time.
        spare: makes the store that takes over where ``store`` cannot be written.
    """

    def __init__(
        self,
        source: StoredImages,
        rows: Places,
        shape: tuple[int, int, int],
        decode: Callable[[Any], Pixels],
        store: PixelStore | None,
        spare: Callable[[], PixelStore | None],
    ) -> None:
        self._source, self._rows, self._shape, self._decode = source, rows, shape, decode
        self._store, self._spare = store, spare

    def read(self, places: Places) -> tuple[Pixels, Sizes]:
        """Return uint8 [places, height, width, channels], and the (height, width) that each was decoded from.

        Raises:
            DataError: a broken image; names its file and row.
        """
        is_stored, pixels, sizes = self._read_stored(places)
        absent = np.flatnonzero(~is_stored)

        def decode(index: int) -> None:
            pixels[index], sizes[index] = self._decoded(int(self._rows[places[index]]))

        for_each(decode, absent.tolist())
        if self._store is not None and len(absent):
            try:
                self._store.write(places[absent], pixels[absent], sizes[absent])
            except OSError as error:
                self._give_up(error)
        return pixels, sizes

    def fill(self) -> None:
        """Decode every image that is not stored yet."""
        for first in range(0, len(self._rows), _DECODED_TOGETHER):
            places = np.arange(first, min(first + _DECODED_TOGETHER, len(self._rows)))
            self.read(places)

    def _read_stored(self, places: Places) -> tuple[Mask, Pixels, Sizes]:
        if self._store is not None:
            try:
                return self._store.read(places)
            except OSError as error:
                self._give_up(error)
                return self._read_stored(places)
        count = len(places)
        return np.zeros(count, np.bool_), np.empty((count, *self._shape), np.uint8), np.empty((count, 2), np.uint32)

    def _give_up(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        is_barred = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        remedy = "make it writable" if is_barred else "free some space there"
        print(
            f"layerfold: images are not cached on disk: {reason}; {remedy}, or name another folder with --image-cache",
            file=sys.stderr,
        )
        self._store = self._spare()

    def _decoded(self, row: int) -> tuple[Pixels, tuple[int, int]]:
        try:
            with self._source.open(row) as image:
                return self._decode(image), (image.height, image.width)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for broken files
            raise unreadable(self._source, row, error) from error


def unreadable(source: StoredImages, row: int, error: Exception) -> DataError:
    """Return the error to raise for an image that could not be read."""
    return DataError(f"{source.locate(row)}: not a readable image ({reason_of(error)}); repair or remove it")
