"""What a source holds before it is split, and what its readers share. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from layerfold.data._decoded import StoredImages
from layerfold.errors import DataError, UsageError
from layerfold.terminal import name_text

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "pixels")
LABEL_COLUMNS = ("label", "labels", "target", "class", "fine_label", "cls", "y")
UNLABELLED = -1
"""The label of an image that has none."""

# Our name of each part of a source, and what its owner may call it.
POOL_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """Images of a source before they are split.

    Attributes:
        pools: images by what their owner calls them: ``train``, ``val``, ``test``.
        num_classes: of the source itself (class folders), or None where only labels are known.
        content_hash: SHA-256 over the content, or over names and sizes for folders: the same for a copy elsewhere.
        state_hash: SHA-256 that also changes where a file was written again with the same size; only where
            ``content_hash`` would not.
        is_labelled: whether images have labels; otherwise each has ``UNLABELLED``.
        notes: what its owner should know although nothing is wrong: files passed over, classes without images.
    """

    pools: dict[str, StoredImages]
    num_classes: int | None
    content_hash: str
    state_hash: str = ""
    is_labelled: bool = True
    notes: tuple[str, ...] = ()


def check_folder(root: Path, source: str) -> None:
    """Refuse what is no folder that can be read.

    Args:
        root: the folder.
        source: what ``--data`` was given, for the error.

    Raises:
        UsageError: it is not there, is no folder, or may not be read.
    """
    try:
        os.scandir(root).close()
        os.stat(os.path.join(root, os.curdir))  # without the right to enter, its list is of no use
    except NotADirectoryError:
        raise UsageError(f"--data {source}: is a file, not a folder; give the folder that it lies in") from None
    except FileNotFoundError:
        raise UsageError(f"--data {source}: no such folder") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UsageError(f"--data {source}: cannot be read ({reason})") from None


def parts_of(root: Path, source: str, suffix: str, is_part: Callable[[Path], bool]) -> dict[str, Path]:
    """Return the parts ``train``, ``val`` and ``test`` that a folder holds, whatever their owner calls them.

    Args:
        root: the folder.
        source: what ``--data`` was given, for the error.
        suffix: of the parts' names, for example ``.parquet``.
        is_part: whether what has such a name is a part.

    Raises:
        UsageError: two of them could be the same part.
    """
    found: dict[str, Path] = {}
    for pool, names in POOL_NAMES.items():
        there = [root / f"{name}{suffix}" for name in names if is_part(root / f"{name}{suffix}")]
        if len(there) > 1:
            raise UsageError(
                f"--data {source}: has both {there[0].name} and {there[1].name}, and only one of them can "
                "be read; move the other away"
            )
        if there:
            found[pool] = there[0]
    return found


def sizes_and_states(files: Iterable[Path], root: Path, known: bytes = b"") -> tuple[str, str]:
    """Return a hash of names and sizes below ``root``, and one of when the files were written and changed.

    Args:
        files: in an order of their own.
        root: the folder above them.
        known: what else the first hash is of, before them.

    Raises:
        DataError: a file is gone, or may not be looked at.
    """
    digest, state = hashlib.sha256(known), hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise DataError(f"{name_text(file)}: cannot be read ({error.strerror}); repair or remove it") from None
        digest.update(f"{file.relative_to(root)} {status.st_size}\n".encode(errors="surrogateescape"))
        state.update(state_text(status).encode())
    return digest.hexdigest(), state.hexdigest()


def state_text(status: os.stat_result) -> str:
    """Return when a file was written, and when anything about it changed, which no copy or tool sets back."""
    return f"{status.st_mtime_ns} {status.st_ctime_ns}\n"


def counted(count: int, what: str) -> str:
    """Return a count with its noun: ``1 image``, ``2 images``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def choose_column(where: Path | str, what: str, fitting: list[str], usual: tuple[str, ...]) -> str:
    for name in usual:
        if name in fitting:
            return name
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise DataError(f"{where}: no column with {what}; expected one, named for example {usual[0]!r}")
    raise DataError(f"{where}: columns {', '.join(fitting)} may all be {what}; name the right one {usual[0]!r}")
