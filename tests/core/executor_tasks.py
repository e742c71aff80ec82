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


class Odd(Exception):
    def __init__(self, what):
        super().__init__("many words " * 1000)
        self.what = what


class OwnError(TableError):
    def __init__(self, text):
        super().__init__(text)


class Raises:
    def __reduce__(self):
        raise ValueError("not me")


def fails(*_):
    raise KeyError("cannot be made again")


class Unreadable:
    def __reduce__(self):
        return fails, ()


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
        if task == "unpicklable error":
            raise Odd(lambda: 1)
        if task == "unpicklable answer":
            return lambda: 1
        if task == "answer that raises":
            return Raises()
        if task == "unreadable answer":
            return Unreadable()
        if task == "ends":
            raise SystemExit(0)
        if task == "ends at once":
            os._exit(3)
        if task == "own refusal":
            raise OwnError("row 4: mine")
        if task == "no memory":
            raise MemoryError
        if task == "floods":
            for _ in range(2000):
                print("x" * 1000)
            os.write(1, b"a library prints")
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
