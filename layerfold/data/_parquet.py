"""Images and labels in Parquet files. No torch."""

from __future__ import annotations

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.data._decoded import StoredImages
from layerfold.data._encoded import opened
from layerfold.data._stored import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    StoredData,
    check_folder,
    choose_column,
    parts_of,
)
from layerfold.errors import DataError, OptionalDependencyError, UsageError
from layerfold.files import file_sha256
from layerfold.terminal import name_text


class ParquetImages:
    """A column of encoded images beside a column of labels."""

    is_encoded = True

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
        return f"{name_text(self._path)}, row {row}"


def read_parquet(root: Path) -> StoredData:
    """Read ``train.parquet``, ``val.parquet`` and ``test.parquet``: a column of image bytes and one of labels."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise OptionalDependencyError(
            f"--data parquet:{root}: needs the package pyarrow; pip install pyarrow"
        ) from error
    source = f"parquet:{root}"
    check_folder(root, source)
    files = parts_of(root, source, ".parquet", os.path.lexists)
    if not files:
        others = sorted(root.glob("*.parquet"))
        remedy = f"rename {name_text(others[0].name)} and the others" if others else "name them so"
        raise UsageError(
            f"--data {source}: has no train.parquet, val.parquet or test.parquet inside; {remedy}, one file each"
        )
    digest = hashlib.sha256()
    pools: dict[str, StoredImages] = {}
    for pool, path in files.items():
        if not path.is_file():
            raise DataError(f"{name_text(path)}: is a folder, a pipe or a link to nothing; expected one Parquet file")
        pools[pool] = _read_parquet_file(path)
        digest.update(bytes.fromhex(file_sha256(path)))
    return StoredData(pools=pools, num_classes=None, content_hash=digest.hexdigest())


def _read_parquet_file(path: Path) -> ParquetImages:
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = name_text(path)
    try:
        schema = pq.read_schema(path)
        names = list(schema.names)
    except Exception as error:  # pyarrow raises errors of many kinds for files that are damaged, or no Parquet at all
        raise DataError(f"{where}: not a Parquet file ({_reason(error)})") from error
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: has two columns named {twice!r}; rename one")

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    images = choose_column(where, "image bytes", [f.name for f in schema if holds_images(f.type)], IMAGE_COLUMNS)
    labels = choose_column(
        where, "integer labels", [f.name for f in schema if pa.types.is_integer(f.type)], LABEL_COLUMNS
    )
    table = _read_columns(path, [images, labels])
    column = table.column(labels)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{where}, row {row}: column {labels!r} has no label; label the image or leave the row out")
    values = column.to_numpy()
    if len(values) and int(values.max()) > np.iinfo(np.int64).max:
        row = int(values.argmax())
        raise DataError(f"{where}, row {row}: label {values[row]} is larger than any class")
    return ParquetImages(path, images, table.column(images), values.astype(np.int64))


def _read_columns(path: Path, names: list[str]) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=names, memory_map=True)
    except Exception as error:  # as above
        raise DataError(f"{name_text(path)}: cannot be read ({_reason(error)}); write it again") from error


def _reason(error: Exception) -> str:
    return name_text(" ".join(str(error).split()))[:100] or type(error).__name__
