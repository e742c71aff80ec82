"""``open_data``: from a source's name to three splits."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from layerfold.arguments import checked, image_shape
from layerfold.data._decoded import StoredImages
from layerfold.data._digits import DIGITS, read_digits
from layerfold.data._factory import data_of_factory
from layerfold.data._folders import read_folder, read_images
from layerfold.data._headers import MANY, check_headers
from layerfold.data._image_cache import ImageCache
from layerfold.data._image_data import ImageData
from layerfold.data._parquet import read_parquet
from layerfold.data._readers import read_hub, read_torchvision
from layerfold.data._shards import read_shards
from layerfold.data._splits import ImageSplit, Split
from layerfold.data._splitting import Rows, holdout_size, stratified_parts
from layerfold.data._stored import StoredData, counted
from layerfold.data.preprocessing import Preprocessing, default_normalisation
from layerfold.errors import DataError, UsageError, nearest_names
from layerfold.factories import is_factory_source
from layerfold.files import JsonObject
from layerfold.options import DataOptions
from layerfold.settings import takes_settings

_PREFIXES = ("folder:", "images:", "parquet:", "torch/", "hfds/", "wds/")
_FORMS = (
    "folder:PATH, images:PATH, parquet:PATH, mnist5k, noisy15k, torch/NAME:FOLDER, hfds/NAME, wds/FOLDER "
    "or path/to/file.py:factory"
)
_PROBED = 16


@takes_settings(options=DataOptions)
@checked
def open_data(
    source: str | Path,
    *,
    input_shape: tuple[int, int, int],
    options: DataOptions | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> ImageData:
    """Open images for one model.

    The test split is the source's ``test``, else its ``val``. The holdout is drawn from train, every class in
    proportion; where train, val and test are all there, val is the holdout. A source without train (only val or
    only test) is divided into holdout and test halves. A source with nothing but train gives test images too, as
    many as the holdout. ``mnist5k`` is 4,000 / 500 / 500, ``noisy15k`` 12,000 / 1,500 / 1,500.
    ``images:`` is every image below a folder, without labels.

    Args:
        source: ``folder:PATH``, ``images:PATH``, ``parquet:PATH``, ``mnist5k``, ``noisy15k``, one that timm reads
            (``torch/NAME:FOLDER``, ``hfds/NAME``, ``wds/FOLDER``), or ``path/to/file.py:factory`` that returns an
            ``ImageData`` or a (train, test) pair of Datasets; the factory may have parameters ``input_shape``,
            ``mean``, ``std``, ``num_classes``, ``seed``. A ``Path`` alone is a folder, of Parquet where it has some.
        input_shape: (channels, height, width) that the model takes; 1 or 3 channels.
        options, settings: see :class:`DataOptions`; a setting given by name takes the place of that of ``options``.
        cache: the folder where decoded images are kept for later epochs and runs; ``"off"`` for none. By default
            ``images`` in the folder ``LAYERFOLD_CACHE``, else in the user's folder for caches.
        progress: show a bar on stderr while the headers of many images are looked at.

    Raises:
        UsageError: an unknown or missing source, an option outside its range.
        DataError: unreadable tables or images (all headers are looked at, once for each state of a folder), labels
            outside the range, a split with fewer than two classes or without images.
        OptionalDependencyError: the package that reads the source is not installed.

    Example:
        >>> data = lf.open_data("folder:images", input_shape=(3, 8, 8), cache="off", progress=False)
        >>> data.num_classes, data.num_images
        (2, {'train': 14, 'holdout': 2, 'test': 16})
    """
    options = options or DataOptions()
    source = _form_of(source) if isinstance(source, Path) else source
    input_shape = image_shape("input_shape", input_shape)
    default_mean, default_std = default_normalisation(input_shape[0])
    preprocessing = Preprocessing(
        input_shape=(input_shape[0], input_shape[1], input_shape[2]),
        mean=tuple(options.mean) if options.mean is not None else default_mean,
        std=tuple(options.std) if options.std is not None else default_std,
        interpolation=options.interpolation or "bicubic",
        crop_pct=0.875 if options.crop_pct is None else options.crop_pct,
    )
    if is_factory_source(source):
        return data_of_factory(source, preprocessing, options.num_classes, options.holdout, options.seed)
    stored = _read_source(source, options.download)
    if source in DIGITS:
        # Digits are centred in their frame: cropping would only enlarge them.
        preprocessing = replace(preprocessing, crop_pct=1.0)
    image_cache = ImageCache(cache, options.max_array_bytes)
    data = _split_stored(source, stored, preprocessing, options, image_cache)
    _look_at_headers(source, stored, preprocessing, image_cache, progress=progress)
    for note in stored.notes:
        print(f"layerfold: {note}", file=sys.stderr)
    return data


def _look_at_headers(
    source: str, stored: StoredData, preprocessing: Preprocessing, cache: ImageCache, *, progress: bool
) -> None:
    identity: JsonObject = {
        "headers of": [stored.content_hash, stored.state_hash],
        "shape": preprocessing.input_shape,
        "crop_pct": preprocessing.crop_pct,
    }
    is_long = sum(len(images.labels) for images in stored.pools.values()) >= MANY
    if is_long and cache.headers_seen(identity):
        return
    frames = sum(
        check_headers(images, f"{source}, {pool}", preprocessing.check, progress=progress)
        for pool, images in stored.pools.items()
    )
    if frames:
        print(
            f"layerfold: {source}: {counted(frames, 'image')} with several frames; the first of each is taken",
            file=sys.stderr,
        )
    if is_long:
        cache.keep_headers_seen(identity)


def _form_of(path: Path) -> str:
    """Return the source that a bare path stands for: Parquet where there is some, else an image folder."""
    if path.suffix == ".parquet" or (path.is_dir() and next(path.glob("*.parquet"), None) is not None):
        return f"parquet:{path}"
    return f"folder:{path}"


def _read_source(source: str, download: bool) -> StoredData:
    if source in DIGITS:
        return read_digits(source)
    prefix = next((prefix for prefix in _PREFIXES if source.startswith(prefix) and source != prefix), None)
    if prefix is None:
        kind = re.split("[:/]", source, maxsplit=1)[0]
        raise UsageError(
            f"--data {source!r}: give {_FORMS}{nearest_names(kind, [*DIGITS, *(prefix[:-1] for prefix in _PREFIXES)])}"
        )
    rest = source.removeprefix(prefix)
    match prefix:
        case "torch/":
            return read_torchvision(rest, download)
        case "hfds/":
            return read_hub(rest, download)
        case "wds/":
            return read_shards(Path(rest))
        case "folder:":
            return read_folder(Path(rest))
        case "images:":
            return read_images(Path(rest))
        case _:
            return read_parquet(Path(rest))


def _split_stored(
    source: str,
    stored: StoredData,
    preprocessing: Preprocessing,
    options: DataOptions,
    cache: ImageCache,
) -> ImageData:
    num_classes = options.num_classes
    classes = _check_labels(source, stored, num_classes) if stored.is_labelled else _given_classes(source, num_classes)
    is_digits = source in DIGITS
    preprocessing = replace(preprocessing, is_resized=not _have_input_size(stored, preprocessing))
    rows, how = _choose_rows(source, stored, options.holdout, options.seed)
    splits: dict[str, Split] = {}
    for name, (pool, chosen) in rows.items():
        if stored.is_labelled:
            _check_split(f"{source}, {name}", stored.pools[pool].labels[chosen])
        splits[name] = _make_split(stored, pool, chosen, preprocessing, cache, is_digits=is_digits)
    prepared = asdict(preprocessing)
    prepared.pop("input_shape")
    details: JsonObject = {"source": source, "splits": how, "seed": options.seed, "preprocessing": prepared}
    digest = hashlib.sha256(json.dumps([stored.content_hash, preprocessing.input_shape, prepared]).encode())
    for name, (pool, chosen) in rows.items():
        digest.update(f"{name} {pool}".encode() + chosen.tobytes() + stored.pools[pool].labels[chosen].tobytes())
    return ImageData(
        name=_name_of(source),
        num_classes=classes,
        input_shape=preprocessing.input_shape,
        train=splits.get("train"),
        holdout=splits["holdout"],
        test=splits["test"],
        details=details,
        fingerprint=digest.hexdigest()[:16],
        is_labelled=stored.is_labelled,
    )


def _make_split(
    stored: StoredData, pool: str, rows: Rows, preprocessing: Preprocessing, cache: ImageCache, *, is_digits: bool
) -> ImageSplit:
    images = stored.pools[pool]
    channels, height, width = preprocessing.input_shape
    # How many, too: what a pool takes of the same files is the reader's own.
    identity: JsonObject = {
        "content": [stored.content_hash, stored.state_hash, pool, len(images.labels)],
        "resized": preprocessing.is_resized,
        "interpolation": preprocessing.interpolation,
    }
    fitted = cache.decoded(
        images, rows, (height, width, channels), preprocessing.fit, {**identity, "crop_pct": preprocessing.crop_pct}
    )
    is_held = cache.fits_memory(len(rows), (height, width, channels))
    whole = None
    if not is_held:
        whole = cache.decoded(
            images, rows, (*preprocessing.whole_size, channels), preprocessing.squash, {**identity, "crop_pct": None}
        )
    # 4 pixels of 32, the usual shift for small images; half of it for digits, and digits are not mirrored.
    padding = max(1, min(height, width) // (16 if is_digits else 8))
    return ImageSplit(
        images.labels[rows], preprocessing, fitted, whole, crop_padding=padding, flip=not is_digits, is_held=is_held
    )


def _choose_rows(
    source: str, stored: StoredData, holdout: float | None, seed: int
) -> tuple[dict[str, tuple[str, Rows]], str]:
    """Return (pool, rows) of each split, and one sentence that says how they were chosen."""
    pools = stored.pools
    _check_counts(source, stored, holdout)
    everything = {pool: np.arange(len(images.labels), dtype=np.int64) for pool, images in pools.items()}
    if len(pools) == 3 and holdout is None:
        return (
            {
                "train": ("train", everything["train"]),
                "holdout": ("val", everything["val"]),
                "test": ("test", everything["test"]),
            },
            "as the source has them, val as holdout",
        )
    if "train" not in pools:
        if len(pools) == 2:
            return (
                {"holdout": ("val", everything["val"]), "test": ("test", everything["test"])},
                "as the source has them, val as holdout; no train",
            )
        (pool,) = pools
        labels = pools[pool].labels
        size = holdout_size(0.5 if holdout is None else holdout, len(labels))
        first, second = stratified_parts(labels, [size], seed)
        return (
            {"holdout": (pool, first), "test": (pool, second)},
            f"{pool} divided by seed {seed} into holdout and test; no train",
        )
    labels = pools["train"].labels
    size = holdout_size(holdout, len(labels))
    if len(pools) == 1:
        if 2 * size >= len(labels):
            raise UsageError(
                f"holdout={holdout:g}: takes {size} of {len(labels)} images, and the test as many; give "
                f"at most {(len(labels) - 1) // 2}"
            )
        first, second, rest = stratified_parts(labels, [size, size], seed)
        return (
            {"train": ("train", rest), "holdout": ("train", first), "test": ("train", second)},
            f"one set divided by seed {seed} into train, holdout and test",
        )
    test = "test" if "test" in pools else "val"
    first, rest = stratified_parts(labels, [size], seed)
    return (
        {"train": ("train", rest), "holdout": ("train", first), "test": (test, everything[test])},
        f"holdout drawn from train by seed {seed}; {test} as test",
    )


def _check_counts(source: str, stored: StoredData, holdout: float | None) -> None:
    """Refuse fewer images than the splits that are drawn from them need."""
    for pool, images in stored.pools.items():
        count, needed, drawn = len(images.labels), 1, ""
        if len(stored.pools) == 1:
            needed, drawn = (3, "train, holdout and test") if pool == "train" else (2, "holdout and test")
        elif pool == "train" and not (len(stored.pools) == 3 and holdout is None):
            needed, drawn = 2, "train and holdout"
        if count < needed:
            why = f", to be divided into {drawn}" if drawn else ""
            raise DataError(
                f"--data {source}, {pool}: the split is empty; give images, or take it away"
                if not count
                else f"--data {source}, {pool}: has {counted(count, 'image')}; at least {needed} are needed{why}"
            )


def _given_classes(source: str, num_classes: int | None) -> int:
    if num_classes is None:
        raise UsageError(
            f"--data {source}: has no labels that would tell the number of classes; pass num_classes, the "
            "model's outputs"
        )
    return num_classes


def _check_labels(source: str, stored: StoredData, num_classes: int | None) -> int:
    """Return the number of classes, once every label is in range."""
    highest = max(int(images.labels.max(initial=0)) for images in stored.pools.values())
    if num_classes is not None and stored.num_classes is not None and num_classes != stored.num_classes:
        raise DataError(
            f"--data {source}: has {stored.num_classes} classes, the model {num_classes} outputs; "
            f"pass --num-classes {stored.num_classes}, or give images of the model's own classes"
        )
    classes = num_classes or stored.num_classes or highest + 1
    for images in stored.pools.values():
        outside = np.flatnonzero((images.labels < 0) | (images.labels >= classes))
        if len(outside):
            row = int(outside[0])
            raise DataError(f"{images.locate(row)}: label {images.labels[row]} is outside 0..{classes - 1}")
    return classes


def _check_split(what: str, labels: Rows) -> None:
    found = np.unique(labels)
    if len(labels) == 0:
        raise DataError(f"--data {what}: the split is empty; give more images")
    if len(found) < 2:
        raise DataError(
            f"--data {what}: all {len(labels)} images have label {found[0]}; at least two classes are "
            "needed: give images of another class too"
        )


def _have_input_size(stored: StoredData, preprocessing: Preprocessing) -> bool:
    """Say whether the stored images have the model's input size, from a few of each pool (broken ones show later)."""
    height, width = preprocessing.input_shape[1:]
    for images in stored.pools.values():
        for row in np.unique(np.linspace(0, max(len(images.labels) - 1, 0), _PROBED).astype(int)):
            if not _has_size(images, int(row), (width, height)):
                return False
    return True


def _has_size(images: StoredImages, row: int, size: tuple[int, int]) -> bool:
    try:
        with images.open(row) as image:
            return bool(image.size == size)
    except Exception:
        return True


def _name_of(source: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if source.startswith(prefix)), "")
    if prefix == "torch/":
        return source.removeprefix(prefix).partition(":")[0]
    return Path(source.removeprefix(prefix)).resolve().name if prefix else source
