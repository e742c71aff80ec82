"""Data sets that timm reads: ``torch/NAME:FOLDER`` by torchvision, ``hfds/NAME`` by Hugging Face's ``datasets``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.data._encoded import opened
from layerfold.data._folders import remedy_for
from layerfold.data._stored import IMAGE_COLUMNS, LABEL_COLUMNS, POOL_NAMES, StoredData, choose_column, sizes_and_states
from layerfold.errors import DataError, OptionalDependencyError, UsageError, nearest_names
from layerfold.terminal import name_text

_TRAIN_TEST = {"train": "train", "test": "test"}
_TRAIN_VAL = {"train": "train", "val": "validation"}
# Which splits timm can make of each of torchvision's data sets, by our name and by its own.
_TORCHVISION = {
    "cifar10": _TRAIN_TEST,
    "cifar100": _TRAIN_TEST,
    "mnist": _TRAIN_TEST,
    "fashion_mnist": _TRAIN_TEST,
    "kmnist": _TRAIN_TEST,
    "qmnist": _TRAIN_TEST,
    "imagenet": _TRAIN_VAL,
    "places365": _TRAIN_VAL,
    "inaturalist": _TRAIN_VAL,
    "image_folder": {"train": "train", "val": "val", "test": "test"},
}


class TorchvisionImages:
    """Items of a torchvision data set."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset, self._name = dataset, name
        self.is_encoded = hasattr(dataset, "loader")
        if self.is_encoded:  # torchvision's own would make 16 bits white, wait for pipes, run PostScript
            dataset.loader = _open_file
        self.labels = _labels_of(dataset)

    def open(self, row: int) -> AbstractContextManager[Any]:
        image = self._dataset[row][0]
        return image if isinstance(image, AbstractContextManager) else nullcontext(image)

    def locate(self, row: int) -> str:
        files = getattr(self._dataset, "samples", None) or getattr(self._dataset, "imgs", None)
        return name_text(files[row][0]) if files is not None else f"{self._name}, item {row}"


class HubImages:
    """Rows of timm's reader of Hugging Face data sets."""

    is_encoded = True

    def __init__(self, reader: Any, name: str) -> None:
        self._reader, self._name = reader, name
        labels = list(reader.dataset[reader.label_key][:])
        if None in labels:
            raise DataError(
                f"{name_text(name)}, row {labels.index(None)}: has no label; label the image, or leave the row out"
            )
        self.labels = np.asarray(labels, dtype=np.int64)

    def open(self, row: int) -> AbstractContextManager[Any]:
        value = self._reader.dataset[row][self._reader.image_key] or {}
        if value.get("bytes"):
            return opened(bytes(value["bytes"]))
        if value.get("path"):
            return opened(Path(value["path"]))
        raise ValueError("no bytes in this row")

    def locate(self, row: int) -> str:
        return f"{self._name}, row {row}"


def _open_file(path: str) -> AbstractContextManager[Any]:
    return opened(Path(path))


def read_torchvision(text: str, download: bool) -> StoredData:
    """Open the data set ``NAME:FOLDER`` as timm's ``torch/NAME`` does.

    Raises:
        UsageError: an unknown name, no folder.
        DataError: it is not in the folder, and may not be fetched.
    """
    from timm.data.dataset_factory import create_dataset

    name, _, folder = text.partition(":")
    source = f"torch/{text}"
    if name not in _TORCHVISION:
        raise UsageError(
            f"--data {source}: {name!r} is unknown; timm knows {', '.join(sorted(_TORCHVISION))}"
            f"{nearest_names(name, _TORCHVISION)}"
        )
    if not folder:
        raise UsageError(f"--data {source}: give the folder that holds it, torch/{name}:FOLDER")
    if not download and not Path(folder).is_dir():
        raise UsageError(f"--data {source}: no such folder")
    pools: dict[str, TorchvisionImages] = {}
    for pool, split in _TORCHVISION[name].items():
        if name == "image_folder" and not (Path(folder) / split).is_dir():
            continue
        try:
            dataset = create_dataset(f"torch/{name}", root=folder, split=split, download=download)
        except Exception as error:  # torchvision raises RuntimeError, OSError, ValueError, ... for what is not there
            remedy = "" if download else "; --download lets torchvision fetch what it may"
            raise DataError(f"--data {source}: {split} cannot be opened ({_short(error)}){remedy}") from error
        pools[pool] = TorchvisionImages(dataset, f"{source}, {split}")
    if not pools:
        raise UsageError(
            f"--data {source}: has no train/, val/ or test/ inside; {remedy_for(Path(folder), f'torch/{name}:')}"
        )
    classes = getattr(next(iter(pools.values()))._dataset, "classes", None)
    _check_same_classes(source, pools)
    files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
    known = name.encode() + b"".join(images.labels.tobytes() for images in pools.values())
    content_hash, state_hash = sizes_and_states(files, Path(folder), known)
    return StoredData(
        pools=dict(pools),
        num_classes=None if classes is None else len(classes),
        content_hash=content_hash,
        state_hash=state_hash,
    )


def _check_same_classes(source: str, pools: Mapping[str, TorchvisionImages]) -> None:
    """Refuse splits that number other classes: torchvision counts the folders of each split for itself."""
    numbers = {pool: getattr(images._dataset, "class_to_idx", None) for pool, images in pools.items()}
    first = next(iter(numbers))
    for pool, other in numbers.items():
        if other != numbers[first]:
            names = sorted({*(numbers[first] or {})} ^ {*(other or {})}, key=str)
            raise DataError(
                f"--data {source}: {first} and {pool} have other class folders, the first of them "
                f"{name_text(str(names[0]))!r}, and torchvision numbers those of each for itself; give "
                f"folder:{source.partition(':')[2]}, which numbers them by train's"
            )


def read_hub(name: str, download: bool) -> StoredData:
    """Open a Hugging Face data set, or a local folder of Parquet or image files, through timm's reader.

    Raises:
        OptionalDependencyError: the package datasets is not installed.
        DataError: it is not there, and may not be fetched; or has no images with labels.
    """
    source = f"hfds/{name}"
    if not name:
        raise UsageError(f"--data {source}: give hfds/NAME, or hfds/FOLDER for files of your own")
    try:
        import datasets
    except ImportError as error:
        raise OptionalDependencyError(
            f"--data {source}: needs the package datasets; pip install 'layerfold[readers]'"
        ) from error
    from timm.data.readers.reader_factory import create_reader

    pools: dict[str, HubImages] = {}
    digest = hashlib.sha256()
    num_classes = None
    try:
        with _offline(not download), _without_bars(datasets):
            known = datasets.get_dataset_split_names(name)
            for pool, names in POOL_NAMES.items():
                split = next((known_name for known_name in known if known_name in names), None)
                if split is None:
                    continue
                features = datasets.load_dataset(name, split=split).features
                image, label = _columns(f"{source}, {split}", features)
                reader = create_reader(source, split=split, input_key=image, target_key=label)
                pools[pool] = HubImages(reader, f"{source}, {split}")
                num_classes = getattr(features[label], "num_classes", None)
                digest.update(f"{pool} {reader.dataset._fingerprint}".encode() + pools[pool].labels.tobytes())
    except (DataError, OptionalDependencyError):
        raise
    except Exception as error:  # its packages raise errors of many kinds, also for a network that is not allowed
        remedy = "" if download or os.path.exists(name) else "; --download lets the package datasets fetch it"
        raise DataError(f"--data {source}: cannot be opened ({_short(error)}){remedy}") from error
    if not pools:
        raise DataError(f"--data {source}: has the splits {', '.join(known)}; expected train, validation or test")
    return StoredData(pools=dict(pools), num_classes=num_classes, content_hash=digest.hexdigest())


def _columns(what: str, features: Any) -> tuple[str, str]:
    """Return the names of the columns of images and labels."""
    import datasets

    def is_integer(feature: Any) -> bool:
        return isinstance(feature, datasets.ClassLabel) or "int" in str(getattr(feature, "dtype", ""))

    images = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Image)
        or (isinstance(feature, dict) and "bytes" in feature)
        or getattr(feature, "dtype", "") in ("binary", "large_binary")
    ]
    return (
        choose_column(what, "images", images, IMAGE_COLUMNS),
        choose_column(what, "integer labels", [n for n, f in features.items() if is_integer(f)], LABEL_COLUMNS),
    )


@contextmanager
def _offline(is_offline: bool) -> Iterator[None]:
    """Keep the package datasets off the network, whose own switch is read from the environment once, at import."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if is_offline:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


@contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    was_on = datasets.utils.is_progress_bar_enabled()
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.utils.enable_progress_bars()


def _labels_of(dataset: Any) -> NDArray[np.int64]:
    targets = getattr(dataset, "targets", None)
    if targets is not None and np.asarray(targets).ndim == 1:
        return np.asarray(targets).astype(np.int64)
    return np.asarray([dataset[row][1] for row in range(len(dataset))], dtype=np.int64)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
