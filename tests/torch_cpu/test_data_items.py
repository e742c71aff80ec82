"""Items of a user's own Dataset are images and classes, or are refused with their number; nothing arrives white."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from layerfold.data import UNLABELLED, ImageData, open_data
from layerfold.errors import DataError, LayerfoldError, UsageError

_SHAPE = (3, 4, 5)


class Items(Dataset[Any]):
    """A Dataset of the same item, some times over."""

    def __init__(self, item: Any, count: int = 4) -> None:
        self._item, self._count = item, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._item(index) if callable(self._item) else self._item


def data_of(item: Any, **options: Any) -> ImageData:
    return ImageData(
        name="mine", num_classes=3, input_shape=_SHAPE, train=None, holdout=Items(item), test=Items(item), **options
    )


def fails(index: int) -> Any:
    raise RuntimeError("a\nb")


_IMAGE = torch.zeros(_SHAPE)
_BAD: dict[str, tuple[Any, str]] = {
    "uint8": ((_IMAGE.byte(), 0), "holds torch.uint8, and images must be normalised floats"),
    "uint16": ((_IMAGE.to(torch.uint16), 0), "holds torch.uint16"),
    "int64": ((_IMAGE.long(), 0), "holds torch.int64"),
    "bool": ((_IMAGE.bool(), 0), "holds torch.bool"),
    "complex": ((_IMAGE.to(torch.complex64), 0), "holds torch.complex64"),
    "NaN": ((torch.full(_SHAPE, torch.nan), 0), "NaN or infinite"),
    "infinite": ((torch.full(_SHAPE, -torch.inf), 0), "NaN or infinite"),
    "too large for float32": ((torch.full(_SHAPE, 1e300, dtype=torch.float64), 0), "NaN or infinite"),
    "channels last": ((torch.zeros(4, 5, 3), 0), "channels come first: permute(2, 0, 1)"),
    "one channel": ((torch.zeros(1, 4, 5), 0), "the network takes 3 channels"),
    "four channels": ((torch.zeros(4, 4, 5), 0), "the network takes 3 channels"),
    "a batch": ((torch.zeros(1, 3, 4, 5), 0), "expected a tensor (3, 4, 5), found (1, 3, 4, 5)"),
    "array": ((np.zeros(_SHAPE), 0), "torch.from_numpy makes it one"),
    "Pillow": ((Image.new("RGB", (5, 4)), 0), "expected a tensor (3, 4, 5), found Image"),
    "sparse": ((_IMAGE.to_sparse(), 0), "sparse, quantised or without values"),
    "meta": ((_IMAGE.to("meta"), 0), "sparse, quantised or without values"),
    "no pair": (_IMAGE, "expected a pair (image, class), found Tensor"),
    "three": ((_IMAGE, 0, 0), "expected a pair (image, class), found 3 values"),
    "nothing": (None, "expected a pair (image, class), found NoneType"),
    "one-hot": ((_IMAGE, torch.eye(3)[0]), "expected the number of a class, found a Tensor of shape (3,)"),
    "name": ((_IMAGE, "cat"), "expected the number of a class, found 'cat'"),
    "digit as text": ((_IMAGE, "1"), "expected the number of a class, found '1'"),
    "half": ((_IMAGE, 0.5), "expected the number of a class, found '0.5'"),
    "label NaN": ((_IMAGE, float("nan")), "expected the number of a class, found 'nan'"),
    "no label": ((_IMAGE, None), "expected the number of a class, found 'None'"),
    "label too high": ((_IMAGE, np.int64(3)), "label 3 is outside 0..2"),
    "label below 0": ((_IMAGE, torch.tensor(-1)), "label -1 is outside 0..2"),
    "raises": (fails, "the Dataset raised RuntimeError: a b"),
}


@pytest.mark.parametrize("kind", _BAD)
def test_item_that_is_no_image_with_a_class_is_refused_when_the_data_are_made(kind: str) -> None:
    item, words = _BAD[kind]
    with pytest.raises(DataError) as caught:
        data_of(item)
    assert str(caught.value).startswith("mine, holdout, item 0: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("label", [1, 1.0, np.uint8(1), torch.tensor(1), torch.tensor([1]), True, np.float32(1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_every_width_and_whole_labels_of_every_type_are_taken(label: Any, dtype: torch.dtype) -> None:
    image, found = data_of((torch.full(_SHAPE, 0.5, dtype=dtype, requires_grad=True), label)).split("test")[2]
    assert (image.dtype, float(image.mean()), found, image.requires_grad) == (torch.float32, 0.5, 1, False)


@pytest.mark.parametrize("item", [_IMAGE, (_IMAGE,), (_IMAGE, UNLABELLED), (_IMAGE, 7), [_IMAGE, None]])
def test_data_of_ones_own_need_no_labels(item: Any) -> None:
    data = data_of(item, is_labelled=False)
    images, labels = next(iter(data.loader("test", 3)))
    assert images.shape == (3, *_SHAPE)
    assert labels.tolist() == [UNLABELLED] * 3


def test_dataset_without_a_length_is_refused() -> None:
    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([])

    with pytest.raises(DataError, match=r"^mine, holdout: a Endless has no length; give a Dataset"):
        ImageData(name="mine", num_classes=3, input_shape=_SHAPE, train=None, holdout=Endless(), test=Items(_IMAGE))


@pytest.mark.parametrize("classes", ["3", 3.0, None, True, [3]])
def test_number_of_classes_that_is_no_number_is_refused(classes: Any) -> None:
    with pytest.raises(UsageError, match=r"^num_classes=.*: must be a whole number"):
        ImageData(
            name="mine",
            num_classes=classes,
            input_shape=_SHAPE,
            train=None,
            holdout=Items((_IMAGE, 0)),
            test=Items((_IMAGE, 0)),
        )


FACTORY = """
import torch
from torch.utils.data import TensorDataset

def pair(images, labels=None, **attributes):
    labels = torch.arange(len(images)) % 3 if labels is None else labels
    train = TensorDataset(images, labels)
    for name, value in attributes.items():
        setattr(train, name, value)
    return train, TensorDataset(noise(6, 3, 4, 5) - 0.5, torch.arange(6) % 3)

def noise(*size):
    return torch.rand(size, generator=torch.Generator().manual_seed(0))

def bytes_as_floats(num_classes=3): return pair(255 * noise(20, 3, 4, 5))
def sixteen_bits(num_classes=3): return pair((65535 * noise(20, 3, 4, 5)).round())
def never_normalised(num_classes=3): return pair(noise(20, 3, 4, 5))
def normalised(num_classes=3): return pair(4 * noise(20, 3, 4, 5) - 2)
def targets_short(): return pair(noise(20, 3, 4, 5), targets=[0, 1])
def targets_texts(): return pair(noise(20, 3, 4, 5), targets=["a"] * 20)
def targets_floats(): return pair(noise(20, 3, 4, 5), targets=[0.5] * 20)
def targets_outside(): return pair(noise(20, 3, 4, 5), targets=[0, 1, 2, 9] * 5, classes=["a", "b", "c"])
def targets_below(): return pair(noise(20, 3, 4, 5), targets=[0, 1, 2, -1] * 5)
def no_length(): return iter([1]), iter([1])
def one(): return pair(noise(1, 3, 4, 5))
def none(): return pair(noise(0, 3, 4, 5))
"""


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], str]:
    (tmp_path / "mine.py").write_text(FACTORY)
    return lambda name: f"{tmp_path / 'mine.py'}:{name}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bytes_as_floats", "pixels lie in"),
        ("sixteen_bits", "pixels lie in"),
        ("targets_short", "`targets` of the train Dataset holds int64 [2]; expected a whole number for each of its 20"),
        ("targets_texts", "`targets` of the train Dataset holds <U1 [20]"),
        ("targets_floats", "`targets` of the train Dataset holds float64 [20]"),
        ("targets_outside", "train, item 3: label 9 is outside 0..2"),
        ("targets_below", "train, item 3: label -1 is outside 0..2"),
        ("no_length", "the factory returned a tuple"),
        ("one", "the train Dataset has 1 items"),
        ("none", "the train Dataset has 0 items"),
    ],
)
def test_factory_of_other_things_is_refused_at_once(source: Callable[[str], str], name: str, words: str) -> None:
    with pytest.raises(LayerfoldError) as caught:
        open_data(source(name), input_shape=_SHAPE, num_classes=3)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_remedy_for_a_model_that_takes_bytes_as_floats_works(source: Callable[[str], str]) -> None:
    with pytest.raises(DataError, match=r"give --mean 0,0,0 --std 0\.003921569,0\.003921569,0\.003921569"):
        open_data(source("bytes_as_floats"), input_shape=_SHAPE, num_classes=3)
    data = open_data(
        source("bytes_as_floats"), input_shape=_SHAPE, num_classes=3, mean=(0, 0, 0), std=(0.003921569,) * 3
    )
    assert float(data.split("train")[0][0].max()) > 100


def test_pixels_that_look_as_if_never_normalised_are_said(
    source: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    open_data(source("never_normalised"), input_shape=_SHAPE, num_classes=3)
    (line,) = capsys.readouterr().err.splitlines()
    assert "pixels lie in 0.0" in line
    assert "see whether the Dataset normalises them" in line
    open_data(source("never_normalised"), input_shape=_SHAPE, num_classes=3, mean=(0, 0, 0), std=(1, 1, 1))
    open_data(source("normalised"), input_shape=_SHAPE, num_classes=3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        {"source": None},
        {"source": 3},
        {"source": ["folder:x"]},
        {"input_shape": (3, 4)},
        {"input_shape": "3x4x5"},
        {"input_shape": (3, 0, 5)},
        {"input_shape": (3, 4.5, 5)},
        {"input_shape": (3, True, 5)},
        {"seed": -1},
        {"seed": 0.5},
        {"seed": "a"},
        {"mean": (float("nan"), 0, 0)},
        {"std": (1, float("inf"), 1)},
        {"mean": ("a",) * 3},
        {"crop_pct": float("nan")},
        {"holdout": 2500},
    ],
)
def test_argument_of_another_type_or_range_is_named(options: dict[str, Any]) -> None:
    given = {"source": "mnist5k", "input_shape": _SHAPE, "cache": "off", **options}
    with pytest.raises(UsageError, match=rf"^{next(iter(options))}="):
        open_data(given.pop("source"), **given)


def test_labels_of_tensors_are_read_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    tensors = TensorDataset(torch.randn(8, *_SHAPE), torch.arange(8) % 3)
    data = ImageData(name="own", num_classes=3, input_shape=_SHAPE, train=tensors, holdout=tensors, test=tensors)
    assert [label for _, label in data.split("train")] == [0, 1, 2, 0, 1, 2, 0, 1]
    assert capsys.readouterr().err == ""
