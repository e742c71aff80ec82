"""Images from a function of the user's own file."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.data._image_data import ImageData
from layerfold.data._splits import ImageSplit
from layerfold.data._splitting import holdout_size, stratified_parts
from layerfold.data.preprocessing import Preprocessing
from layerfold.errors import DataError, UsageError
from layerfold.factories import call_factory

_PROBED = 8
_FAR = 4
"""Times the largest value that a normalised pixel has: beyond, pixels were never normalised."""


def data_of_factory(
    source: str, preprocessing: Preprocessing, num_classes: int | None, holdout: float | None, seed: int
) -> ImageData:
    """Call ``path/to/file.py:factory`` and return its images.

    Raises:
        UsageError: it returns something else, or no number of classes can be told.
        DataError: items that are no images and classes, pixels that were plainly not normalised.
    """
    made = call_factory(
        source,
        input_shape=preprocessing.input_shape,
        mean=preprocessing.mean,
        std=preprocessing.std,
        num_classes=num_classes,
        seed=seed,
    )
    if not isinstance(made, ImageData):
        if not (isinstance(made, tuple) and len(made) == 2 and all(hasattr(part, "__getitem__") for part in made)):
            raise UsageError(
                f"--data {source}: the factory returned a {type(made).__name__}; "
                "return an ImageData or a (train, test) pair of Datasets"
            )
        made = _split_datasets(source, made[0], made[1], preprocessing.input_shape, num_classes, holdout, seed)
    _check_range(source, made, preprocessing)
    return made


def _split_datasets(
    source: str,
    train: Any,
    test: Any,
    input_shape: tuple[int, int, int],
    num_classes: int | None,
    holdout: float | None,
    seed: int,
) -> ImageData:
    from torch.utils.data import Subset

    try:
        count = len(train)
    except TypeError:
        raise DataError(
            f"--data {source}: the train Dataset has no length; give one whose items are found by their "
            "number, not an IterableDataset"
        ) from None
    if count < 2:
        raise DataError(f"--data {source}: the train Dataset has {count} items; a holdout is drawn from it")
    targets = _targets(source, train, count)
    named: Any = getattr(train, "classes", None)
    if num_classes is None:
        if targets is None and not hasattr(named, "__len__"):
            raise UsageError(
                f"--data {source}: the number of classes cannot be told; pass num_classes, or give the "
                "train Dataset an attribute `classes` or `targets`"
            )
        num_classes = len(named) if targets is None or hasattr(named, "__len__") else int(targets.max()) + 1
    if targets is not None and not (targets.min() >= 0 and targets.max() < num_classes):
        row = int(np.flatnonzero((targets < 0) | (targets >= num_classes))[0])
        raise DataError(f"--data {source}, train, item {row}: label {targets[row]} is outside 0..{num_classes - 1}")
    # Without labels at hand every item counts as one class: a plain random draw.
    labels = np.zeros(count, np.int64) if targets is None else targets
    first, rest = stratified_parts(labels, [holdout_size(holdout, count)], seed)
    return ImageData(
        name=source.rpartition("/")[2],
        num_classes=num_classes,
        input_shape=input_shape,
        train=Subset(train, rest.tolist()),
        holdout=Subset(train, first.tolist()),
        test=test,
        details={"source": source, "seed": seed, "splits": f"holdout drawn from train by seed {seed}"},
    )


def _targets(source: str, train: Any, count: int) -> NDArray[np.int64] | None:
    """Return the classes that a Dataset names beforehand, as torchvision's do."""
    found = getattr(train, "targets", None)
    if found is None:
        return None
    targets = np.asarray(found)
    if targets.shape != (count,) or targets.dtype.kind not in "iu":
        raise DataError(
            f"--data {source}: `targets` of the train Dataset holds {targets.dtype} {list(targets.shape)}; "
            f"expected a whole number for each of its {count} items, or no such attribute"
        )
    return targets.astype(np.int64)


def _check_range(source: str, data: ImageData, preprocessing: Preprocessing) -> None:
    """Refuse pixels of 0..255 where the model's mean and deviation ask for others; say so of 0..1."""
    split = data.split("holdout")
    if isinstance(split, ImageSplit):
        return
    items = [split[int(row)][0] for row in np.unique(np.linspace(0, len(split) - 1, _PROBED).astype(int))]
    lowest, highest = min(float(item.min()) for item in items), max(float(item.max()) for item in items)
    ends = [
        (end - mean) / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True) for end in (0, 1)
    ]
    normalised = f"normalised by the model's mean and deviation they lie in {min(ends):.3g}..{max(ends):.3g}"
    count = len(preprocessing.mean)
    if lowest >= 0 and highest > _FAR * max(map(abs, ends)):
        raise DataError(
            f"--data {source}: pixels lie in {lowest:g}..{highest:g}, {normalised}: normalise them in the "
            f"Dataset, or, for a model that takes 0..255, give --mean {','.join(['0'] * count)} --std "
            f"{','.join(['0.003921569'] * count)}"
        )
    if lowest >= 0 and highest - lowest > 0.5 and highest <= 1 and min(ends) < -0.5:
        print(
            f"layerfold: {source}: pixels lie in {lowest:.3g}..{highest:.3g}, {normalised}; see whether the Dataset "
            "normalises them",
            file=sys.stderr,
        )
