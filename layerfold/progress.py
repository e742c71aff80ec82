"""Progress on long steps: one bar with an ETA on stderr, so that stdout stays for results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from layerfold.terminal import printable


class Progress(Protocol):
    """What a long step reports to."""

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

    On a terminal the bar is redrawn in place; elsewhere (a log file, CI) a line is printed at most every
    ten seconds, so that logs stay short.

    Args:
        description: what is being done.
        total: units of work in all.
        enabled: False shows nothing.
        done: units already done by an earlier run.
    """
    if not enabled:
        yield _Silent()
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description:<34}", markup=False), BarColumn(), MofNCompleteColumn(),
                   TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
        console = Console(file=getattr(sys.stderr, "unfiltered", sys.stderr))
        with RichProgress(*columns, console=console) as bars:
            task = bars.add_task(printable(description), total=total, completed=int(done))

            class _Rich:
                def advance(self, steps: float = 1.0) -> None:
                    bars.advance(task, steps)

                def describe(self, text: str) -> None:
                    bars.update(task, description=printable(text))

            yield _Rich()
    else:
        yield _LogLines(description, total, done)


class _LogLines:
    """The bar's stand-in where stderr is no terminal."""

    _EVERY_S = 10.0

    def __init__(self, description: str, total: float, done: float) -> None:
        import time

        self._clock = time.monotonic
        self._description, self._total = description, total
        self._done = self._first_done = done
        self._began = self._last = self._clock()
        print(f"{description}: {done:g}/{total:g}", file=sys.stderr, flush=True)

    def advance(self, steps: float = 1.0) -> None:
        self._done += steps
        now = self._clock()
        if now - self._last >= self._EVERY_S or self._done >= self._total:
            fresh = self._done - self._first_done
            rate_s = (now - self._began) / fresh if fresh else 0.0
            left_s = max(self._total - self._done, 0.0) * rate_s
            print(f"{self._description}: {self._done:g}/{self._total:g}, {now - self._began:.0f} s, "
                  f"ETA {left_s:.0f} s", file=sys.stderr, flush=True)
            self._last = now

    def describe(self, text: str) -> None:
        self._description = text
