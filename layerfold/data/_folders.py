"""Image files in folders: in a folder per class, or without labels. No torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.data._decoded import StoredImages
from layerfold.data._encoded import opened
from layerfold.data._stored import (
    POOL_NAMES,
    UNLABELLED,
    StoredData,
    check_folder,
    counted,
    parts_of,
    sizes_and_states,
)
from layerfold.errors import DataError, UsageError
from layerfold.terminal import name_text

_IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
_LEAST_UNLABELLED = 10


class FolderImages:
    """Image files with labels."""

    is_encoded = True

    def __init__(self, paths: Sequence[Path], labels: NDArray[np.int64]) -> None:
        self._paths, self.labels = paths, labels

    def open(self, row: int) -> AbstractContextManager[Any]:
        return opened(self._paths[row])

    def locate(self, row: int) -> str:
        return name_text(self._paths[row])


@dataclass(frozen=True)
class _Found:
    """Files below a folder: images by their names, and all others."""

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def read_folder(root: Path) -> StoredData:
    """Find images under ``train/CLASS/``, ``val/CLASS/`` and ``test/CLASS/``, as torchvision's ImageFolder does.

    Raises:
        UsageError: no such folder, or none of these in it.
        DataError: a class that train does not know, no images, or one that is no regular file.
    """
    source = f"folder:{root}"
    check_folder(root, source)
    folders = parts_of(root, source, "", Path.is_dir)
    if not folders:
        raise UsageError(f"--data {source}: has no train/, val/ or test/ inside; {remedy_for(root)}")
    first = folders.get("train") or next(iter(folders.values()))
    classes = sorted(entry.name for entry in _entries(first) if entry.is_dir())
    pools: dict[str, StoredImages] = {}
    files: list[Path] = []
    others: list[Path] = []
    notes: list[str] = []
    for pool, folder in folders.items():
        found = _class_folders(root, folder, classes, first)
        others += found.pop("", _Found()).others
        paths = [path for name in found for path in found[name].images]
        if not paths:
            raise DataError(
                f"{name_text(folder)}: holds no images; expected {name_text(folder)}/CLASS/NAME.jpg (or "
                "png, bmp, webp, ...)"
            )
        labels = [classes.index(name) for name in found for _ in found[name].images]
        pools[pool] = FolderImages(paths, np.asarray(labels, dtype=np.int64))
        files += paths
        others += [path for name in found for path in found[name].others]
        notes += _without_images(f"{source}, {folder.name}", classes, found)
    content_hash, state_hash = sizes_and_states(files, root)
    return StoredData(
        pools=pools,
        num_classes=len(classes),
        content_hash=content_hash,
        state_hash=state_hash,
        notes=(*notes, *_passed_over(source, others)),
    )


def read_images(root: Path) -> StoredData:
    """Find every image below a folder; none has a label.

    Raises:
        UsageError: no such folder.
        DataError: too few images, or one that is no regular file.
    """
    source = f"images:{root}"
    check_folder(root, source)
    found = _files_below(root, ())
    files = sorted(found.images)
    if len(files) < _LEAST_UNLABELLED:
        raise DataError(
            f"--data {source}: holds {counted(len(files), 'image')}; at least {_LEAST_UNLABELLED} are "
            "needed, to be divided into train, holdout and test"
        )
    images = FolderImages(files, np.full(len(files), UNLABELLED, dtype=np.int64))
    content_hash, state_hash = sizes_and_states(files, root)
    return StoredData(
        pools={"train": images},
        num_classes=None,
        content_hash=content_hash,
        state_hash=state_hash,
        is_labelled=False,
        notes=tuple(_passed_over(source, found.others)),
    )


def _class_folders(root: Path, folder: Path, classes: Sequence[str], first: Path) -> dict[str, _Found]:
    """Return what lies below each class folder, sorted; under ``""`` the files beside them."""
    found: dict[str, _Found] = {}
    beside = _Found()
    for entry in _entries(folder):
        if not entry.is_dir():
            beside.others.append(Path(entry.path))
            continue
        if entry.name not in classes:
            raise DataError(
                f"{name_text(entry.path)}: class {name_text(entry.name)!r} is not in {name_text(first)}; "
                "the same class folders are needed in every split: add it there, or move it away here"
            )
        below = _files_below(Path(entry.path), (root, folder))
        found[entry.name] = _Found(sorted(below.images), below.others)
    if beside.others:
        found[""] = beside
    return found


def _files_below(folder: Path, above: tuple[Path, ...]) -> _Found:
    """Return the files in a folder and its folders; links are followed, but not back to one of those ``above``.

    Raises:
        DataError: a folder that cannot be read, or what has an image's name and is no file: reading it might never end.
    """
    found = _Found()
    if any(folder.samefile(each) for each in above):
        found.others.append(folder)
        return found
    for entry in _entries(folder):
        path = Path(entry.path)
        try:
            status = entry.stat()
        except OSError as error:
            if path.suffix.lower() not in _IMAGE_SUFFIXES:
                found.others.append(path)
                continue
            raise DataError(
                f"{name_text(path)}: not a readable image ({error.strerror}); repair or remove it"
            ) from None
        if stat.S_ISDIR(status.st_mode):
            below = _files_below(path, (*above, folder))
            found.images.extend(below.images)
            found.others.extend(below.others)
        elif path.suffix.lower() not in _IMAGE_SUFFIXES:
            found.others.append(path)
        elif stat.S_ISREG(status.st_mode):
            found.images.append(path)
        else:
            raise DataError(
                f"{name_text(path)}: not a readable image (it is a pipe or a device, not a file); repair or remove it"
            )
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{name_text(folder)}: cannot be read ({error.strerror})") from None


def _without_images(what: str, classes: Sequence[str], found: Mapping[str, _Found]) -> Iterator[str]:
    absent = [name for name in classes if name not in found or not found[name].images]
    if absent:
        yield f"{what}: holds no images of {len(absent)} of {len(classes)} classes, the first: {name_text(absent[0])}"


def _passed_over(source: str, others: Sequence[Path]) -> Iterator[str]:
    if others:
        # What has an image's name lies beside the class folders, where nothing tells its class.
        yield (
            f"{source}: {counted(len(others), 'file')} passed over, which by name or place {_are(others)} no image "
            f"of a class; the first: {name_text(min(others))}"
        )


def _are(items: Sequence[Path]) -> str:
    return "is" if len(items) == 1 else "are"


def remedy_for(root: Path, prefix: str = "folder:") -> str:
    """Return what to do about a folder without splits, for what it looks like; each remedy works as it is."""
    names = {name for known in POOL_NAMES.values() for name in known}
    if root.resolve().name in names:
        return f"give {prefix}{name_text(root.resolve().parent)}, the folder above it"
    inner = [entry for entry in _entries(root) if entry.is_dir()]
    for entry in inner:
        if any((Path(entry.path) / name).is_dir() for name in names):
            return f"give {prefix}{name_text(entry.path)}"
    if inner:
        return "move its class folders into a folder train, or give images:" + name_text(root) + " to do without labels"
    return "put the images of each class into a folder train/CLASS inside it"
