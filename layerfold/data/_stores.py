"""Where decoded images of one size are kept: in memory, or in a file. No torch."""

from __future__ import annotations

import io
import os
import shutil
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from layerfold.data._threads import for_each

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]
Sizes = NDArray[np.uint32]

# What a new file may take of the disk's free space.
MOST_OF_FREE_SPACE = 0.5


_SEEKING = threading.Lock()  # where a system knows no reading at a place, a file has one place for all threads


class PixelStore(Protocol):
    """Decoded images of one split, by place 0..n-1, each with the (height, width) that it was decoded from."""

    def stored(self, places: Places) -> Mask:
        """Say which of the images are here."""

    def read(self, places: Places) -> tuple[Mask, Pixels, Sizes]:
        """Return which of the images are here, and uint8 [places, height, width, channels] and uint32 [places, 2].

        What stands at places that are not here has no meaning.
        """

    def write(self, places: Places, pixels: Pixels, sizes: Sizes) -> None:
        """Keep images; raises OSError where that fails."""


class _DamagedError(Exception):
    """A cache file that is not what was written."""


class MemoryStore:
    """Images held in memory for as long as the split lives."""

    def __init__(self, count: int, shape: tuple[int, int, int]) -> None:
        self._count, self._shape = count, shape
        self._clear()

    def __getstate__(self) -> tuple[int, tuple[int, int, int]]:
        # A process that gets this store decodes its own images, when it needs them.
        return self._count, self._shape

    def __setstate__(self, state: tuple[int, tuple[int, int, int]]) -> None:
        self._count, self._shape = state
        self._clear()

    def _clear(self) -> None:
        count, shape = self._count, self._shape
        # Zeros take no memory until they are written.
        self._pixels = np.zeros((count, *shape), np.uint8)
        self._sizes = np.zeros((count, 2), np.uint32)
        self._is_stored = np.zeros(count, np.bool_)

    def stored(self, places: Places) -> Mask:
        return self._is_stored[places]

    def read(self, places: Places) -> tuple[Mask, Pixels, Sizes]:
        return self._is_stored[places], self._pixels[places], self._sizes[places]

    def write(self, places: Places, pixels: Pixels, sizes: Sizes) -> None:
        self._pixels[places], self._sizes[places] = pixels, sizes
        self._is_stored[places] = True


class FileStore:
    """Images in one ``.npy`` file with a record for every row of a table or folder.

    A record holds the image, the size it came from and a CRC-32 of both, of its number and of the file's name, and
    counts only where that holds: it is looked at each time. So the file is valid from the moment it is made, in any
    state; it is filled in any order, also by several processes at once (they write the same bytes); and a record that a
    killed writer left half done, that a disk damaged or that comes from another file is an image that is decoded and
    written again. The file is sparse: records never written take no space. It is opened for each batch and read as a
    file: a memory map would end the process where the file is cut short under it.

    Args:
        path: of the file; made at first use, and made again where it is damaged or cut short.
        count: records in the file.
        shape: (height, width, channels) of every image.
        rows: the record of each place of this split.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, int, int], rows: Places) -> None:
        self._path, self._count, self._rows = path, count, rows
        self._type = np.dtype([("pixels", "u1", shape), ("size", "<u4", (2,)), ("crc32", "<u4")])
        self._head = self._header()

    def stored(self, places: Places) -> Mask:
        return self.read(places)[0]

    def read(self, places: Places) -> tuple[Mask, Pixels, Sizes]:
        size = self._type.itemsize
        contents = np.empty((len(places), size), np.uint8)
        is_good = np.zeros(len(places), np.bool_)

        def read_one(index: int) -> None:
            row, content = int(self._rows[places[index]]), memoryview(contents[index])
            if _read_into(handle, content, len(self._head) + row * size) == size:  # else the file was cut short
                is_good[index] = self._checksum(row, content) == int.from_bytes(content[-4:], "little")

        with self._open() as handle:
            for_each(read_one, range(len(places)))
        records = contents.view(self._type)[:, 0]
        return is_good, records["pixels"], records["size"]

    def write(self, places: Places, pixels: Pixels, sizes: Sizes) -> None:
        record = np.zeros(1, self._type)
        content = record.view(np.uint8).data
        with self._open() as handle:
            for row, record["pixels"], record["size"] in zip(self._rows[places].tolist(), pixels, sizes, strict=True):
                record["crc32"] = self._checksum(row, content)
                _write_all(handle, content, len(self._head) + row * self._type.itemsize)

    def _checksum(self, row: int, content: memoryview) -> int:
        """Return the CRC-32 of a record but for its last four bytes, where it stands."""
        return zlib.crc32(content[:-4], zlib.crc32(f"{self._path.stem} {row}".encode(errors="surrogateescape")))

    @contextmanager
    def _open(self) -> Iterator[int]:
        """Yield a handle of the file, which is made where there is none that can be used.

        Raises:
            OSError: it can be neither read nor made, or would take too much of the disk's free space.
        """
        is_damaged = False
        try:
            handle = self._checked_handle()
        except FileNotFoundError:
            handle = -1
        except _DamagedError as error:
            handle, is_damaged = -1, True
            print(f"layerfold: the image cache {self._path} is damaged ({error}); begun again", file=sys.stderr)
        if handle == -1:
            self._make(is_damaged)
            try:
                handle = self._checked_handle()
            except _DamagedError as error:
                raise OSError(f"{self._path} changed while it was opened ({error})") from error
        try:
            yield handle
        finally:
            os.close(handle)

    def _checked_handle(self) -> int:
        # What np.load would do. But the header is known to the byte, so none has to be understood.
        handle = _open_file(self._path)
        try:
            status = os.fstat(handle)
            expected = len(self._head) + self._count * self._type.itemsize
            if not stat.S_ISREG(status.st_mode):
                raise _DamagedError("it is no file")
            if status.st_size != expected:
                raise _DamagedError(f"it has {status.st_size} bytes, not {expected}")
            head = bytearray(len(self._head))
            if _read_into(handle, memoryview(head), 0) != len(head) or head != self._head:
                raise _DamagedError("its header is another")
        except BaseException:
            os.close(handle)
            raise
        return handle

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
            raise OSError(
                f"it may grow to {needed / 2**20:,.0f} MiB, more than half of the {free / 2**20:,.0f} MiB "
                f"free in {folder}"
            )
        handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{self._path.stem}-", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(self._head)
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


def _open_file(path: Path) -> int:
    """Open for reading and writing, or for reading alone where nothing may be written; without waiting at a pipe."""
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, os.O_RDWR | flags)
    except (PermissionError, IsADirectoryError):
        return os.open(path, os.O_RDONLY | flags)


def _read_into(handle: int, content: memoryview, place: int) -> int:
    """Fill ``content`` from a place in a file, and return how many bytes were there; threads may do so at once."""
    if hasattr(os, "preadv"):
        return os.preadv(handle, [content], place)
    with _SEEKING:
        os.lseek(handle, place, os.SEEK_SET)
        found = os.read(handle, len(content))
    content[: len(found)] = found
    return len(found)


def _write_all(handle: int, content: memoryview, place: int) -> None:
    while content:
        with _SEEKING:
            os.lseek(handle, place, os.SEEK_SET)
            written = os.write(handle, content)
        content, place = content[written:], place + written
