"""Batches: order, augmentation and layout."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from layerfold.data import ImageData, open_data
from layerfold.data._augmentation import crop_and_flip


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return open_data("mnist5k", input_shape=(1, 28, 28))


def test_loader_gives_every_image_once_with_its_label(digits: ImageData) -> None:
    loader = digits.loader("test", 64, shuffle=True)
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert (len(loader), len(images)) == (8, 500)
    expected = {image.numpy().tobytes(): label for image, label in (digits.test[i] for i in range(500))}
    found = {image.contiguous().numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    assert found == expected


def test_batches_are_normalised_floats_stored_channels_last(digits: ImageData) -> None:
    images, labels = next(iter(digits.loader("test", 32)))
    assert (images.dtype, labels.dtype, tuple(images.shape)) == (torch.float32, torch.int64, (32, 1, 28, 28))
    # For one channel both layouts hold the same bytes, but torch chooses its kernels by the strides.
    assert images.stride() == (28 * 28, 1, 28, 1)


def test_each_epoch_has_an_order_of_its_own_that_can_be_repeated(digits: ImageData) -> None:
    loader = digits.loader("train", 100, shuffle=True, seed=3)
    first, second = ([labels for _, labels in loader] for _ in range(2))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    loader.set_epoch(0)
    assert all(torch.equal(a, labels) for a, (_, labels) in zip(first, loader, strict=True))


def test_epoch_can_go_on_in_its_middle_with_the_same_augmented_images(digits: ImageData) -> None:
    loader = digits.loader("train", 100, shuffle=True, augment=True, seed=3)
    loader.set_epoch(4)
    whole = list(loader)
    loader.set_epoch(4)
    rest = list(loader.starting_at(37))
    assert len(rest) == 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[37:], rest, strict=True))


def test_limit_is_the_same_in_every_epoch_and_covers_the_classes(digits: ImageData) -> None:
    loader = digits.loader("train", 50, shuffle=True, limit=200)
    assert (len(loader), loader.num_images) == (4, 200)
    first, second = (torch.cat([images for images, _ in loader]) for _ in range(2))
    assert sorted(map(float, first.sum((1, 2, 3)))) == pytest.approx(sorted(map(float, second.sum((1, 2, 3)))))
    assert len({int(label) for _, labels in loader for label in labels}) == 10


@pytest.mark.parametrize(
    ("limit", "drop_last", "sizes"), [(70, False, [32, 32, 6]), (70, True, [32, 32]), (9, True, [9])]
)
def test_last_batch_is_dropped_unless_it_is_the_only_one(
    digits: ImageData, limit: int, drop_last: bool, sizes: list[int]
) -> None:
    loader = digits.loader("test", 32, limit=limit, drop_last=drop_last)
    assert [len(labels) for _, labels in loader] == sizes
    assert len(loader) == len(sizes)


def test_augmentation_only_shifts_and_mirrors() -> None:
    image = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1)
    images = np.repeat(image, 200, axis=0)
    augmented = crop_and_flip(images, 1, True, np.random.default_rng(0))
    padded = np.pad(image[0, :, :, 0], 1)
    windows = [padded[top : top + 5, left : left + 5] for top, left in itertools.product(range(3), range(3))]
    allowed = {window.tobytes() for window in windows} | {window[:, ::-1].tobytes() for window in windows}
    assert {row.tobytes() for row in augmented} == allowed


def test_digits_are_never_mirrored() -> None:
    image = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1).repeat(50, axis=0)
    augmented = crop_and_flip(image, 0, False, np.random.default_rng(0))
    assert np.array_equal(augmented, image)
