"""WebDataset shards: tar files in which ``KEY.jpg`` and ``KEY.cls`` belong together. No torch.

timm and the package webdataset read shards from one end to the other. Here every image has to be found by its row, so
that an epoch can go on in its middle: the headers of the tar files are read once, and images where they lie.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.data._encoded import opened, reason_of
from layerfold.data._stored import POOL_NAMES, StoredData, check_folder, state_text
from layerfold.errors import DataError, UsageError
from layerfold.files import read_json
from layerfold.terminal import name_text

_INFO_NAMES = ("_info.json", "info.json")
_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_BLOCK, _CHUNK = 512, 1 << 20
_MOST_LABEL_BYTES = 1 << 20
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


class ShardImages:
    """Images inside uncompressed tar files."""

    is_encoded = True

    def __init__(
        self,
        shards: Sequence[Path],
        shard: NDArray[np.int32],
        spans: NDArray[np.int64],
        keys: Sequence[str],
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
        return f"{name_text(self._shards[self._shard[row]])}, {name_text(self._keys[row])}"


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
    source = f"wds/{root}"
    check_folder(root, source)
    found, label_fields = _listed_shards(root)
    if not found and any(os.path.lexists(root / name) for name in _INFO_NAMES):
        raise UsageError(f"--data {source}: its _info.json lists no files of train, validation or test")
    if not found:
        raise UsageError(
            f"--data {source}: has no _info.json, nor .tar files with train, val or test in their names; "
            "rename them, for example to train-0000.tar"
        )
    digest, state = hashlib.sha256(), hashlib.sha256()
    for pool, shards in found.items():
        for shard in shards:
            if not shard.is_file():
                what = "is no regular file" if os.path.lexists(shard) else "no such file, but _info.json lists it"
                raise DataError(f"{name_text(shard)}: {what}; repair or remove it, and its name in _info.json")
            status = shard.stat()
            digest.update(f"{pool} {shard.name} {status.st_size}\n".encode(errors="surrogateescape"))
            state.update(state_text(status).encode())
    pools = {pool: _read_index(shards, label_fields.get(pool)) for pool, shards in found.items()}
    for images in pools.values():
        digest.update(images.labels.tobytes())
    return StoredData(
        pools=dict(pools), num_classes=None, content_hash=digest.hexdigest(), state_hash=state.hexdigest()
    )


@dataclass(frozen=True, kw_only=True)
class _ListedSplit:
    filenames: list[str]
    alt_label: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Info:
    splits: dict[str, _ListedSplit]


def _listed_shards(root: Path) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Return the shards of each pool, and the JSON field of the labels where it is not the ``.cls`` file."""
    info_path = next((root / name for name in _INFO_NAMES if os.path.lexists(root / name)), None)
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
        splits = read_json(info_path, _Info, remedy='expected {"splits": {"train": {"filenames": [...]}}}').splits
    except UsageError as error:
        reason = str(error).removeprefix(f"{info_path}: ")
        raise DataError(f"{name_text(info_path)}: not as timm writes it ({reason})") from None
    for pool, names in POOL_NAMES.items():
        split = next((splits[name] for name in names if name in splits), None)
        if split is not None and split.filenames:
            found[pool] = [_inside(root, name, info_path) for name in split.filenames]
            paths = [path.resolve() for path in found[pool]]
            name, count = Counter(paths).most_common(1)[0]
            if count > 1:  # every image of it would count as often, and a long list of one file be read for hours
                raise DataError(
                    f"{name_text(info_path)}: lists {name_text(name.name)!r} {count:,} times; list each shard once"
                )
            if split.alt_label:
                fields[pool] = split.alt_label
    return found, fields


def _inside(root: Path, name: str, info_path: Path) -> Path:
    path = root / name
    try:
        is_inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a zero byte, a name too long, links that lead in a circle
        is_inside = False
    if not is_inside:
        raise DataError(f"{name_text(info_path)}: lists {name_text(name)!r}, which lies outside the folder")
    return path


def _read_index(shards: list[Path], label_field: str | None) -> ShardImages:
    shard_numbers: list[int] = []
    spans: list[tuple[int, int]] = []
    keys: list[str] = []
    labels: list[int] = []
    for number, shard in enumerate(shards):
        try:
            samples = list(_samples(shard, label_field))
        except DataError:
            raise
        except Exception as error:  # tarfile raises its own, OSError, ValueError, UnicodeError, ... for broken headers
            raise DataError(
                f"{name_text(shard)}: not a readable tar file ({reason_of(error)}); "
                "shards must be whole and uncompressed"
            ) from error
        for key, span, label in samples:
            shard_numbers.append(number)
            spans.append(span)
            keys.append(key)
            labels.append(label)
    return ShardImages(
        shards,
        np.asarray(shard_numbers, np.int32),
        np.asarray(spans, np.int64).reshape(-1, 2),
        keys,
        np.asarray(labels, np.int64),
    )


def _samples(shard: Path, label_field: str | None) -> Iterator[tuple[str, tuple[int, int], int]]:
    """Yield key, (start, size) of the image, and label of each sample of one tar file."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    label_extension = "cls" if label_field is None else "json"
    end = shard.stat().st_size
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            matched = _MEMBER.fullmatch(member.name)
            if matched is None or member.isdir():
                continue
            key, extension = matched[1], matched[2].lower()
            if extension not in (*_IMAGE_EXTENSIONS, label_extension):
                continue
            if not member.isreg() or member.issparse():
                raise DataError(
                    f"{name_text(shard)}, {name_text(member.name)}: is a link, a device or a file with "
                    "holes, and only whole files are read; write the shard again without it"
                )
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"ends within {member.name}")
            if extension in _IMAGE_EXTENSIONS:
                images.setdefault(key, (member.offset_data, member.size))
            else:
                labels[key] = _label(shard, key, _text_of(archive, member), label_field)
        _check_end(shard, archive.offset)
    for key, span in images.items():
        if key not in labels:
            raise DataError(
                f"{name_text(shard)}, {name_text(key)}: has no label; expected "
                f"{name_text(key)}.{label_extension} beside the image"
            )
        yield key, span, labels[key]


def _check_end(shard: Path, reached: int) -> None:
    """Refuse a tar file that lacks its end, or goes on behind it: tarfile would leave images out without a word."""
    with shard.open("rb") as stream:
        stream.seek(reached)
        if stream.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"at byte {reached} stands neither a file nor the end")
        while chunk := stream.read(_CHUNK):
            if chunk.count(0) != len(chunk):
                raise tarfile.ReadError("more follows behind its end; join shards by writing them again")


def _text_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _MOST_LABEL_BYTES:
        raise tarfile.ReadError(f"{name_text(member.name)} has {member.size:,} bytes, which is no label")
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def _label(shard: Path, key: str, text: bytes, field: str | None) -> int:
    try:
        value = int(text) if field is None else json.loads(text)[field]
        number = int(value)
        if isinstance(value, (bool, float)) or abs(number) >= 2**63:
            raise ValueError
        return number
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        where = "its .cls file holds" if field is None else f"field {field!r} of its .json file holds"
        raise DataError(f"{name_text(shard)}, {name_text(key)}: {where} no whole number ({text[:20]!r})") from error
