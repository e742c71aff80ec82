"""One split of a data set, and its batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from layerfold.data._augmentation import crop_and_flip, resized_crops
from layerfold.data._decoded import DecodedImages
from layerfold.data._items import class_of, image_of
from layerfold.data._policies import Augmentation, apply_policy, erase_randomly
from layerfold.data._stored import UNLABELLED
from layerfold.data._threads import prepared_ahead
from layerfold.data._workers import Batch, worker_batches
from layerfold.data.preprocessing import Preprocessing
from layerfold.errors import DataError, LayerfoldError, UsageError


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

    def has_two_classes(self) -> bool:
        """Say whether there are two different labels; where only reading them tells, no further than is needed."""
        labels = self.labels
        if labels is not None:
            return len(np.unique(labels)) > 1
        with torch.random.fork_rng(devices=[]):  # a Dataset of the user's own may draw random numbers
            first = self[0][1]
            return any(label != first for _, label in self)

    def batches(
        self, chosen: Sequence[Sequence[int]], seeds: Sequence[int], augmentation: Augmentation
    ) -> Iterator[Batch]:
        """Yield (images, labels) for each list of rows.

        Args:
            chosen: rows of each batch.
            seeds: of each batch's augmentation: the same seed gives the same batch.
            augmentation: what happens to the images.
        """
        raise NotImplementedError

    def check(self, augmentation: Augmentation) -> None:
        """Refuse augmentation that these images cannot have.

        Raises:
            UsageError: they cannot.
        """

    def is_augmented_by_batch(self, augmentation: Augmentation) -> bool:
        """Say whether what happens to an image depends on the batch that it is in."""
        return not augmentation.is_nothing

    def preload(self) -> None:
        """Decode now what would be decoded at first use."""


class ImageSplit(Split):
    """A split of encoded images.

    Args:
        labels: class of each image.
        preprocessing: how they become inputs.
        fitted: the images as the model sees them.
        whole: the images as they are cut for training; None to shift those of ``fitted`` by ``crop_padding`` pixels.
        crop_padding: pixels.
        flip: whether images may be mirrored.
        is_held: whether all of ``fitted`` is kept in memory or on disk, so that it may be decoded beforehand.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        preprocessing: Preprocessing,
        fitted: DecodedImages,
        whole: DecodedImages | None,
        *,
        crop_padding: int,
        flip: bool,
        is_held: bool,
    ) -> None:
        self._labels, self._preprocessing, self._fitted, self._whole = labels, preprocessing, fitted, whole
        self._crop_padding, self._flip, self._is_held = crop_padding, flip, is_held

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        # A range has the bounds and negative numbers of a sequence.
        place = range(len(self))[index]
        images, labels = self._batch([place], 0, Augmentation())
        return images[0].contiguous(), int(labels[0])

    @property
    def labels(self) -> NDArray[np.int64]:
        return self._labels

    def preload(self) -> None:
        if self._is_held:
            self._fitted.fill()

    def batches(
        self, chosen: Sequence[Sequence[int]], seeds: Sequence[int], augmentation: Augmentation
    ) -> Iterator[Batch]:
        makes = [partial(self._batch, rows, seed, augmentation) for rows, seed in zip(chosen, seeds, strict=True)]
        if not augmentation.draws_globally:
            return prepared_ahead(makes)
        # What worker processes decode into their own memory is lost with them.
        self.preload()
        return worker_batches(makes)

    def _batch(self, rows: Sequence[int], seed: int, augmentation: Augmentation) -> Batch:
        places = np.asarray(rows, dtype=np.int64)
        images = self._pixels(places, seed, augmentation)
        if augmentation.policy is not None:
            images = apply_policy(images, augmentation.policy, self._preprocessing, _derived(seed, 1))
        normalised = self._preprocessing.normalise(images)
        if augmentation.random_erasing:
            erase_randomly(normalised, augmentation.random_erasing, _derived(seed, 2))
        return normalised, torch.from_numpy(self._labels[places])

    def _pixels(self, places: NDArray[np.int64], seed: int, augmentation: Augmentation) -> NDArray[np.uint8]:
        if not augmentation.is_cropped:
            return self._fitted.read(places)[0]
        generator = np.random.default_rng(seed)
        if self._whole is None:
            return crop_and_flip(self._fitted.read(places)[0], self._crop_padding, self._flip, generator)
        whole, sizes = self._whole.read(places)
        return resized_crops(
            whole,
            sizes,
            self._preprocessing.input_shape[1:],
            self._flip,
            self._preprocessing.pillow_interpolation,
            generator,
        )


class DatasetSplit(Split):
    """A torch Dataset of the user's own, already normalised, and augmented by itself if at all.

    Its items are read when the caller needs them, in the caller's thread: they may draw from the global generators.

    Args:
        dataset: its items are (float tensor [channels, height, width], class); without labels the tensor alone will do.
        num_classes: classes are 0..num_classes-1.
        input_shape: of every image.
        name: for errors.
        is_labelled: whether items have classes.
    """

    def __init__(
        self, dataset: Any, num_classes: int, input_shape: tuple[int, int, int], name: str, *, is_labelled: bool = True
    ) -> None:
        self._dataset, self._name, self._is_labelled = dataset, name, is_labelled
        self._num_classes, self._input_shape = num_classes, input_shape

    def __len__(self) -> int:
        try:
            return len(self._dataset)
        except TypeError:
            raise DataError(
                f"{self._name}: a {type(self._dataset).__name__} has no length; give a Dataset whose items "
                "are found by their number, not an IterableDataset"
            ) from None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        where = f"{self._name}, item {index}"
        try:
            item = self._dataset[index]
        except (LayerfoldError, IndexError):  # by an IndexError a loop over a sequence ends
            raise
        except Exception as error:
            raise DataError(
                f"{where}: the Dataset raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error
        if not self._is_labelled:
            image = item[0] if isinstance(item, (tuple, list)) and item else item
            return image_of(image, self._input_shape, where), UNLABELLED
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            found = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
            raise DataError(f"{where}: expected a pair (image, class), found {found}")
        return image_of(item[0], self._input_shape, where), class_of(item[1], self._num_classes, where)

    def is_augmented_by_batch(self, augmentation: Augmentation) -> bool:
        return bool(augmentation.random_erasing)

    def check(self, augmentation: Augmentation) -> None:
        if augmentation.policy is not None:
            raise UsageError(
                f"augment={augmentation.policy!r}: {self._name} is a Dataset of your own, "
                "whose images are normalised already; apply the policy inside it"
            )

    def batches(
        self, chosen: Sequence[Sequence[int]], seeds: Sequence[int], augmentation: Augmentation
    ) -> Iterator[Batch]:
        for rows, seed in zip(chosen, seeds, strict=True):
            images, labels = zip(*(self[int(row)] for row in rows), strict=True)
            batch = torch.stack(images)
            if augmentation.random_erasing:
                erase_randomly(batch, augmentation.random_erasing, _derived(seed, 2))
            yield batch, torch.tensor(labels)


def _derived(seed: int, use: int) -> int:
    """Return a seed for another use of randomness within the same batch."""
    return int(np.random.default_rng((seed, use)).integers(0, 2**62))
