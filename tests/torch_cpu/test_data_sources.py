"""Folders, Parquet files, digits and factories become three splits with the pixels they should have."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from layerfold.data import ImageData, open_data
from layerfold.errors import DataError

_SHAPE = (3, 8, 8)


def encoded(colour: int, size: tuple[int, int] = (8, 8), kind: str = "png") -> bytes:
    """Return an image of one colour, but for a white pixel in its upper left corner."""
    image = Image.new("RGB", size, (colour, 0, 255 - colour))
    image.putpixel((0, 0), (255, 255, 255))
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


def write_parquet(path: Path, labels: list[int], image: str = "image", label: str = "label") -> None:
    pictures = [encoded(10 * value) for value in labels]
    pq.write_table(pa.table({image: pictures, label: pa.array(labels, pa.int16()), "name": ["x"] * len(labels)}), path)


def write_folder(root: Path, per_class: int, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            (root / name / f"{index}.png").write_bytes(encoded(100 * number))


def labels_of(split: object) -> list[int]:
    return [int(value) for value in split.labels]  # type: ignore[attr-defined]


def test_folder_with_train_and_val_gives_three_splits(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 20)
    write_folder(tmp_path / "val", 3)
    data = open_data(f"folder:{tmp_path}", input_shape=_SHAPE, mean=(0, 0, 0), std=(1, 1, 1))
    assert data.describe()["num_images"] == {"train": 36, "holdout": 4, "test": 6}
    assert (data.num_classes, sorted(labels_of(data.holdout))) == (2, [0, 0, 1, 1])
    image, label = data.test[5]
    assert (label, image.shape, image.dtype) == (1, _SHAPE, torch.float32)
    assert image[:, 4, 4].tolist() == pytest.approx([100 / 255, 0, 155 / 255])


def test_folder_with_all_three_uses_val_as_holdout(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("val", 3), ("test", 2)):
        write_folder(tmp_path / name, count)
    data = open_data(f"folder:{tmp_path}", input_shape=_SHAPE)
    assert data.describe()["num_images"] == {"train": 8, "holdout": 6, "test": 4}


def test_parquet_finds_its_columns_and_keeps_every_row_once(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1, 2] * 10, image="img", label="fine_label")
    write_parquet(tmp_path / "test.parquet", [2, 1, 0], image="img", label="fine_label")
    data = open_data(f"parquet:{tmp_path}", input_shape=_SHAPE)
    assert data.describe()["num_images"] == {"train": 27, "holdout": 3, "test": 3}
    assert sorted(labels_of(data.train) + labels_of(data.holdout)) == sorted([0, 1, 2] * 10)
    assert labels_of(data.test) == [2, 1, 0]


def test_parquet_with_images_as_structs_reads_too(tmp_path: Path) -> None:
    pictures = [{"bytes": encoded(value), "path": f"{value}.png"} for value in (0, 200)]
    pq.write_table(pa.table({"image": pictures * 4, "label": [0, 1] * 4}), tmp_path / "val.parquet")
    data = open_data(f"parquet:{tmp_path}", input_shape=_SHAPE, mean=(0, 0, 0), std=(1, 1, 1))
    assert data.train is None
    assert data.describe()["num_images"] == {"train": 0, "holdout": 4, "test": 4}
    assert {round(float(image[0, 4, 4] * 255)): label for image, label in data.split("test")} == {0: 0, 200: 1}


def test_data_without_train_says_so_when_asked_to_train(tmp_path: Path) -> None:
    write_parquet(tmp_path / "val.parquet", [0, 1] * 4)
    data = open_data(f"parquet:{tmp_path}", input_shape=_SHAPE)
    with pytest.raises(DataError, match="has no images for training"):
        data.loader("train", 2)


def test_split_and_fingerprint_follow_the_seed_and_the_preprocessing(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 50)
    source = f"parquet:{tmp_path}"
    first, again = (open_data(source, input_shape=_SHAPE) for _ in range(2))
    other_seed = open_data(source, input_shape=_SHAPE, seed=1)
    other_mean = open_data(source, input_shape=_SHAPE, mean=(0.5, 0.5, 0.5))
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, other_seed.fingerprint, other_mean.fingerprint}) == 3
    write_parquet(tmp_path / "train.parquet", [0, 1] * 49 + [1, 0])
    assert open_data(source, input_shape=_SHAPE).fingerprint != first.fingerprint


def test_images_of_the_input_size_are_taken_as_they_are_others_as_timm_does(tmp_path: Path) -> None:
    from timm.data.transforms_factory import create_transform

    rows = [np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8) for i in range(4)]
    pictures = []
    for row in rows:
        stream = io.BytesIO()
        Image.fromarray(row).save(stream, format="png")
        pictures.append(stream.getvalue())
    pq.write_table(pa.table({"image": pictures, "label": [0, 1] * 2}), tmp_path / "test.parquet")
    pq.write_table(pa.table({"image": pictures * 5, "label": [0, 1] * 10}), tmp_path / "train.parquet")
    same = open_data(f"parquet:{tmp_path}", input_shape=(3, 20, 24), mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal((same.test[1][0] * 255).round().byte(), torch.from_numpy(rows[1]).permute(2, 0, 1))
    transform = create_transform(
        (3, 12, 12), interpolation="bilinear", crop_pct=0.8, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
    )
    resized = open_data(
        f"parquet:{tmp_path}",
        input_shape=(3, 12, 12),
        interpolation="bilinear",
        crop_pct=0.8,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
    )
    expected = transform(Image.fromarray(rows[1]))
    assert torch.allclose(resized.test[1][0], expected, atol=1e-5)


def test_one_channel_input_reads_colour_as_grey(tmp_path: Path) -> None:
    write_parquet(tmp_path / "val.parquet", [0, 1] * 4)
    data = open_data(f"parquet:{tmp_path}", input_shape=(1, 8, 8), mean=(0,), std=(1,))
    assert data.test[0][0].shape == (1, 8, 8)
    assert data.test[0][0][0, 0, 0] == pytest.approx(1)


def test_set_too_large_to_hold_is_read_image_by_image_with_the_same_pixels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [0, 1] * 20)
    write_parquet(tmp_path / "test.parquet", [1, 0] * 4)
    held, read = (open_data(f"parquet:{tmp_path}", input_shape=_SHAPE, max_array_bytes=most) for most in (2**30, 1))
    loaders = [data.loader("train", 8, shuffle=True) for data in (held, read)]
    for (a, x), (b, y) in zip(*loaders, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, y)
    images, _ = next(iter(read.loader("train", 8, augment=True)))
    assert images.shape == (8, *_SHAPE)


def test_mnist5k_is_4000_500_500_with_every_class_alike() -> None:
    data = open_data("mnist5k", input_shape=(1, 32, 32), mean=(0.0,), std=(1.0,))
    assert data.describe()["num_images"] == {"train": 4000, "holdout": 500, "test": 500}
    assert np.bincount(labels_of(data.test)).tolist() == [50] * 10
    images, _ = next(iter(data.loader("test", 100)))
    assert images.shape == (100, 1, 32, 32)
    assert 0.05 < float(images.mean()) < 0.25
    assert float(images.min()) == 0
    assert float(images.max()) == 1


def test_noisy_digits_are_those_of_mnist_made_hard_to_read_and_always_alike() -> None:
    plain, noisy, again = (
        open_data(name, input_shape=(1, 28, 28), mean=(0.0,), std=(1.0,), cache="off")
        for name in ("mnist5k", "noisy15k", "noisy15k")
    )
    assert noisy.fingerprint == again.fingerprint != plain.fingerprint
    assert noisy.describe()["num_images"] == {"train": 12_000, "holdout": 1_500, "test": 1_500}
    # The same digits are held back: every image of a digit is in one split.
    assert labels_of(noisy.test) == 3 * labels_of(plain.test)
    assert labels_of(noisy.holdout) == 3 * labels_of(plain.holdout)
    (clear, _), (hard, _) = (next(iter(each.loader("test", 500))) for each in (plain, noisy))
    # Their ink is where it was, roughly, and weaker; the ground is noise of the same strength everywhere.
    ink, ground = clear > 0.9, torch.nn.functional.max_pool2d(clear, 9, 1, 4) == 0
    assert float(hard[ground].mean()) + 0.2 < float(hard[ink].mean()) < float(clear[ink].mean()) - 0.2
    assert 0.1 < float(hard[ground].std()) < 0.2
    assert not torch.equal(hard, next(iter(plain.loader("test", 500)))[0])


FACTORY = """
import torch
from torch.utils.data import TensorDataset
from layerfold.data import ImageData

def pair(input_shape, seed):
    labels = torch.arange(40) % 4
    train = TensorDataset(labels.float()[:, None, None, None].expand(-1, *input_shape), labels)
    train.targets = labels
    return train, TensorDataset(torch.zeros(8, *input_shape), torch.arange(8) % 4)

def whole():
    dataset = pair((1, 2, 2), 0)[0]
    return ImageData(name="mine", num_classes=4, input_shape=(1, 2, 2), train=None, holdout=dataset, test=dataset)

def wrong_shape(input_shape):
    train, _ = pair(input_shape, 0)
    return train, TensorDataset(torch.zeros(8, 3, 1, 1), torch.arange(8) % 4)

def wrong_label(input_shape):
    train, _ = pair(input_shape, 0)
    return train, TensorDataset(torch.zeros(8, *input_shape), torch.arange(8))

def nothing():
    return None
"""


@pytest.fixture
def factory_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    return path


def test_factory_gives_a_pair_of_datasets(factory_file: Path) -> None:
    data = open_data(f"{factory_file}:pair", input_shape=(1, 2, 2), holdout=8)
    assert data.describe()["num_images"] == {"train": 32, "holdout": 8, "test": 8}
    assert sorted(label for _, label in data.split("holdout")) == sorted([0, 1, 2, 3] * 2)
    assert all(float(image[0, 0, 0]) == label for image, label in data.split("train"))
    images, labels = next(iter(data.loader("train", 16, shuffle=True)))
    assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_factory_gives_image_data(factory_file: Path) -> None:
    data = open_data(f"{factory_file}:whole", input_shape=(1, 2, 2))
    assert isinstance(data, ImageData)
    assert (data.name, data.train) == ("mine", None)
    assert len(data.fingerprint) == 16


@pytest.mark.parametrize(
    ("factory", "words"),
    [("wrong_shape", r"item 0: expected a tensor \(1, 2, 2\)"), ("wrong_label", r"label 4 is outside 0\.\.3")],
)
def test_items_of_a_foreign_dataset_are_checked(factory_file: Path, factory: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        for _ in open_data(f"{factory_file}:{factory}", input_shape=(1, 2, 2)).loader("test", 8):
            pass
