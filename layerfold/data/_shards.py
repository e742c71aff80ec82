"""WebDataset shards: tar files in which ``KEY.jpg`` and ``KEY.cls`` belong together. No torch.

timm and the package webdataset read shards from one end to the other. Here every image has to be found by its row, so
that an epoch can go on in its middle: the headers of the tar files are read once, and images where they lie.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.data._encoded import opened, shown
from layerfold.data._stored import POOL_NAMES, StoredData, state_of
from layerfold.errors import DataError, UsageError

_INFO_NAMES = ("_info.json", "info.json")
_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


class ShardImages:
    """Images inside uncompressed tar files."""

    def __init__(
        self, shards: Sequence[Path], shard: NDArray[np.int32], spans: NDArray[np.int64], keys: Sequence[str],
        labels: NDArray[np.int64],
    ) -> None:
        self._shards, self._shard, self._spans, self._keys, self.labels = shards, shard, spans, keys, labels

    @contextmanager
    def open(self, row: int) -> Iterator[Any]:
        start, size = (int(value) for value in self._spans[row])
        with (
            self._shards[self._shard[row]].open("rb", buffering=0) as stream,
            io.BufferedReader(_Part(stream, start, size)) as part,
            opened(part) as image,
        ):
            yield image

    def locate(self, row: int) -> str:
        return f"{shown(self._shards[self._shard[row]])}, {shown(self._keys[row])}"


class _Part(io.RawIOBase):
    """A part of a file as a file: its header can be looked at without reading all of it."""

    def __init__(self, stream: io.FileIO, start: int, size: int) -> None:
        self._stream, self._start, self._size, self._at = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        self._stream.seek(self._start + self._at)
        count = self._stream.readinto(view)
        self._at += count
        return count


def read_shards(root: Path) -> StoredData:
    """Find the shards of each split: as timm's ``_info.json`` lists them, else by their names.

    Raises:
        UsageError: no such folder, or no shards in it.
        DataError: a shard that is cut short, an image without a label.
    """
    if not root.is_dir():
        raise UsageError(f"--data wds/{root}: no such folder; give the folder that holds the .tar files")
    found, label_fields = _listed_shards(root)
    if not found:
        raise UsageError(f"--data wds/{root}: has no _info.json, nor .tar files with train, val or test in their names")
    digest, state = hashlib.sha256(), hashlib.sha256()
    for pool, shards in found.items():
        for shard in shards:
            if not shard.is_file():
                raise DataError(f"{shard}: no such file, but the dataset's _info.json lists it")
            digest.update(f"{pool} {shard.name} {shard.stat().st_size}\n".encode())
            state.update(state_of(shard))
    pools = {pool: _read_index(shards, label_fields.get(pool)) for pool, shards in found.items()}
    for images in pools.values():
        digest.update(images.labels.tobytes())
    return StoredData(pools=dict(pools), num_classes=None, content_hash=digest.hexdigest(),
                      state_hash=state.hexdigest())


def _listed_shards(root: Path) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Return the shards of each pool, and the JSON field of the labels where it is not the ``.cls`` file."""
    info_path = next((root / name for name in _INFO_NAMES if (root / name).is_file()), None)
    found: dict[str, list[Path]] = {}
    fields: dict[str, str] = {}
    if info_path is None:
        tars = sorted(root.glob("*.tar"))
        for pool, names in POOL_NAMES.items():
            chosen = [tar for tar in tars if set(re.split(r"[^a-z]+", tar.stem.lower())) & set(names)]
            if chosen:
                found[pool] = chosen
        return found, fields
    try:
        splits = json.loads(info_path.read_text())["splits"]
        for pool, names in POOL_NAMES.items():
            split = next((splits[name] for name in names if name in splits), None)
            if split is not None:
                found[pool] = [_inside(root, name, info_path) for name in split["filenames"]]
                if split.get("alt_label"):
                    fields[pool] = split["alt_label"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{info_path}: not as timm writes it ({type(error).__name__}: {error}); expected "
                        '{"splits": {"train": {"filenames": [...]}}}') from error
    return found, fields


def _inside(root: Path, name: str, info_path: Path) -> Path:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{info_path}: lists {name!r}, which lies outside the folder")
    return path


def _read_index(shards: list[Path], label_field: str | None) -> ShardImages:
    shard_numbers: list[int] = []
    spans: list[tuple[int, int]] = []
    keys: list[str] = []
    labels: list[int] = []
    for number, shard in enumerate(shards):
        try:
            for key, span, label in _samples(shard, label_field):
                shard_numbers.append(number)
                spans.append(span)
                keys.append(key)
                labels.append(label)
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{shard}: not a readable tar file ({error}); "
                            "shards must be whole and uncompressed") from error
    return ShardImages(shards, np.asarray(shard_numbers, np.int32), np.asarray(spans, np.int64).reshape(-1, 2), keys,
                       np.asarray(labels, np.int64))


def _samples(shard: Path, label_field: str | None) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Yield key, (start, size) of the image, and label of each sample of one tar file."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    label_extension = "cls" if label_field is None else "json"
    end = shard.stat().st_size
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            matched = _MEMBER.fullmatch(member.name)
            if matched is None or not member.isfile():
                continue
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"ends within {member.name}")
            key, extension = matched[1], matched[2].lower()
            if extension in _IMAGE_EXTENSIONS:
                images.setdefault(key, (member.offset_data, member.size))
            elif extension == label_extension:
                stream = archive.extractfile(member)
                labels[key] = _label(shard, key, stream.read() if stream is not None else b"", label_field)
    for key, span in images.items():
        if key not in labels:
            raise DataError(f"{shard}, {key}: has no label; expected {key}.{label_extension} beside the image")
        yield key, span, labels[key]


def _label(shard: Path, key: str, text: bytes, field: str | None) -> int:
    try:
        return int(text if field is None else json.loads(text)[field])
    except (ValueError, KeyError, TypeError) as error:
        where = "its .cls file holds" if field is None else f"field {field!r} of its .json file holds"
        raise DataError(f"{shard}, {key}: {where} no whole number ({text[:20]!r})") from error
