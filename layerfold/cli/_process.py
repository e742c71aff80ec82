"""What a process is given by whoever starts it: streams that may be closed, signals that end it."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from layerfold.cli._failures import Terminated

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def open_closed_streams() -> None:
    """Lead streams that were closed (``>&-``) to nowhere.

    Else the next file that is opened, a cache or a table, takes the number of the stream, and whatever a library
    prints is written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end the program as Ctrl-C does: what it has begun is closed, its processes ended."""
    before: dict[int, Any] = {}
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that was forked from this one
            os._exit(128 + number)
        signal.signal(number, signal.SIG_DFL)  # asked again, it ends at once
        raise Terminated(number)

    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            if signal.getsignal(number) == signal.SIG_DFL:  # not where it is ignored, as by nohup
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(is_program: bool) -> None:
    """Let a program that is ending say its line in peace."""
    if is_program and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def is_gone(stream: Any) -> bool:
    """Say whether nothing more can be written to a stream; if so, what is left in it is dropped.

    Python would complain once more when it closes the stream.
    """
    with suppress(OSError, ValueError):  # ValueError: closed
        stream.flush()
        if not _has_hung_up(stream):
            return False
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True


def _has_hung_up(stream: Any) -> bool:
    """Say whether nobody reads the pipe: what was written before the error is lost, and writing nothing succeeds."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # no stream of the system, as in a test
        return False
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
