"""Damaged or hostile Parquet files and shards are one line that names file and row; nothing is left out silently."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from layerfold.data import open_data
from layerfold.errors import LayerfoldError

_SHAPE = (3, 8, 8)


def picture(value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(stream, format="png")
    return stream.getvalue()


def refusal(source: str) -> str:
    with pytest.raises(LayerfoldError) as caught:
        open_data(source, input_shape=_SHAPE, cache="off").preload()
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()
    return str(caught.value)


def table(count: int, **columns: Any) -> pa.Table:
    images = pa.array([picture(index) for index in range(count)], pa.binary())
    labels = pa.array([index % 2 for index in range(count)], pa.int64())
    return pa.table({"image": images, "label": labels, **columns})


def encoded(content: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(content, stream)
    return stream.getvalue()


_GOOD = encoded(table(20))


def flipped(content: bytes, first: int, last: int) -> bytes:
    return content[:first] + bytes(255 - each for each in content[first:last]) + content[last:]


_TABLES: dict[str, tuple[bytes, str]] = {
    "no rows": (encoded(table(0)), "train: the split is empty"),
    "one row": (encoded(table(1)), "train: has 1 image; at least 3 are needed"),
    "two rows": (encoded(table(2)), "train: has 2 images; at least 3 are needed"),
    "three rows": (encoded(table(3)), "at least two classes are needed"),
    "image null": (encoded(table(20, image=pa.array([picture(), None] * 10, pa.binary()))), "row 1: not a readable"),
    "image empty": (encoded(table(20, image=pa.array([picture(), b""] * 10))), "row 1: not a readable image (it is em"),
    "bytes are text": (encoded(table(20, image=pa.array([{"bytes": "abc"}] * 20))), "row 0: not a readable"),
    "bytes are null": (encoded(table(20, image=pa.array([{"bytes": b""}, {"bytes": None}] * 10))), "19 more like it"),
    "images in lists": (encoded(table(20, image=pa.array([[picture()]] * 20))), "no column with image bytes"),
    "labels are floats": (encoded(table(20, label=pa.array([0.0, 1.0] * 10))), "no column with integer labels"),
    "labels are texts": (encoded(table(20, label=pa.array(["a", "b"] * 10))), "no column with integer labels"),
    "label null": (encoded(table(20, label=pa.array([0, None] * 10, pa.int8()))), "row 1: column 'label' has no label"),
    "label huge": (encoded(table(20, label=pa.array([0, 2**64 - 1] * 10, pa.uint64()))), "row 1: label 1844"),
    "cut short": (_GOOD[:-50], "not a Parquet file"),
    "empty": (b"", "not a Parquet file"),
    "footer flipped": (flipped(_GOOD, -400, -200), "not a Parquet file"),
    "pages flipped": (flipped(_GOOD, 100, 400), "cannot be read"),
}


@pytest.mark.parametrize("kind", _TABLES)
def test_bad_table_is_one_line(kind: str, tmp_path: Path) -> None:
    content, words = _TABLES[kind]
    (tmp_path / "train.parquet").write_bytes(content)
    assert words in refusal(f"parquet:{tmp_path}")


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [*table(20).columns, pa.array([1] * 20)]
    pq.write_table(pa.Table.from_arrays(columns, names=["image", "label", "label"]), tmp_path / "val.parquet")
    assert "two columns named 'label'" in refusal(f"parquet:{tmp_path}")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.name)])
def test_table_that_is_no_file_is_refused_not_left_out(make: Callable[[Path], Any], tmp_path: Path) -> None:
    pq.write_table(table(20), tmp_path / "val.parquet")
    make(tmp_path / "train.parquet")
    assert "train.parquet: is a folder, a pipe or a link to nothing" in refusal(f"parquet:{tmp_path}")


def test_tables_of_other_names_are_named(tmp_path: Path) -> None:
    pq.write_table(table(20), tmp_path / "train-00000-of-00001.parquet")
    assert "rename train-00000-of-00001.parquet" in refusal(f"parquet:{tmp_path}")
    (tmp_path / "train-00000-of-00001.parquet").rename(tmp_path / "train.parquet")
    open_data(f"parquet:{tmp_path}", input_shape=_SHAPE, cache="off")


def shard(members: Sequence[tuple[str, bytes | str]]) -> bytes:
    """Return a tar file; a member whose content is a text is of that type and leads elsewhere."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = content.encode(), "../../etc/passwd"
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


_SAMPLES = [
    (f"{index}.{kind}", content)
    for index in range(20)
    for kind, content in (("png", picture(index)), ("cls", str(index % 2).encode()))
]
_TAR = shard(_SAMPLES)
_TARS: dict[str, tuple[bytes, str]] = {
    "ends between files": (_TAR[: 1024 * 20], "neither a file nor the end"),
    "ends within a header": (_TAR[: 1024 * 20 + 300], "neither a file nor the end"),
    "ends within an image": (_TAR[: 1024 * 20 + 520], "not a readable tar file"),
    "a header is damaged": (_TAR[:20480] + b"junk" * 128 + _TAR[20992:], "neither a file nor the end"),
    "two files in one": (_TAR + _TAR, "more follows behind its end"),
    "empty": (b"", "not a readable tar file"),
    "nonsense": (b"nonsense" * 999, "not a readable tar file"),
    "device": (shard([*_SAMPLES, ("x.png", "3"), ("x.cls", b"1")]), "x.png: is a link, a device"),
    "symbolic link": (shard([*_SAMPLES, ("x.png", "2"), ("x.cls", b"1")]), "x.png: is a link, a device"),
    "hard link": (shard([*_SAMPLES, ("x.png", "1"), ("x.cls", b"1")]), "x.png: is a link, a device"),
    "pipe": (shard([*_SAMPLES, ("x\x1b[2J.png", "6")]), r"x\x1b[2J.png: is a link, a device"),
    "large label": (shard([*_SAMPLES, ("x.png", picture()), ("x.cls", b"9" * 30)]), "x: its .cls file holds no whole"),
    "long label": (shard([*_SAMPLES, ("x.png", picture()), ("x.cls", b"9" * 9999)]), "x: its .cls file holds no whole"),
    "endless label": (shard([*_SAMPLES, ("x.png", picture()), ("x.cls", bytes(2**21))]), "which is no label"),
    "empty image": (shard([*_SAMPLES, ("x.png", b""), ("x.cls", b"1")]), "x: not a readable image (it is empty)"),
}


@pytest.mark.parametrize("kind", _TARS)
def test_bad_shard_is_one_line(kind: str, tmp_path: Path) -> None:
    content, words = _TARS[kind]
    (tmp_path / "train-0.tar").write_bytes(content)
    assert words in refusal(f"wds/{tmp_path}")


def test_names_that_lead_elsewhere_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outside = [
        ("../../x.png", picture()),
        ("../../x.cls", b"1"),
        (f"{tmp_path}/y.png", picture()),
        (f"{tmp_path}/y.cls", b"0"),
    ]
    (tmp_path / "in" / "train.tar").write_bytes(shard([*outside, *_SAMPLES]))
    data = open_data(f"wds/{tmp_path / 'in'}", input_shape=_SHAPE, cache="off")
    assert sum(data.describe()["num_images"].values()) == 22
    assert [each.name for each in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "{}",
        '{"splits": 3}',
        '{"splits": {"train": {}}}',
        '{"splits": {"train": {"filenames": "a"}}}',
        '{"splits": {"train": {"filenames": [1]}}}',
        '{"splits": {"train": {"filenames": ["a\\u0000b"]}}}',
        '{"splits": {"train": {"filenames": ["../a.tar"]}}}',
        '{"splits": {"train": {"filenames": ["loop/a.tar"]}}}',
        '{"splits": {"train": {"filenames": ["none.tar"]}}}',
        '{"splits": {"train": {"filenames": []}}}',
        '{"splits": {"train": {"filenames": ["train.tar"], "alt_label": 3}}}',
        "\x00\xff",
    ],
)
def test_bad_list_of_shards_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(_TAR)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "_info.json").write_text(text)
    assert "_info.json" in refusal(f"wds/{tmp_path}")


@pytest.mark.parametrize("again", ["train.tar", "./train.tar", "link.tar"])
def test_shard_that_is_listed_often_is_refused_before_it_is_read(again: str, tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"not read at all")
    (tmp_path / "link.tar").symlink_to("train.tar")
    info = {"splits": {"train": {"filenames": ["train.tar"] + [again] * 20_000}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    assert "_info.json: lists 'train.tar' 20,001 times; list each shard once" in refusal(f"wds/{tmp_path}")


@pytest.mark.parametrize("value", ["1.7", "true", "1e400", "null", "[1]", '"x"', "9" * 40, "NaN"])
def test_field_that_is_no_whole_number_is_no_label(value: str, tmp_path: Path) -> None:
    samples = [
        (name.replace("cls", "json"), f'{{"kind": {value}}}'.encode() if name.endswith("cls") else content)
        for name, content in _SAMPLES
    ]
    (tmp_path / "train.tar").write_bytes(shard(samples))
    info = {"splits": {"train": {"filenames": ["train.tar"], "alt_label": "kind"}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    assert "field 'kind' of its .json file holds no whole number" in refusal(f"wds/{tmp_path}")


@pytest.mark.parametrize("name", ["train.tar", "_info.json"])
def test_pipe_in_place_of_a_file_does_not_hang(name: str, tmp_path: Path) -> None:
    (tmp_path / "train-1.tar").write_bytes(_TAR)
    os.mkfifo(tmp_path / name)
    assert name in refusal(f"wds/{tmp_path}")
