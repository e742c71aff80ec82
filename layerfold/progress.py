"""Progress on long steps: one bar with an ETA on stderr, so that stdout stays for results."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_EVERY_S = 10.0
"""Between two lines of a log, at least, and at most while something is being done."""


class Progress(Protocol):
    """Receiver of a long step's reports."""

    def advance(self, steps: float = 1.0) -> None:
        """Say that ``steps`` more units of work are done."""

    def describe(self, text: str) -> None:
        """Change the text beside the bar."""


class _Silent:
    def advance(self, steps: float = 1.0) -> None:
        pass

    def describe(self, text: str) -> None:
        pass


@contextmanager
def progress_bar(description: str, total: float, *, enabled: bool = True, done: float = 0.0) -> Iterator[Progress]:
    """Show a bar on stderr while the block runs.

    On a terminal the bar is redrawn in place, and its clock runs; elsewhere (a log file, CI) a line is printed every
    ten seconds, whether something was finished meanwhile or not.

    Args:
        description: what is being done.
        total: units of work in all.
        enabled: False shows nothing.
        done: units already done by an earlier run.
    """
    if not enabled:
        yield _Silent()
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with _rich_bar(columns, description, total, done) as bar:
            yield bar
    else:
        lines = _LogLines(description, total, done)
        lines.print()
        with lines.kept_alive():
            yield lines


@contextmanager
def waiting(description: str, *, enabled: bool = True) -> Iterator[Progress]:
    """Show on stderr that something without countable parts is being done, while the block runs.

    On a terminal that is a clock that vanishes in the end; elsewhere a line every ten seconds, none if it takes less.
    """
    if not enabled:
        yield _Silent()
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description:<34}"), BarColumn(), TimeElapsedColumn())
        with _rich_bar(columns, description, None, 0.0, transient=True) as bar:
            yield bar
    else:
        lines = _LogLines(description, None, 0.0)
        with lines.kept_alive():
            yield lines


@contextmanager
def _rich_bar(
    columns: tuple[Any, ...], description: str, total: float | None, done: float, *, transient: bool = False
) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    with RichProgress(*columns, console=Console(stderr=True), transient=transient) as bars:
        task = bars.add_task(description, total=total, completed=int(done))

        class _Rich:
            def advance(self, steps: float = 1.0) -> None:
                bars.advance(task, steps)

            def describe(self, text: str) -> None:
                bars.update(task, description=text)

        yield _Rich()


class _LogLines:
    """The bar's stand-in where stderr is no terminal.

    Args:
        description, total, done: as of ``progress_bar``; without a total only the time is told.
    """

    def __init__(self, description: str, total: float | None, done: float) -> None:
        self._description, self._total = description, total
        self._done = self._first_done = done
        self._began = self._last = time.monotonic()
        self._lock, self._is_over = threading.Lock(), threading.Event()

    def advance(self, steps: float = 1.0) -> None:
        self._done += steps
        is_finished = self._total is not None and self._done >= self._total
        self._print_if_due(0.0 if is_finished else _EVERY_S)

    def describe(self, text: str) -> None:
        self._description = text

    def print(self) -> None:
        """Print where the work stands."""
        now = time.monotonic()
        parts = [] if self._total is None else [f"{self._done:g}/{self._total:g}"]
        fresh = self._done - self._first_done
        if now - self._began >= 0.5 or fresh:
            parts.append(f"{now - self._began:.0f} s")
        if self._total is not None and fresh:
            left_s = max(self._total - self._done, 0.0) * (now - self._began) / fresh
            parts.append(f"ETA {left_s:.0f} s")
        print(f"{self._description}: {', '.join(parts)}", file=sys.stderr, flush=True)
        self._last = now

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Print a line every ten seconds while the block runs, from a thread: the work itself may say nothing."""
        thread = threading.Thread(target=self._watch, name="layerfold progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(max(self._last + _EVERY_S - time.monotonic(), 0.05)):
            try:
                self._print_if_due(_EVERY_S)
            except (OSError, ValueError):  # nobody reads stderr any more: the work itself will see that, or not care
                return

    def _print_if_due(self, after_s: float) -> None:
        with self._lock:
            if time.monotonic() - self._last >= after_s:
                self.print()
