"""Decoded images are kept on disk, and nothing that happens to the file changes a pixel."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from layerfold.cli._sources import add_data_arguments, open_data_of
from layerfold.data import ImageData, open_data
from layerfold.data import _stores as stores
from layerfold.data._folders import FolderImages
from layerfold.data._stores import FileStore
from layerfold.errors import DataError, UsageError

_SHAPE = (3, 16, 16)
_FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 80 noisy images of different sizes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(80):
        pixels = generator.integers(0, 256, (20 + index % 7, 20 + index % 11, 3), dtype=np.uint8)
        path = root / ("train" if index < 60 else "test") / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def opened(folder: Path, cache: Path | str, **options: Any) -> ImageData:
    return open_data(f"folder:{folder}", input_shape=_SHAPE, cache=cache, **options)


def pixels_of(data: ImageData) -> torch.Tensor:
    return torch.cat([images for images, _ in data.loader("train", 16)])


@pytest.fixture(scope="module")
def expected(folder: Path) -> torch.Tensor:
    return pixels_of(opened(folder, "off"))


@pytest.mark.parametrize("most", [2**30, 1])
@pytest.mark.parametrize("augment", [False, True])
def test_images_are_the_same_with_and_without_cache(folder: Path, tmp_path: Path, most: int, augment: bool) -> None:
    without, first, second = (opened(folder, cache, max_array_bytes=most) for cache in ("off", tmp_path, tmp_path))
    loaders = [data.loader("train", 8, shuffle=True, augment=augment) for data in (without, first, second)]
    for (a, x), (b, y), (c, z) in zip(*loaders, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert torch.equal(x, y)
        assert torch.equal(x, z)
    assert without.fingerprint == first.fingerprint


@pytest.mark.parametrize("most", [2**30, 1])
def test_second_run_decodes_nothing(
    folder: Path, tmp_path: Path, expected: torch.Tensor, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder, tmp_path, max_array_bytes=most).loader("test", 4)
    pixels_of(opened(folder, tmp_path, max_array_bytes=most))
    again = opened(folder, tmp_path, max_array_bytes=most)

    def refuse(self: FolderImages, row: int) -> None:
        raise AssertionError(f"row {row} was decoded again")

    monkeypatch.setattr(FolderImages, "open", refuse)
    assert torch.equal(pixels_of(again), expected)
    with pytest.raises(DataError, match="decoded again"):  # of the test split nothing was asked for before
        next(iter(again.loader("test", 4)))


def test_large_split_is_cut_from_whole_images_that_are_cached(folder: Path, tmp_path: Path) -> None:
    large = opened(folder, tmp_path, max_array_bytes=1)
    for _ in large.loader("train", 8, augment=True):
        pass
    (path,) = tmp_path.glob("*.npy")
    # 16 pixels * 10 / 7
    assert np.load(path, mmap_mode="r", allow_pickle=False)["pixels"].shape == (60, 23, 23, 3)


@pytest.fixture
def cached(folder: Path, tmp_path: Path, expected: torch.Tensor) -> Path:
    """Return the file that holds the training images."""
    assert torch.equal(pixels_of(opened(folder, tmp_path)), expected)
    (path,) = tmp_path.glob("*.npy")
    return path


def test_damaged_image_is_decoded_and_written_again(folder: Path, cached: Path, expected: torch.Tensor) -> None:
    whole = cached.read_bytes()
    for place in (len(whole) - 1, len(whole) // 2, len(whole) // 3):
        with cached.open("r+b") as stream:
            stream.seek(place)
            stream.write(bytes([whole[place] ^ 1]))
    assert torch.equal(pixels_of(opened(folder, cached.parent)), expected)
    assert cached.read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: os.truncate(path, 100),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': [1 + 1}" + bytes(5000)),
        lambda path: np.save(path, np.zeros((60, 16, 16, 3), np.uint8)),
        lambda path: np.save(path, np.asarray([{}], dtype=object), allow_pickle=True),
    ],
)
def test_file_that_cannot_be_used_is_made_anew(
    folder: Path,
    cached: Path,
    expected: torch.Tensor,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = cached.read_bytes()
    damage(cached)
    assert torch.equal(pixels_of(opened(folder, cached.parent)), expected)
    assert cached.read_bytes() == whole
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"layerfold: the image cache {cached} is damaged (")
    assert [file.name for file in cached.parent.iterdir()] == [cached.name]


@pytest.mark.parametrize(
    "kind", ["flipped", "cut short", "emptied", "removed", "others'", "a folder", "a pipe", "a loop"]
)
def test_what_happens_to_the_file_during_a_run_changes_no_pixel(
    folder: Path, tmp_path: Path, expected: torch.Tensor, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = opened(folder, tmp_path)
    assert torch.equal(pixels_of(data), expected)
    (path,) = tmp_path.glob("*.npy")
    whole = path.read_bytes()
    match kind:
        case "flipped":
            with path.open("r+b") as stream:
                for place in range(700, len(whole), 700):
                    stream.seek(place)
                    stream.write(bytes([whole[place] ^ 255]))
        case "cut short":
            os.truncate(path, len(whole) // 2)
        case "emptied":
            os.truncate(path, 0)
        case "others'":  # every record is whole, but of another image
            head = len(whole) % (len(whole) // 60)
            size = (len(whole) - head) // 60
            path.write_bytes(whole[:head] + whole[head + size :] + whole[head : head + size])
        case _:
            path.unlink()
            if kind == "a folder":
                path.mkdir()
            elif kind == "a pipe":
                os.mkfifo(path)
            elif kind == "a loop":
                path.symlink_to(path.name)
    for _ in range(2):
        assert torch.equal(pixels_of(data), expected)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("layerfold: ") for line in lines)
    assert len(lines) <= 2
    # Folders and links are not ours to remove; flipped bytes stay where no image was written.
    if kind not in ("a folder", "a loop", "flipped"):
        assert path.read_bytes() == whole


def test_file_of_other_images_under_this_name_is_not_believed(folder: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    for path in folder.rglob("*.png"):
        (others / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), "red").save(others / path.relative_to(folder))
    red = pixels_of(opened(others, tmp_path / "red"))
    noisy = pixels_of(opened(folder, tmp_path / "noisy"))
    (mine,), (other,) = (tmp_path / "noisy").glob("*.npy"), (tmp_path / "red").glob("*.npy")
    shutil.copyfile(other, mine)
    assert torch.equal(pixels_of(opened(folder, tmp_path / "noisy")), noisy)
    assert not torch.equal(red, noisy)


@pytest.mark.parametrize("others", ["", "train", "train/class0", "test", "test/class1"])
def test_other_images_of_one_folder_are_another_file(
    folder: Path, tmp_path: Path, others: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels_of(opened(folder, tmp_path))
    open_data(f"images:{folder / others}", input_shape=_SHAPE, cache=tmp_path, num_classes=2).preload()
    pixels_of(opened(folder, tmp_path))
    assert "damaged" not in capsys.readouterr().err


def fill(folder: Path, cache: Path) -> None:
    opened(folder, cache).preload("train", "holdout", "test")


def test_killed_writer_leaves_nothing_half_read(folder: Path, tmp_path: Path, expected: torch.Tensor) -> None:
    generator = np.random.default_rng(0)
    for _ in range(6):
        child = _FORK.Process(target=fill, args=(folder, tmp_path))
        child.start()
        time.sleep(float(generator.uniform(0.0, 0.08)))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        assert torch.equal(pixels_of(opened(folder, tmp_path)), expected)
        for file in tmp_path.glob("*.npy"):
            with file.open("r+b") as stream:  # half of the records are gone, the next writer has them to do
                stream.truncate(file.stat().st_size // 2)
                stream.truncate(file.stat().st_size)


def test_two_processes_fill_one_file_together(folder: Path, tmp_path: Path, expected: torch.Tensor) -> None:
    children = [_FORK.Process(target=fill, args=(folder, tmp_path)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".npy", ".npy"]  # train with holdout, and test
    for file in tmp_path.iterdir():
        count = len(np.load(file, mmap_mode="r", allow_pickle=False))
        store = FileStore(file, count, (16, 16, 3), np.arange(count))
        assert store.stored(np.arange(count)).all()
    assert torch.equal(pixels_of(opened(folder, tmp_path)), expected)


@pytest.fixture
def small_files_only() -> Iterator[Callable[[int], None]]:
    """Return a function that makes every write behind so many bytes fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("most", [2**30, 1])
@pytest.mark.parametrize("is_begun", [False, True])
def test_full_disk_gives_one_line_and_goes_on(
    folder: Path,
    tmp_path: Path,
    expected: torch.Tensor,
    most: int,
    is_begun: bool,
    small_files_only: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = opened(folder, tmp_path, max_array_bytes=most)
    if is_begun:  # the file is there, and the first images fit
        next(iter(data.loader("train", 1)))
    small_files_only(20_000 if is_begun else 1000)
    found = [pixels_of(data) for _ in range(2)]
    small_files_only(resource.RLIM_INFINITY)
    assert all(torch.equal(pixels, expected) for pixels in found)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("layerfold: images are not cached on disk: File too large; free some space there")
    assert not list(tmp_path.glob("*.partial"))


def test_file_that_would_take_most_of_the_disk_is_not_begun(
    folder: Path,
    tmp_path: Path,
    expected: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(stores, "MOST_OF_FREE_SPACE", 40_000 / shutil.disk_usage(tmp_path).free)
    assert torch.equal(pixels_of(opened(folder, tmp_path)), expected)
    assert "more than half of the" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_image_written_anew_with_the_same_size_is_seen(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    for path in images.rglob("*.png"):
        path.rename(path.with_suffix(".bmp"))
        Image.new("RGB", (16, 16), "red").save(path.with_suffix(".bmp"))
    before = pixels_of(opened(images, tmp_path / "cache"))
    for path in images.rglob("*.bmp"):
        size = path.stat().st_size
        Image.new("RGB", (16, 16), "blue").save(path)
        assert path.stat().st_size == size
    after = pixels_of(opened(images, tmp_path / "cache"))
    assert not torch.equal(before, after)
    assert torch.equal(after, pixels_of(opened(images, "off")))


@pytest.mark.parametrize("is_off", [True, False])
def test_command_line_names_the_folder(folder: Path, tmp_path: Path, is_off: bool) -> None:
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    cache = "off" if is_off else str(tmp_path)
    loaded = SimpleNamespace(mean=None, std=None, interpolation=None, crop_pct=None, num_classes=2, input_shape=_SHAPE)
    arguments = parser.parse_args(["--data", f"folder:{folder}", "--image-cache", cache])
    open_data_of(arguments, loaded).preload()  # type: ignore[arg-type]
    assert bool(list(tmp_path.iterdir())) != is_off


def test_cache_must_be_a_folder_or_off(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", ""):
        with pytest.raises(UsageError, match=r"^cache='.*': is no folder; give a folder"):
            opened(folder, cache)


def test_cache_that_is_off_writes_nothing_and_ends_no_thread_late(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerfold.data._image_cache.default_cache_folder", lambda: tmp_path)
    pixels_of(opened(folder, "off"))
    assert not list(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name == "layerfold-batches"]
