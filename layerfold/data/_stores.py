"""Where decoded images of one size are kept: in memory, or in a memory-mapped file. No torch."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
Sizes = NDArray[np.uint32]

# What a new file may take of the disk's free space.
MOST_OF_FREE_SPACE = 0.5


class PixelStore(Protocol):
    """Decoded images of one split, by place 0..n-1, each with the (height, width) that it was decoded from."""

    def stored(self, places: Places) -> Mask:
        """Say which of the images are here."""

    def read(self, places: Places) -> tuple[Pixels, Sizes]:
        """Return uint8 [places, height, width, channels] and uint32 [places, 2] of images that are here."""

    def write(self, places: Places, pixels: Pixels, sizes: Sizes) -> None:
        """Keep images; raises OSError where that fails."""


class _DamagedError(Exception):
    """A cache file that is not what was written."""


class MemoryStore:
    """Images held in memory for as long as the split lives."""

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self._count, self._shape = count, shape
        self._clear()

    def __getstate__(self) -> dict[str, Any]:
        # A process that gets this store decodes its own images, when it needs them.
        return {"_count": self._count, "_shape": self._shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def _clear(self) -> None:
        count, shape = self._count, self._shape
        # Zeros take no memory until they are written.
        self._pixels = np.zeros((count, *shape), np.uint8)
        self._sizes = np.zeros((count, 2), np.uint32)
        self._is_stored = np.zeros(count, np.bool_)

    def stored(self, places: Places) -> Mask:
        return self._is_stored[places]

    def read(self, places: Places) -> tuple[Pixels, Sizes]:
        return self._pixels[places], self._sizes[places]

    def write(self, places: Places, pixels: Pixels, sizes: Sizes) -> None:
        self._pixels[places], self._sizes[places] = pixels, sizes
        self._is_stored[places] = True


class MappedStore:
    """Images in one ``.npy`` file with a record for every row of a table or folder, read through a memory map.

    A record holds the image, the size it came from and a CRC-32 of both, and counts only where that holds: it is looked
    at once a process. So the file is valid from the moment it is made, in whatever state; it is filled in any order,
    also by several processes at once (they write the same bytes); and a record that a killed writer left half done, or
    that a disk damaged, is an image that is decoded and written again. The file is sparse: records never written take
    no space.

    Args:
        path: of the file; made at first use, and made anew where it is damaged or cut short.
        count: records in the file.
        shape: (height, width, channels) of every image.
        rows: the record of each place of this split.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int], rows: Places) -> None:
        self._path, self._count, self._rows = path, count, rows
        self._type = np.dtype([("pixels", "u1", shape), ("size", "<u4", (2,)), ("crc32", "<u4")])
        self._is_checked = np.zeros(len(rows), np.bool_)
        self._map: np.memmap[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A process that gets this store maps the file for itself.
        return {**self.__dict__, "_map": None}

    def open(self) -> None:
        """Map the file, and make it where there is none that can be used.

        Raises:
            OSError: it can be neither read nor made, or would take too much of the disk's free space.
        """
        if self._map is not None:
            return
        try:
            self._map = self._mapped()
            return
        except FileNotFoundError:
            is_damaged = False
        except _DamagedError as error:
            is_damaged = True
            print(f"layerfold: the image cache {self._path} is damaged ({error}); begun anew", file=sys.stderr)
        self._make(is_damaged)
        try:
            self._map = self._mapped()
        except _DamagedError as error:
            raise OSError(f"{self._path} changed while it was opened ({error})") from error

    def stored(self, places: Places) -> Mask:
        self.open()
        unknown = np.unique(places[~self._is_checked[places]])
        if len(unknown):
            records = self._records()[self._rows[unknown]]
            for place, record in zip(unknown, records, strict=True):
                self._is_checked[place] = _checksum(record["pixels"], record["size"]) == int(record["crc32"])
        return self._is_checked[places]

    def read(self, places: Places) -> tuple[Pixels, Sizes]:
        self.open()
        records, rows = self._records(), self._rows[places]
        return records["pixels"][rows], records["size"][rows]

    def write(self, places: Places, pixels: Pixels, sizes: Sizes) -> None:
        self.open()
        assert self._map is not None
        records = np.empty(len(places), self._type)
        records["pixels"], records["size"] = pixels, sizes
        for record in records:
            record["crc32"] = _checksum(record["pixels"], record["size"])
        # Written as a file, not through the map: on a full disk a write raises, a map would end the process.
        with self._path.open("r+b", buffering=0) as stream:
            for row, record in zip(self._rows[places], records, strict=True):
                stream.seek(self._map.offset + int(row) * self._type.itemsize)
                _write_all(stream, memoryview(record.tobytes()))

    def _records(self) -> NDArray[Any]:
        assert self._map is not None
        return np.asarray(self._map)

    def _mapped(self) -> np.memmap[Any, Any]:
        # What np.load does with mmap_mode="r". But the header is known to the byte, so none has to be understood.
        header, size = self._header(), self._path.stat().st_size
        expected = len(header) + self._count * self._type.itemsize
        if size != expected:
            raise _DamagedError(f"it has {size} bytes, not {expected}")
        with self._path.open("rb") as stream:
            if stream.read(len(header)) != header:
                raise _DamagedError("its header is another")
        return np.memmap(self._path, self._type, mode="r", offset=len(header), shape=(self._count,))

    def _header(self) -> bytes:
        description = np.lib.format.dtype_to_descr(self._type)
        stream = io.BytesIO()
        np.lib.format.write_array_header_2_0(
            stream, {"descr": description, "fortran_order": False, "shape": (self._count,)}
        )
        return stream.getvalue()

    def _make(self, is_damaged: bool) -> None:
        """Write the header of an empty file under another name, then give it its own in one step."""
        folder = self._path.parent
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = self._count * self._type.itemsize, shutil.disk_usage(folder).free
        if needed > MOST_OF_FREE_SPACE * free:
            raise OSError(f"it may grow to {needed / 2**20:,.0f} MiB, more than half of the {free / 2**20:,.0f} MiB "
                          f"free in {folder}")
        handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{self._path.stem}-", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(self._header())
                stream.truncate(stream.tell() + needed)
            if is_damaged:
                os.replace(partial, self._path)
            else:
                _name_if_new(partial, self._path)
        finally:
            Path(partial).unlink(missing_ok=True)


def _name_if_new(partial: str, path: Path) -> None:
    """Name the file ``path``, unless another process was first: then its file is used, with what it already holds."""
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(partial, path)


def _checksum(pixels: NDArray[np.uint8], size: NDArray[np.uint32]) -> int:
    return zlib.crc32(size.tobytes(), zlib.crc32(pixels.tobytes()))


def _write_all(stream: Any, data: memoryview) -> None:
    while data:
        data = data[stream.write(data) :]
