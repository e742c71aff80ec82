"""What lies in an image folder is read, said, or refused on one line; and each remedy works when it is followed."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from layerfold.data import ImageData, open_data
from layerfold.errors import DataError, LayerfoldError

_SHAPE = (3, 8, 8)
_CLASSES = ("cat", "dog")


def picture(value: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(stream, format="png")
    return stream.getvalue()


def write(root: Path, splits: Sequence[str], classes: Sequence[str] = _CLASSES, count: int = 10) -> Path:
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                (root / split / name / f"{index}.png").write_bytes(picture(index))
    return root


def opened(source: str, num_classes: int | None = None) -> ImageData:
    return open_data(source, input_shape=_SHAPE, cache="off", num_classes=num_classes)


def refusal(source: str) -> str:
    with pytest.raises(LayerfoldError) as caught:
        opened(source, num_classes=2)
    message = str(caught.value)
    assert message.isprintable(), message  # no line breaks, control characters or bytes that are no text
    return message


def count_of(data: ImageData) -> int:
    return sum(data.describe()["num_images"].values())


_BAD: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("no image") and None,
    "header cut": lambda path: path.write_bytes(picture()[:20]) and None,
}


@pytest.mark.parametrize("name", ["x.jpg", "\x1b[31m\nred.PNG", os.fsdecode(b"\xff\xfe.tiff")])
@pytest.mark.parametrize("source", ["folder", "images", "torch/image_folder"])
@pytest.mark.parametrize("kind", _BAD)
def test_image_that_cannot_be_read_is_named_when_opened_and_the_rest_reads_without_it(
    kind: str, source: str, name: str, tmp_path: Path
) -> None:
    root = write(tmp_path / "data", ["train", "val"])
    path = root / "train" / "dog" / name
    _BAD[kind](path)
    assert re.search(r"dog/.*: not a readable image \(.+\); repair or remove it", refusal(f"{source}:{root}"))
    path.unlink()
    assert count_of(opened(f"{source}:{root}", 2)) == 40


def test_several_broken_images_are_counted(tmp_path: Path) -> None:
    root = write(tmp_path, ["train"])
    for index in (3, 5, 7):
        (root / "train" / "cat" / f"{index}.png").write_bytes(b"broken")
    message = refusal(f"folder:{root}")
    assert "cat/3.png" in message
    assert message.endswith("and 2 more like it")


@pytest.mark.parametrize("source", ["folder", "images"])
@pytest.mark.parametrize("name", ["notes.txt", "bomb.zip", "README", "sub/data.npz", "\x1b[2Jx.json"])
def test_files_that_are_passed_over_are_counted_and_the_first_is_named(
    source: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path, ["train"])
    path = root / "train" / "cat" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    assert count_of(opened(f"{source}:{root}", 2)) == 20
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 file passed over" in line
    assert path.name.replace("\x1b", r"\x1b") in line


def test_images_beside_the_class_folders_are_passed_over_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write(tmp_path, ["train"])
    for name in ("b.jpg", "a.jpg"):
        (root / "train" / name).write_bytes(picture())
    assert count_of(opened(f"folder:{root}")) == 20
    assert "2 files passed over, which by name or place are no image of a class; the first: " in (
        err := capsys.readouterr().err
    )
    assert err.endswith("/train/a.jpg\n")


@pytest.mark.parametrize("target", ["up", "root", "itself", "class"])
def test_links_that_lead_back_end_and_are_said(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path, ["train"])
    cat = root / "train" / "cat"
    match target:
        case "up":
            (cat / "back").symlink_to("..")
        case "root":
            (cat / "back").symlink_to(root)
        case "itself":
            (cat / "back").symlink_to(cat)
        case _:
            (root / "train" / "back").symlink_to(root)
    assert count_of(opened(f"folder:{root}")) == 20
    assert "back" in capsys.readouterr().err


def test_folders_that_links_lead_to_are_read(tmp_path: Path) -> None:
    root = write(tmp_path / "data", ["train"])
    shutil.move(root / "train" / "cat", tmp_path / "elsewhere")
    (root / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    more = write(tmp_path / "more", ["x"])
    (root / "train" / "dog" / "more").symlink_to(more / "x" / "dog")
    assert count_of(opened(f"folder:{root}")) == 30


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        ("abc", "ab", "val: holds no images of 1 of 3 classes, the first: c"),
        ("abc", "ca", "val: holds no images of 1 of 3 classes, the first: b"),
        ("abcd", "ad", "val: holds no images of 2 of 4 classes, the first: b"),
    ],
)
def test_classes_that_a_split_lacks_are_said_and_keep_their_numbers(
    train: str, val: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ["train"], train)
    write(tmp_path, ["val"], val, 3)
    data = opened(f"folder:{tmp_path}")
    assert words in capsys.readouterr().err
    assert {label for _, label in data.split("test")} == {train.index(name) for name in val}
    # torchvision numbers the folders of each split for itself: the same numbers would mean other classes.
    assert "the first of them" in (message := refusal(f"torch/image_folder:{tmp_path}"))
    assert opened(follow(message)).num_classes == len(train)


def test_empty_class_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write(tmp_path, ["train"]) / "train" / ".ipynb_checkpoints").mkdir()
    assert opened(f"folder:{tmp_path}").num_classes == 3
    assert "no images of 1 of 3 classes, the first: .ipynb_checkpoints" in capsys.readouterr().err


@pytest.mark.parametrize("splits", [["train", "val", "validation"], ["train", "training"], ["val", "valid"]])
def test_two_folders_for_one_split_are_refused_not_one_of_them_taken(splits: list[str], tmp_path: Path) -> None:
    assert "only one of them can be read" in refusal(f"folder:{write(tmp_path, splits)}")


@pytest.mark.parametrize(
    ("splits", "count", "words"),
    [
        (["train"], 1, "train: has 2 images; at least 3 are needed, to be divided into train, holdout and test"),
        (["train", "val"], 0, "train: holds no images"),
        (["val"], 0, "val: holds no images"),
    ],
)
def test_too_few_images_are_said(splits: list[str], count: int, words: str, tmp_path: Path) -> None:
    assert words in refusal(f"folder:{write(tmp_path, splits, count=count)}")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("splits", [["train"], ["val"], ["test"], ["train", "val"], ["val", "test"]])
def test_splits_of_one_or_two_images_never_divide_by_zero(splits: list[str], count: int, tmp_path: Path) -> None:
    root = write(tmp_path, splits, ["only"], count)
    message = refusal(f"folder:{root}")
    assert re.search(r"has 1 image|have label|classes|at least", message), message


def follow(message: str) -> str:
    """Return the source that a remedy names."""
    found = re.search(r"give ((?:torch/image_)?folder:[^ ,]+|images:[^ ,]+)", message)
    assert found is not None, message
    return found[1]


def test_remedies_for_a_folder_without_splits_work(tmp_path: Path) -> None:
    root = write(tmp_path / "data", ["train", "val"])
    assert count_of(opened(follow(refusal(f"folder:{root}/train")))) == 40
    assert count_of(opened(follow(refusal(f"torch/image_folder:{root}/val")))) == 40
    assert count_of(opened(follow(refusal(f"folder:{tmp_path}")))) == 40
    flat = write(tmp_path / "flat", ["."])
    assert count_of(opened(follow(message := refusal(f"folder:{flat}")), 2)) == 20
    assert "move its class folders into a folder train" in message
    for name in _CLASSES:
        (flat / "train").mkdir(exist_ok=True)
        shutil.move(flat / name, flat / "train" / name)
    assert count_of(opened(f"folder:{flat}")) == 20
    (tmp_path / "nothing").mkdir()
    assert "train/CLASS" in refusal(f"folder:{tmp_path / 'nothing'}")


def test_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for source in ("folder:", "images:", "parquet:", "wds/"):
        assert "is a file, not a folder" in refusal(f"{source}{tmp_path / 'file'}")
        assert "no such folder" in refusal(f"{source}{tmp_path / 'none'}")
        assert "is a file, not a folder" in refusal(f"{source}{tmp_path / 'pipe'}")
        assert "cannot be read" in refusal(f"{source}{tmp_path / 'loop'}")


def test_removing_the_broken_image_is_enough_with_a_cache_too(tmp_path: Path) -> None:
    root = write(tmp_path / "data", ["train"])
    path = root / "train" / "cat" / "0.png"
    whole = path.read_bytes()
    for content in (b"", whole[:30], b"GIF89a"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cat/0\.png"):
            open_data(f"folder:{root}", input_shape=_SHAPE, cache=tmp_path / "cache")
    path.unlink()
    assert count_of(open_data(f"folder:{root}", input_shape=_SHAPE, cache=tmp_path / "cache")) == 19


def test_headers_of_many_images_are_looked_at_once_for_each_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("layerfold.data._open.MANY", 10)
    root = write(tmp_path / "data", ["train"])
    first = Image.new("L", (8, 8))
    first.save(root / "train" / "cat" / "0.gif", save_all=True, append_images=[Image.new("L", (8, 8), 9)])
    for expected in (1, 0):
        open_data(f"folder:{root}", input_shape=_SHAPE, cache=tmp_path / "cache")
        assert capsys.readouterr().err.count("1 image with several frames; the first of each is taken") == expected
    path = root / "train" / "dog" / "3.png"
    path.write_bytes(b"x" * path.stat().st_size)  # of the same size
    with pytest.raises(DataError, match=r"dog/3\.png"):
        open_data(f"folder:{root}", input_shape=_SHAPE, cache=tmp_path / "cache")
