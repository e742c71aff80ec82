"""One process at a time writes a result: the others are told who is at it."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from layerfold.errors import UsageError, WriteError
from layerfold.terminal import one_line

_MOST_SHOWN = 200


@contextlib.contextmanager
def held(path: str | Path, *, subject: str, remedy: str) -> Iterator[None]:
    """Hold a lock while a result is made; the lock of a process that has died is free by itself.

    Args:
        path: the lock file; made, with the process, the machine and the time in it, and removed at the end. Its folder
            is made too.
        subject: what is being written, the head of the error line, for example ``--output out``.
        remedy: the end of that line.

    Raises:
        UsageError: another process holds it; names that process.
        WriteError: the lock file cannot be made.
    """
    from filelock import FileLock, Timeout

    place = Path(path)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Not bound to a thread: a result may be begun in one and finished in another.
        lock = FileLock(place, timeout=0, thread_local=False)
        lock.acquire()
    except Timeout:
        raise UsageError(f"{subject}: {_holder(place)} is writing it now; {remedy}") from None
    except (OSError, NotImplementedError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise WriteError(f"{subject}: {place} cannot be written ({cause}); choose another place") from error
    try:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # a full disk: only who holds it stays unknown
            place.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {now}", encoding="utf-8")
        yield
    finally:
        # Removed while it is held: whoever has it open finds it gone and begins with the next one.
        with contextlib.suppress(OSError):
            place.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            lock.release()


def _holder(place: Path) -> str:
    try:
        with place.open("rb") as stream:
            text = stream.read(_MOST_SHOWN).decode("utf-8", errors="replace")
    except OSError:
        text = ""
    return one_line(text) or "another process"
