"""Input files of a command: read as a whole, and where one is missing its nearest neighbour is named."""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path

from layerfold.errors import UsageError
from layerfold.files import read_bytes

MOST_BYTES = 4 << 30
"""A network as ONNX is at most 2 GiB."""
_LOOKED_AT = 10_000


def read_input(path: str | Path, argument: str, *, as_what: str = "", most_bytes: int = MOST_BYTES) -> bytes:
    """Return the content of a file that an argument names.

    Args:
        path: as given.
        argument: its name, for the error.
        as_what: what it is read as, for the error.
        most_bytes: a larger one is refused.

    Raises:
        UsageError: no such file, with its nearest neighbour; no regular file; too large; unreadable.
    """
    try:
        return read_bytes(path, most_bytes=most_bytes)
    except UsageError as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix("cannot be read (").removesuffix(")")
        raise UsageError(f"{argument} {path}: cannot be read{as_what} ({reason}{nearest_file(path)})") from error


def check_readable(path: str | Path, argument: str) -> None:
    """Refuse what is no file, before anything is loaded.

    Raises:
        UsageError: names its nearest neighbour.
    """
    try:
        is_there = Path(path).is_file()
    except OSError as error:
        raise UsageError(f"{argument} {path}: {error.strerror}") from error
    if not is_there:
        is_other = Path(path).exists()
        reason = "is a folder, a pipe or a device" if is_other else f"no such file{nearest_file(path)}"
        raise UsageError(f"{argument} {path}: {reason}")


def nearest_file(path: str | Path) -> str:
    """Return ``"; nearest: folder/b.onnx"`` for files of that kind with names like it, or ``""``."""
    target = Path(path)
    try:
        if target.exists():
            return ""
        beside = list(itertools.islice(target.parent.iterdir(), _LOOKED_AT))
    except OSError:
        return ""
    # By what stands before the suffix, which all of them share.
    known = {each.stem: str(each) for each in beside if each.suffix == target.suffix and each.is_file()}
    found = difflib.get_close_matches(target.stem, known, n=3, cutoff=0.6)
    return f"; nearest: {', '.join(known[stem] for stem in found)}" if found else ""
