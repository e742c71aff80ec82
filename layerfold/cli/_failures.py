"""From any exception to one line and an exit code; what nobody foresaw is written to a file, with the traceback."""

from __future__ import annotations

import datetime
import errno
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from layerfold import __version__
from layerfold.cache_folder import default_cache_folder
from layerfold.errors import LayerfoldError, UsageError
from layerfold.factories import USER_MODULE, loaded_files
from layerfold.files import write_text
from layerfold.terminal import printable

FAILURE = 1
_NO_NAMES = {errno.ENAMETOOLONG: UsageError.exit_code, errno.ELOOP: UsageError.exit_code}
"""Errors of the system that the name alone brings about, whatever is done with it."""
_KEPT = 20
_PACKAGES = ("torch", "timm", "torchvision", "numpy", "scipy", "onnx", "onnxruntime", "accelerate", "pydantic")
_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "failed to allocate memory",
    "bad_alloc",
    "cannot allocate",
    "storage size calculation overflowed",
)


class Terminated(KeyboardInterrupt):
    """A signal asks this process to end; what catches Ctrl-C catches it too."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def line_of(error: BaseException, arguments: Sequence[str]) -> tuple[int, str | None]:
    """Return the exit code and the line to say, without ``layerfold:``; None where all is said.

    Args:
        error: what a command raised, but for ``KeyboardInterrupt``.
        arguments: of the command line.
    """
    if getattr(error, "is_said", False):  # by another of several processes
        return getattr(error, "exit_code", FAILURE), None
    if isinstance(error, LayerfoldError):
        return error.exit_code, f"error: {error}"
    if _is_about_memory(error):
        return FAILURE, (
            f"error: out of memory ({_told(error)}); take smaller inputs or batches, or a machine with more memory"
        )
    if isinstance(error, OSError):
        return _NO_NAMES.get(error.errno or 0, FAILURE), f"error: {_system_text(error)}"
    own = _frame_in_own_file(error)
    if isinstance(error, SystemExit):
        if own is None:
            return FAILURE, f"error: something ended the program (exit {error.code!r}); run again with --debug"
        return FAILURE, f"error: {own} ended the program (sys.exit({error.code!r})); let it raise an error instead"
    where = _written(error, arguments)
    if own is not None:
        return FAILURE, f"error: {own} raised {_told(error)}; {where}"
    return FAILURE, f"error: this is a bug in layerfold: {_told(error)}; {where}, which helps us to mend it"


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"{name}: {text[:200]}" if text else name


def _system_text(error: OSError) -> str:
    if error.filename is None or not error.strerror:
        return str(error) or type(error).__name__
    return f"{os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: {error.strerror}"


def _is_about_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _NO_MEMORY)


def _frame_in_own_file(error: BaseException) -> str | None:
    """Return file and line of a user's own file, where the error left that without coming back to layerfold."""
    own: str | None = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(USER_MODULE):
            own = f"{frame.f_code.co_filename}, line {line},"
        elif module.split(".")[0] == "layerfold":
            own = None
    return own


def _written(error: BaseException, arguments: Sequence[str]) -> str:
    """Write the details, and return what to say of it."""
    text = _details(error, arguments)
    for folder in (_cache_errors, _temporary_errors):
        with suppress(OSError, LayerfoldError, RuntimeError):
            return f"details are in {_kept(folder(), text)}"
    return "details could not be written; run again with --debug"


def _details(error: BaseException, arguments: Sequence[str]) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = [
        f"layerfold {__version__}",
        f"python {platform.python_version()}",
        platform.platform(),
        *(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
    ]
    trace = "".join(traceback.format_exception(error))
    return (
        f"{now}\n$ layerfold {printable(shlex.join(arguments))}\n{', '.join(facts)}\n\n"
        f"{trace[:200_000].encode('utf-8', 'backslashreplace').decode()}"
    )


def _kept(folder: Path, text: str) -> Path:
    """Write one more file of details; of all, the latest are kept."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%f")
    path = folder / f"error-{stamp}-{os.getpid()}.txt"
    write_text(path, text)
    for old in sorted(folder.glob("error-*.txt"))[:-_KEPT]:
        with suppress(OSError):
            old.unlink()
    return path


def _cache_errors() -> Path:
    return default_cache_folder() / "errors"


def _temporary_errors() -> Path:
    """Return a folder that is nobody else's: one of a known name might be laid as a trap."""
    return Path(tempfile.mkdtemp(prefix="layerfold-errors-"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def quieten_libraries() -> None:
    """Let libraries warn nobody of what a user can do nothing about; a warning of a user's own file is a line."""
    import logging
    import warnings

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
        if Path(filename) in loaded_files().values():
            print(f"layerfold: warning: {filename}, line {lineno}: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = show  # type: ignore[assignment]
    # What no program set up says is of a library: errors come as exceptions.
    logging.lastResort = None
    logging.raiseExceptions = False
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of processes that are started, which know nothing of this
