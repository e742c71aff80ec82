"""What timm reads: torchvision's data sets, WebDataset shards, Hugging Face's data sets."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from layerfold.data import open_data
from layerfold.errors import DataError, LayerfoldError, OptionalDependencyError, UsageError

_SHAPE = (3, 16, 16)


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (value, 0, 255 - value)).save(stream, format="png")
    return stream.getvalue()


def refusal(source: str, kind: type[LayerfoldError] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        open_data(source, input_shape=_SHAPE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write one of MNIST's files: a magic number, the sizes, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = (0x800 + array.ndim).to_bytes(4, "big") + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def test_torchvision_reads_its_own_files(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    stored = {}
    for prefix, count in (("train", 40), ("t10k", 20)):
        stored[prefix] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        raw = tmp_path / "FashionMNIST" / "raw"
        write_idx(raw / f"{prefix}-images-idx3-ubyte", stored[prefix])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    source = f"torch/fashion_mnist:{tmp_path}"
    data = open_data(source, input_shape=(1, 28, 28), mean=(0,), std=(1,))
    assert (data.name, data.num_classes) == ("fashion_mnist", 10)
    assert data.describe()["num_images"] == {"train": 36, "holdout": 4, "test": 20}
    image, label = data.test[13]
    assert label == 3
    assert np.array_equal((image[0] * 255).round().byte().numpy(), stored["t10k"][13])
    assert open_data(source, input_shape=(1, 28, 28), mean=(0,), std=(1,)).fingerprint == data.fingerprint


def test_torchvision_image_folder_has_the_splits_that_are_there(tmp_path: Path) -> None:
    for split, count in (("train", 30), ("val", 4)):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                (tmp_path / split / name / f"{index}.png").write_bytes(picture(200 * number))
    data = open_data(f"torch/image_folder:{tmp_path}", input_shape=_SHAPE, mean=(0, 0, 0), std=(1, 1, 1))
    assert data.describe()["num_images"] == {"train": 54, "holdout": 6, "test": 8}
    assert [label for _, label in data.split("test")] == [0] * 4 + [1] * 4
    assert round(float(data.test[7][0][0, 8, 8]) * 255) == 200
    (tmp_path / "val" / "dog" / "2.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"val/dog/2\.png: not a readable image"):
        open_data(f"torch/image_folder:{tmp_path}", input_shape=_SHAPE)


def test_torchvision_data_that_is_not_there_is_not_fetched(tmp_path: Path) -> None:
    for name in ("fashion_mnist", "cifar10", "imagenet"):
        message = refusal(f"torch/{name}:{tmp_path}", DataError)
        assert f"torch/{name}:{tmp_path}: train cannot be opened" in message
        assert message.endswith("--download lets torchvision fetch what it may")
    assert not list(tmp_path.rglob("*.gz"))


def test_bad_torchvision_source_is_named(tmp_path: Path) -> None:
    assert refusal(f"torch/cifra10:{tmp_path}").endswith("nearest: cifar10, cifar100")
    assert "give the folder that holds it, torch/cifar10:FOLDER" in refusal("torch/cifar10")
    assert "no such folder" in refusal(f"torch/cifar10:{tmp_path / 'no'}")
    assert "has no train/, val/ or test/" in refusal(f"torch/image_folder:{tmp_path}")


def write_shard(path: Path, samples: Sequence[tuple[str, dict[str, bytes]]]) -> None:
    with tarfile.open(path, "w") as archive:
        for key, parts in samples:
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def test_shards_of_real_images_read_as_the_table_they_came_from(shared_path: Path, tmp_path: Path) -> None:
    table = pq.read_table(shared_path / "data" / "imagenet_sample" / "val.parquet").slice(0, 60)
    images, labels = table["image"].to_pylist(), [label % 3 for label in table["label"].to_pylist()]
    samples = [
        (f"n{index:05}", {"jpg": image, "cls": str(label).encode()})
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    write_shard(tmp_path / "in-train-0.tar", samples[:25])
    write_shard(tmp_path / "in-train-1.tar", samples[25:40])
    write_shard(tmp_path / "in-validation-0.tar", samples[40:])
    data = open_data(f"wds/{tmp_path}", input_shape=_SHAPE, holdout=6)
    (tmp_path / "table").mkdir()
    for name, part in (("train", slice(0, 40)), ("val", slice(40, 60))):
        pq.write_table(pa.table({"image": images[part], "label": labels[part]}), tmp_path / "table" / f"{name}.parquet")
    same = open_data(f"parquet:{tmp_path / 'table'}", input_shape=_SHAPE, holdout=6)
    assert data.describe()["num_images"] == {"train": 34, "holdout": 6, "test": 20}
    for split in ("train", "holdout", "test"):
        for (a, x), (b, y) in zip(data.split(split), same.split(split), strict=True):
            assert x == y
            assert bool((a == b).all())


def test_shards_are_those_that_timm_lists(tmp_path: Path) -> None:
    samples = [
        (f"sub/a{index}", {"png": picture(index), "json": json.dumps({"kind": index % 2}).encode()})
        for index in range(20)
    ]
    write_shard(tmp_path / "one.tar", samples)
    write_shard(tmp_path / "two.tar", samples)
    splits = {
        name: {"name": name, "num_samples": 20, "filenames": [file], "shard_lengths": [20], "alt_label": "kind"}
        for name, file in (("train", "one.tar"), ("test", "two.tar"))
    }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    data = open_data(f"wds/{tmp_path}", input_shape=_SHAPE)
    assert data.describe()["num_images"] == {"train": 18, "holdout": 2, "test": 20}
    assert [label for _, label in data.split("test")] == [0, 1] * 10
    splits["test"]["filenames"] = ["../two.tar"]
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    assert "lies outside the folder" in refusal(f"wds/{tmp_path}", DataError)
    splits["test"]["filenames"] = ["three.tar"]
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    assert "three.tar: no such file" in refusal(f"wds/{tmp_path}", DataError)
    (tmp_path / "_info.json").write_text("[]")
    assert "_info.json: not as timm writes it" in refusal(f"wds/{tmp_path}", DataError)


def test_bad_shard_is_named(tmp_path: Path) -> None:
    assert "no such folder" in refusal(f"wds/{tmp_path / 'no'}")
    assert "has no _info.json" in refusal(f"wds/{tmp_path}")
    path = tmp_path / "val.tar"
    good = [(f"a{index}", {"png": picture(index), "cls": str(index % 2).encode()}) for index in range(6)]
    write_shard(path, [*good, ("b", {"png": picture(0)})])
    assert refusal(f"wds/{tmp_path}", DataError) == f"{path}, b: has no label; expected b.cls beside the image"
    write_shard(path, [*good, ("b", {"png": picture(0), "cls": b"cat"})])
    assert f"{path}, b: its .cls file holds no whole number" in refusal(f"wds/{tmp_path}", DataError)
    write_shard(path, good)
    path.write_bytes(path.read_bytes()[:5000])
    assert f"{path}: not a readable tar file" in refusal(f"wds/{tmp_path}", DataError)
    write_shard(path, [*good, ("b", {"png": b"nonsense", "cls": b"0"})])
    with pytest.raises(DataError, match=r"val\.tar, b: not a readable image"):
        open_data(f"wds/{tmp_path}", input_shape=_SHAPE).preload()


def test_hub_reader_opens_local_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, count in (("train", 40), ("validation", 8)):
        rows = [{"bytes": picture(index), "path": f"{index}.png"} for index in range(count)]
        table = pa.table({"img": rows, "fine_label": [index % 4 for index in range(count)]})
        pq.write_table(table, folder / f"{name}-00000-of-00001.parquet")
    data = open_data(f"hfds/{folder}", input_shape=_SHAPE, mean=(0, 0, 0), std=(1, 1, 1))
    assert data.describe()["num_images"] == {"train": 36, "holdout": 4, "test": 8}
    assert [label for _, label in data.split("test")] == [0, 1, 2, 3] * 2
    assert [round(float(image[0, 0, 0]) * 255) for image, _ in data.split("test")] == list(range(8))
    again = open_data(f"hfds/{folder}", input_shape=_SHAPE, mean=(0, 0, 0), std=(1, 1, 1))
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        ({"bytes": None, "path": None}, 1, "row 3: not a readable image (no bytes in this row)"),
        (None, 1, "row 3: not a readable image (no bytes in this row)"),
        ({"bytes": b"text", "path": None}, 1, "row 3: not a readable image (is no image that Pillow can read)"),
        ({"bytes": None, "path": "/dev/zero"}, 1, "row 3: not a readable image (it is a folder, a pipe or a device"),
        ({"bytes": None, "path": "none.png"}, 1, "row 3: not a readable image (No such file"),
        ({"bytes": picture(0), "path": None}, None, "row 3: has no label"),
    ],
)
def test_bad_row_of_the_hub_reader_is_named(
    image: object, label: int | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    rows: list[object] = [{"bytes": picture(index), "path": None} for index in range(20)]
    labels: list[int | None] = [index % 4 for index in range(20)]
    rows[3], labels[3] = image, label
    (tmp_path / "mine").mkdir()
    for name in ("train", "validation"):
        pq.write_table(pa.table({"image": rows, "label": labels}), tmp_path / "mine" / f"{name}-00000-of-00001.parquet")
    assert words in refusal(f"hfds/{tmp_path / 'mine'}", DataError)


def test_hub_data_that_is_not_there_is_not_fetched() -> None:
    datasets = pytest.importorskip("datasets")
    message = refusal("hfds/nobody/no_such_data", DataError)
    assert "--data hfds/nobody/no_such_data: cannot be opened" in message
    assert message.endswith("--download lets the package datasets fetch it")
    assert not datasets.config.HF_HUB_OFFLINE


def test_hub_reader_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refusal("hfds/mine", OptionalDependencyError)
    assert message.endswith("needs the package datasets; pip install 'layerfold[readers]'")
    assert OptionalDependencyError.exit_code == 4
