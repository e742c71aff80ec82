"""Reading a file that somebody else may have made: regular, bounded, and one line when it is not."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from layerfold.errors import LayerfoldError, UsageError

MOST_BYTES = 4 << 30
"""No table, solution or network that layerfold writes is near it."""
_MIB = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def read_bytes(
    path: str | Path, *, most_bytes: int = MOST_BYTES, remedy: str = "", error: type[LayerfoldError] = UsageError
) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file; a symbolic link is followed.
        most_bytes: a larger file is refused before it is read.
        remedy: what to do about a bad file, the end of the error line.
        error: the class to raise.

    Raises:
        error: no such file, no regular file (a pipe would hang, a device never ends), too large, or unreadable.
    """
    tail = f"; {remedy}" if remedy else ""
    try:
        # Without O_NONBLOCK opening a pipe waits for whoever writes to it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(handle)
            for is_kind, name in _KINDS:
                if is_kind(status.st_mode):
                    raise error(f"{path}: is {name}, expected a file{tail}")
            stream = open(handle, "rb")  # noqa: SIM115 (a folder must be named before it is opened so)
        except BaseException:
            os.close(handle)
            raise
        with stream:
            content = stream.read(most_bytes + 1) if status.st_size <= most_bytes else None
    except FileNotFoundError:
        raise error(f"{path}: no such file{tail}") from None
    except (OSError, ValueError) as cause:  # ValueError: a zero byte in the name
        raise error(f"{path}: cannot be read ({_why(cause)}){tail}") from None
    if content is None or len(content) > most_bytes:
        raise error(f"{path}: is larger than {most_bytes / _MIB:g} MiB, the most that is read here{tail}")
    return content


def read_text(
    path: str | Path, *, most_bytes: int = MOST_BYTES, remedy: str = "", error: type[LayerfoldError] = UsageError
) -> str:
    """Return the content of a regular file of UTF-8 text, without a byte-order mark; see :func:`read_bytes`."""
    content = read_bytes(path, most_bytes=most_bytes, remedy=remedy, error=error)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        tail = f"; {remedy}" if remedy else ""
        raise error(f"{path}: byte {cause.start} is not UTF-8 text{tail}") from None


def check_regular(path: str | Path) -> None:
    """Refuse a path that is no regular file, for libraries that open it themselves; a pipe would block for ever.

    Raises:
        UsageError: the bare reason, for the caller to put the file's name before it.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise UsageError("no such file") from None
    except (OSError, ValueError) as cause:
        raise UsageError(f"cannot be read ({_why(cause)})") from None
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        raise UsageError(f"is {kind}, not a file")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex, without holding them in memory.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _why(cause: Exception) -> str:
    if isinstance(cause, OSError):
        if cause.errno == errno.ELOOP:
            return "its symbolic links lead in a circle"
        return cause.strerror or type(cause).__name__
    return str(cause)
