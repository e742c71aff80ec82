"""Several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from layerfold.executor.places import Place, move_to
from layerfold.executor.protocol import Report
from layerfold.executor.shipping import Payload, TaskRunner, error_text, unpacked

_ORPHANED = 1
_GRACE_S = 3.0
_POLL_S = 1.0


@dataclass(eq=False)
class _Running:
    place: Place
    process: SpawnProcess
    pipe: Connection


class ProcessGroup:
    """See :class:`WorkerGroup`. Each worker is a fresh process: threads and CUDA contexts do not survive a fork.

    Args:
        payload: makes a worker.
        places: one per process.
    """

    def __init__(self, payload: Payload, places: Sequence[Place]) -> None:
        self.size = len(places)
        self._payload, self._free = payload, list(reversed(places))
        self._started: list[_Running] = []
        self._spawn = multiprocessing.get_context("spawn")

    def start(self) -> Hashable:
        place = self._free.pop()
        ours, theirs = self._spawn.Pipe()
        # No daemon: such a process may have no children, and a DataLoader's workers are children.
        process = self._spawn.Process(target=_work, args=(theirs, self._payload, place), daemon=False)
        with _interrupts_blocked():
            process.start()
        theirs.close()
        self._started.append(_Running(place, process, ours))
        return self._started[-1]

    def end(self, worker: Hashable) -> None:
        assert isinstance(worker, _Running)
        self._bury(worker)

    def ask(self, worker: Hashable, task: Any) -> None:
        assert isinstance(worker, _Running)
        try:
            worker.pipe.send(task)
        except OSError:
            return  # it has died; `wait` says so

    def share(self, make: Callable[[str], Any], path: str) -> Callable[[], Any]:
        return partial(make, os.path.abspath(path))

    def wait(self) -> Sequence[Report]:
        ready = set(wait([end for each in self._started for end in (each.pipe, each.process.sentinel)], _POLL_S))
        return [self._report(each) for each in list(self._started) if ready & {each.pipe, each.process.sentinel}]

    def close(self) -> None:
        for each in self._started:
            each.process.terminate()
        for each in list(self._started):
            self._bury(each)

    def _report(self, each: _Running) -> Report:
        try:
            kind, value = each.pipe.recv()  # an answer may lie there though its sender is gone
        except (EOFError, OSError):
            self._bury(each)
            return Report(each, "dead", f"its process {_end_of(each.process.exitcode)}")
        except Exception as error:  # of whatever class the answer is
            return Report(each, "failed", f"its answer cannot be read here ({error_text(error)})")
        return Report(each, kind, unpacked(kind, value))

    def _bury(self, each: _Running) -> None:
        each.process.terminate()
        each.process.join(_GRACE_S)
        each.process.kill()
        each.process.join()
        each.pipe.close()
        self._started.remove(each)
        self._free.append(each.place)


def _work(pipe: Connection, payload: Payload, place: Place) -> None:
    """Be a worker until there is nobody to work for."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    os.dup2(2, 1)  # stdout is for results, and those are printed by the process that all began with
    try:
        move_to(place)
        runner = TaskRunner(payload, place.torch_device)
        _send(pipe, runner.start())
        while True:
            _send(pipe, runner.answer(pipe.recv()))
    except (EOFError, OSError):
        return
    except Exception as error:  # a task that cannot be read: as a traceback it would only be noise on stderr
        with suppress(OSError):
            pipe.send(("failed", error_text(error)))


def _send(pipe: Connection, answer: tuple[str, Any]) -> None:
    try:
        pipe.send(answer)
    except (EOFError, OSError):
        raise
    except Exception as error:  # whatever an object's own __reduce__ raises; nothing of it was sent yet
        pipe.send(("failed", f"its answer cannot be sent back ({error_text(error)})"))


def _end(*_: object) -> None:
    """End as a program does, so that what this process has of the system is given back; once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(_ORPHANED)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started within does not see Ctrl-C until it can ignore it.

    The one that started it ends it, and prints the only line.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_of(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by signal {-code}"
    return f"ended with code {code}"
