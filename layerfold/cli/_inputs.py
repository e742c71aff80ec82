"""Input files of a command: read as a whole, and where one is missing its nearest neighbour is named."""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path

from layerfold.errors import UsageError
from layerfold.files import check_regular, read_bytes

_LOOKED_AT = 10_000


def read_input(path: str | Path, argument: str) -> bytes:
    """Return the content of a file that an argument names.

    Args:
        path: as given.
        argument: its name, for the error.

    Raises:
        UsageError: no such file, with its nearest neighbour; no regular file; too large; unreadable.
    """
    check_readable(path, argument)
    try:
        return read_bytes(path)
    except UsageError as error:
        raise UsageError(f"{argument} {error}") from error


def check_readable(path: str | Path, argument: str) -> None:
    """Refuse what is no file, before anything is loaded.

    Raises:
        UsageError: names its nearest neighbour.
    """
    try:
        check_regular(path)
    except UsageError as error:
        raise UsageError(f"{argument} {path}: {error}{nearest_file(path)}") from error


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
