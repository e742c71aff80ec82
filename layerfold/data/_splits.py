"""One split of a data set: decoded once where it fits into memory, else image by image."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layerfold.data._augmentation import crop_and_flip
from layerfold.data._preprocessing import Preprocessing
from layerfold.errors import DataError

Batch = tuple[Tensor, Tensor]
_DECODED_TOGETHER = 64
_FEW = 8
"""One image in so many: these are decoded alone, for a start without delay; training comes back for the others."""


class EncodedImages(Protocol):
    """Images as they are stored, row by row."""

    labels: NDArray[np.int64]

    def read(self, row: int) -> bytes:
        """Return the encoded image."""

    def locate(self, row: int) -> str:
        """Say where the row comes from, for an error: file and row."""


class Split(Dataset[tuple[Tensor, int]]):
    """Images and labels; item i is (float [channels, height, width], normalised; int label)."""

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self[index] for index in range(len(self)))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Class of each image, or None where only reading them all would tell."""
        return None

    def batches(self, chosen: Sequence[Sequence[int]], seeds: Sequence[int] | None) -> Iterator[Batch]:
        """Yield (images, labels) for each list of rows.

        Args:
            chosen: rows of each batch.
            seeds: of each batch's augmentation; None for none.
        """
        raise NotImplementedError

    def preload(self) -> None:
        """Decode now what would be decoded at first use."""


class ArraySplit(Split):
    """A split whose pixels are held as one uint8 array [images, height, width, channels], filled at first use."""

    def __init__(
        self, images: EncodedImages, rows: NDArray[np.int64], preprocessing: Preprocessing,
        *, crop_padding: int, flip: bool,
    ) -> None:
        self._source, self._rows, self._preprocessing = images, rows, preprocessing
        self._crop_padding, self._flip = crop_padding, flip
        self._labels = torch.from_numpy(images.labels[rows])
        self._pixels: NDArray[np.uint8] | None = None
        self._decoding = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Go to another process without pixels: it decodes its own, when it needs them."""
        return {**self.__dict__, "_pixels": None, "_decoding": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _decoding=threading.Lock())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._preprocessing.normalise(self.pixels[index][None])[0]
        return image.contiguous(), int(self._labels[index])

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._source.labels[self._rows]

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 [images, height, width, channels]."""
        with self._decoding:
            if self._pixels is None:
                self._pixels = decode_rows(self._source, self._rows, self._preprocessing)
        return self._pixels

    def preload(self) -> None:
        _ = self.pixels

    def batches(self, chosen: Sequence[Sequence[int]], seeds: Sequence[int] | None) -> Iterator[Batch]:
        is_whole = self._pixels is not None or seeds is not None or _FEW * sum(map(len, chosen)) > len(self)
        for number, rows in enumerate(chosen):
            images = self.pixels[rows] if is_whole else decode_rows(self._source, self._rows[rows], self._preprocessing)
            if seeds is not None:
                generator = np.random.default_rng(seeds[number])
                images = crop_and_flip(images, self._crop_padding, self._flip, generator)
            yield self._preprocessing.normalise(images), self._labels[rows]


class FileSplit(Split):
    """A split too large to hold decoded: every image is read when it is needed, by worker processes."""

    def __init__(self, images: EncodedImages, rows: NDArray[np.int64], preprocessing: Preprocessing) -> None:
        self._source, self._rows, self._preprocessing = images, rows, preprocessing

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._item(index, augment=False)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._source.labels[self._rows]

    def batches(self, chosen: Sequence[Sequence[int]], seeds: Sequence[int] | None) -> Iterator[Batch]:
        dataset = _ItemsBy(len(self), partial(self._item, augment=seeds is not None))
        yield from worker_batches(dataset, chosen, seeds[0] if seeds else 0)

    def _item(self, index: int, augment: bool) -> tuple[Tensor, int]:
        row = int(self._rows[index])
        label = int(self._source.labels[row])
        if not augment:
            pixels = _decode(self._source, row, self._preprocessing)
            return self._preprocessing.normalise(pixels[None])[0], label
        image = _guarded(self._source, row, self._preprocessing.open_image)
        return self._preprocessing.training_transform(image), label


class DatasetSplit(Split):
    """A torch Dataset of the user's own, already normalised, and augmented by itself if at all."""

    def __init__(self, dataset: Any, num_classes: int, input_shape: tuple[int, int, int], name: str) -> None:
        self._dataset, self._num_classes, self._input_shape, self._name = dataset, num_classes, input_shape, name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self._dataset[index]
        label = int(label)
        if not isinstance(image, Tensor) or tuple(image.shape) != self._input_shape:
            found = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise DataError(f"{self._name}, item {index}: expected a tensor {self._input_shape}, found {found}")
        if not 0 <= label < self._num_classes:
            raise DataError(f"{self._name}, item {index}: label {label} is outside 0..{self._num_classes - 1}")
        return image.float(), label

    def batches(self, chosen: Sequence[Sequence[int]], seeds: Sequence[int] | None) -> Iterator[Batch]:
        yield from worker_batches(self, chosen, seeds[0] if seeds else 0, workers=0)


class _ItemsBy(Dataset[tuple[Tensor, int]]):
    """A Dataset whose items come from a function."""

    def __init__(self, length: int, item: Any) -> None:
        self._length, self._item = length, item

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        found: tuple[Tensor, int] = self._item(index)
        return found


def worker_batches(
    dataset: Dataset[tuple[Tensor, int]], chosen: Sequence[Sequence[int]], seed: int, workers: int | None = None
) -> Iterator[Batch]:
    """Yield the batches of ``chosen`` through a torch DataLoader."""
    loader = DataLoader(
        _ErrorsAsItems(dataset),
        batch_sampler=[list(map(int, rows)) for rows in chosen],
        num_workers=min(os.cpu_count() or 1, 8) if workers is None else workers,
        collate_fn=_collate,
        # Its own generator: a DataLoader would otherwise draw from torch's global one, and change the caller's numbers.
        generator=torch.Generator().manual_seed(seed),
    )
    batches, failed = iter(loader), None
    for batch in batches:
        if isinstance(batch, DataError):
            failed = batch
            break
        yield batch
    # Not in a traceback's hands: the workers of an iterator that waits for the garbage collector end 10 s late.
    del batches
    if failed is not None:
        raise failed


class _ErrorsAsItems(Dataset[Any]):
    """A Dataset that returns a ``DataError`` as the item, so that it leaves a worker process without a traceback."""

    def __init__(self, dataset: Dataset[tuple[Tensor, int]]) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DataError:
        try:
            return self._dataset[index]
        except DataError as error:
            return DataError(str(error))


def _collate(items: list[tuple[Tensor, int] | DataError]) -> Batch | DataError:
    images, labels = [], []
    for item in items:
        if isinstance(item, DataError):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)


def decode_rows(
    source: EncodedImages, rows: NDArray[np.int64], preprocessing: Preprocessing
) -> NDArray[np.uint8]:
    """Decode rows into one uint8 array [rows, height, width, channels], on all cores (Pillow frees the lock)."""
    channels, height, width = preprocessing.input_shape
    pixels = np.empty((len(rows), height, width, channels), dtype=np.uint8)

    def fill(first: int) -> None:
        for place in range(first, min(first + _DECODED_TOGETHER, len(rows))):
            pixels[place] = _decode(source, int(rows[place]), preprocessing)

    with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
        # `list` hands on the first error; the others are cancelled with the pool.
        list(pool.map(fill, range(0, len(rows), _DECODED_TOGETHER)))
    return pixels


def _decode(source: EncodedImages, row: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = _guarded(source, row, preprocessing.pixels)
    return pixels


def _guarded(source: EncodedImages, row: int, decode: Any) -> Any:
    try:
        return decode(source.read(row))
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for broken files
        text = " ".join(str(error).split())[:120]
        raise DataError(f"{source.locate(row)}: not a readable image ({text}); repair or remove it") from error
