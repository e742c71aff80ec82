"""A data set: its three splits, and what a report must say about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from layerfold.data._loader import BatchLoader
from layerfold.data._splits import DatasetSplit, Split
from layerfold.data.preprocessing import is_whole
from layerfold.errors import DataError, UsageError, nearest_names
from layerfold.files import JsonObject

_SPLIT_NAMES = ("train", "holdout", "test")


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Images in three splits, ready for one model.

    A factory of the user's own may build one from any torch Datasets of (float tensor [channels, height, width],
    int label); images must be normalised as the model wants them.

    Attributes:
        name: for reports.
        num_classes: labels are 0..num_classes-1.
        input_shape: (channels, height, width) of every image.
        train: for finetuning, or None where there are no images for it.
        holdout: for choices made on the way (importance, the best epoch); never trained on, never reported.
        test: for the reported accuracy only.
        details: how the splits were made and the images prepared.
        is_labelled: whether images have labels; otherwise the label of each is ``UNLABELLED``.
        fingerprint: SHA-256 over content, splits and preprocessing; computed from a few items where not given.

    Example:
        >>> images = torch.utils.data.TensorDataset(torch.randn(32, 3, 8, 8), torch.arange(32) % 2)
        >>> data = lf.ImageData(
        ...     name="noise", num_classes=2, input_shape=(3, 8, 8), train=images, holdout=images, test=images
        ... )
        >>> data.num_images
        {'train': 32, 'holdout': 32, 'test': 32}
        >>> batch, labels = next(iter(data.loader("train", batch_size=8, shuffle=True)))
        >>> batch.shape
        torch.Size([8, 3, 8, 8])
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]
    train: Dataset[Any] | None
    holdout: Dataset[Any]
    test: Dataset[Any]
    details: JsonObject = field(default_factory=dict)
    is_labelled: bool = True
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not is_whole(self.num_classes):
            raise UsageError(f"num_classes={self.num_classes!r}: must be a whole number")
        if self.num_classes < 2:
            raise DataError(f"{self.name}: has {self.num_classes} class; at least 2 are needed")
        object.__setattr__(self, "input_shape", tuple(self.input_shape))
        for name in _SPLIT_NAMES:
            dataset = getattr(self, name)
            if dataset is None and name == "train":
                continue
            if dataset is None:
                raise DataError(
                    f"{self.name}: has no split {name!r}; only train may be left out: give a Dataset of images to score"
                )
            if not isinstance(dataset, Split):
                dataset = DatasetSplit(
                    dataset, self.num_classes, self.input_shape, f"{self.name}, {name}", is_labelled=self.is_labelled
                )
                object.__setattr__(self, name, dataset)
            if len(dataset) == 0:
                raise DataError(f"{self.name}: split {name!r} is empty")
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", _fingerprint_of_items(self))

    def split(self, name: str) -> Split:
        """Return the split of that name.

        Raises:
            UsageError: no such split.
            DataError: there are no images for training.
        """
        if name not in _SPLIT_NAMES:
            raise UsageError(
                f"split={name!r}: must be one of {', '.join(_SPLIT_NAMES)}{nearest_names(name, _SPLIT_NAMES)}"
            )
        found: Split | None = getattr(self, name)
        if found is None:
            raise DataError(
                f"{self.name}: has no images for training, only for evaluation; "
                "add a train split, or do without finetuning"
            )
        return found

    def check_holdout(self) -> None:
        """Refuse a holdout whose images all have one label.

        Raises:
            DataError: it is one; a score of it would say nothing.
        """
        holdout = self.split("holdout")
        if self.is_labelled and not holdout.has_two_classes():
            raise DataError(
                f"{self.name}: all {len(holdout)} images of the holdout have one label; a score needs two "
                "classes or more: give another holdout, or do without scoring"
            )

    def loader(
        self,
        split: str,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool | str = False,
        random_erasing: float = 0.0,
        limit: int | None = None,
        seed: int = 0,
        drop_last: bool = False,
    ) -> BatchLoader:
        """Return batches of ``split``; see ``BatchLoader`` for the arguments."""
        return BatchLoader(
            self.split(split),
            batch_size,
            shuffle=shuffle,
            augment=augment,
            random_erasing=random_erasing,
            limit=limit,
            seed=seed,
            drop_last=drop_last,
        )

    def preload(self, *splits: str) -> None:
        """Decode the images of these splits now (all, if none is named), so that a broken one shows at once.

        Images of a split too large to be held are decoded when they are needed all the same.
        """
        for name in splits or _SPLIT_NAMES:
            if getattr(self, name) is not None or name != "train":
                self.split(name).preload()

    @property
    def num_images(self) -> dict[str, int]:
        """Images of each split; 0 for one that is not there."""
        return {name: 0 if getattr(self, name) is None else len(self.split(name)) for name in _SPLIT_NAMES}

    @property
    def preprocessing(self) -> JsonObject | None:
        """Preparation of images, with the fields of ``layerfold.data.Preprocessing``; None where that is unknown."""
        found = self.details.get("preprocessing")
        return dict(found) if isinstance(found, Mapping) else None

    def describe(self) -> JsonObject:
        """Return what a report says: name, classes, sizes, how the splits were made, fingerprint."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            "input_shape": list(self.input_shape),
            "num_images": self.num_images,
            **self.details,
            "fingerprint": self.fingerprint,
        }


def _fingerprint_of_items(data: ImageData) -> str:
    """Hash sizes and eight evenly spaced items: a foreign Dataset shows no more without reading it whole."""
    digest = hashlib.sha256(json.dumps([data.name, data.num_classes, data.input_shape]).encode())
    for name in _SPLIT_NAMES:
        if getattr(data, name) is None:
            continue
        split = data.split(name)
        digest.update(f"{name} {len(split)}".encode())
        for index in np.unique(np.linspace(0, len(split) - 1, 8).astype(int)):
            image, label = split[int(index)]
            digest.update(image.contiguous().numpy().tobytes() + f" {label}".encode())
    return digest.hexdigest()[:16]
