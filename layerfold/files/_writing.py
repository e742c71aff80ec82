"""Every file is written beside its place, synced and renamed: a failure leaves what was there before."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from layerfold.errors import WriteError

# Libraries write files in their own ways, and say in words what the system told them as a number.
_SIGNS_OF_THE_SYSTEM = (
    "no space left",
    "i/o error",
    "disk quota",
    "file too large",
    "os error",
    "pytorchstreamwriter",
    "iostream error",
    "inline_container",
)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; afterwards what lies there takes the place of ``path``, all of it or nothing.

    Missing folders are made. A symbolic link stays, and the file that it leads to is replaced. The new file gets the
    permissions of the old one.

    Args:
        path: the file to write; the path that is yielded lies beside it and has the same suffix.

    Raises:
        WriteError: it cannot be written; names the cause. What was there is untouched.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "plot.svg"
        >>> with replacing(place) as partial:
        ...     _ = partial.write_text("<svg/>")
        >>> place.read_text()
        '<svg/>'
    """
    with replacing_all(path) as (partial,):
        yield partial


@contextlib.contextmanager
def replacing_all(*paths: str | Path) -> Iterator[tuple[Path, ...]]:
    """Yield a path to write to for each of several files that belong together, as a table and its sidecar.

    None takes its place before all are on the disk, so that a full disk leaves all the old ones. See
    :func:`replacing`.

    Args:
        paths: the files to write. They are renamed in this order; the last is the one that vouches for the others.

    Raises:
        WriteError: one of them cannot be written.
    """
    targets = [Path(os.path.realpath(path)) for path in paths]
    for path, target in zip(paths, targets, strict=True):
        if target.exists() and not target.is_file():
            what = "a folder" if target.is_dir() else "no regular file"
            raise WriteError(f"{path}: is {what}, so no file can take its place; give another name")
    partials = tuple(  # with the suffix that was asked for: a link may lead to a name with another, or none
        target.with_name(f".{target.stem[:100]}.{os.getpid()}-{secrets.token_hex(4)}.part{Path(path).suffix}")
        for path, target in zip(paths, targets, strict=True)
    )
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        yield partials
        for target, partial in zip(targets, partials, strict=True):
            _sync(partial)
            os.chmod(partial, target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask())
        for target, partial in zip(targets, partials, strict=True):
            os.replace(partial, target)
        for folder in {target.parent for target in targets}:
            _sync(folder)
    except Exception as error:
        text = " ".join(str(error).split()).lower()
        if isinstance(error, WriteError) or not (
            isinstance(error, OSError) or any(sign in text for sign in _SIGNS_OF_THE_SYSTEM)
        ):
            raise
        raise WriteError(
            f"{_named_in(error, paths, partials)}: cannot be written ({_cause(error)}); make room or choose another "
            "place (what was there before is untouched)"
        ) from error
    finally:
        for partial in partials:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def sidecar_path(path: Path) -> Path:
    """Return where the facts about a file stand: ``<name>.csv.json`` for ``<name>.csv``."""
    return path.with_name(path.name + ".json")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``, all of it or nothing; see :func:`replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` in UTF-8, line breaks as they are, all of it or nothing; see :func:`replacing`."""
    write_bytes(path, text.encode("utf-8", errors="surrogateescape"))


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as JSON, all of it or nothing; see :func:`json_text`."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return plain values as the text of a JSON file; what is no plain value becomes text."""
    return json.dumps(value, indent=1, default=str) + "\n"


def _sync(path: Path) -> None:
    """Let what was written reach the disk; a folder that cannot be synced (on some systems) is left."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def _named_in(error: Exception, paths: Sequence[str | Path], partials: Sequence[Path]) -> str | Path:
    """Return which of several files an error is about; all of them where it does not say."""
    text = f"{getattr(error, 'filename', '')} {getattr(error, 'filename2', '')} {error}"
    for path, partial in zip(paths, partials, strict=True):
        if partial.name in text:
            return path
    return " and ".join(map(str, paths))


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _cause(error: Exception) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return "what should be its folder is a file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200]
