"""What workers do in the tests of executors: a file of the user's own, which no process can import by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layerfold.factories import call_factory

_FILE = """
import os
import signal
from pathlib import Path

from layerfold.errors import TableError


class MakeWorker:
    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, device):
        if (self.folder / "no-start").exists():
            raise RuntimeError("cannot start")
        begun = self.folder / "begun"
        if (self.folder / "one-bad-start").exists() and not begun.exists():
            begun.touch()
            raise RuntimeError("cannot start yet")
        return Worker(self.folder)


class Worker:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, task):
        with (self.folder / "log").open("a") as log:
            log.write(f"{task} {os.getpid()}\\n")
        died = self.folder / f"died-{task}"
        if task == "killed" or (task in ("two", "five") and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "refused":
            raise TableError("row 3: no number")
        if task == "broken":
            raise RuntimeError("out of memory")
        return task.upper()
"""


def own_worker(folder: Path) -> Any:
    """Return what makes a worker that notes each task in ``folder``."""
    own = folder / "own.py"
    own.write_text(_FILE)
    return call_factory(f"{own}:MakeWorker", folder=str(folder))


def tasks_noted(folder: Path) -> list[list[str]]:
    """Return (task, process) of all that was begun."""
    return [line.split() for line in (folder / "log").read_text().splitlines()]
