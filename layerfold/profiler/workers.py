"""Several processes fill one cache at once: one a GPU, or, on a CPU, one a set of processors of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from layerfold.errors import UsageError
from layerfold.executor import processors

_MODULE = "layerfold.cli._profile_worker"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ORPHANED = 1


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one process measures.

    Attributes:
        device: as the backend calls it; None for its first.
        visible: the GPU that the process sees, as CUDA counts them; None for all.
        processors: that it is pinned to; empty for wherever the system puts it.
    """

    device: str | None = None
    visible: str | None = None
    processors: tuple[int, ...] = ()


def places_of(devices: Sequence[str], workers: int, threads: int) -> list[Place]:
    """Return one place a process.

    Args:
        devices: names such as ``cuda:0``; empty for the backend's first, on the processors here.
        workers: processes, where no devices are named.
        threads: of each process.

    Raises:
        UsageError: a device given twice, or more threads in all than processors.
    """
    if devices:
        if len(set(devices)) < len(devices):
            raise UsageError(f"devices={','.join(devices)} names one twice; two processes on one device "
                             "disturb each other")
        split = [name.partition(":") for name in devices]
        return [Place(device=name, visible=index or None) for name, _, index in split]
    if workers == 1:
        return [Place()]
    free = processors()
    if workers * threads > len(free):
        raise UsageError(f"workers={workers} with {threads} thread(s) each need {workers * threads} processors, "
                         f"and this process may use {len(free)}: name fewer, or they would disturb each other")
    share = len(free) // workers
    return [Place(processors=free[i * share : (i + 1) * share]) for i in range(workers)]


def move_to(place: Place) -> None:
    """Make this process one of the place; to be called before a backend is opened."""
    if place.visible is not None:
        os.environ[_VISIBLE] = place.visible
    if place.processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, place.processors)


@contextmanager
def running_workers(places: Sequence[Place], task: Mapping[str, Any]) -> Iterator[None]:
    """Run one process a place beside this one; they end when the cache is full, and at the latest with the block.

    Each reads ``task`` with its place as one line of JSON. Its standard input stays open for as long as this process
    lives, so that a worker knows when nobody waits for it any more, even after a SIGKILL.
    """
    running: list[subprocess.Popen[str]] = []
    try:
        for place in places:
            environment = {**os.environ, **({_VISIBLE: place.visible} if place.visible is not None else {})}
            worker = subprocess.Popen([sys.executable, "-m", _MODULE], stdin=subprocess.PIPE, env=environment,
                                      text=True)
            running.append(worker)
            assert worker.stdin is not None
            spec = {"device": place.device, "processors": place.processors, **task}
            worker.stdin.write(json.dumps(spec) + "\n")
            worker.stdin.flush()
        yield
        for worker in running:
            worker.wait()
    finally:
        for worker in running:
            worker.kill()
            worker.wait()
            if worker.stdin is not None:
                worker.stdin.close()


def read_task() -> dict[str, Any]:
    """In a worker: return its task, and end the process when the one that gave it is gone."""
    task: dict[str, Any] = json.loads(sys.stdin.readline())

    def wait_for_end() -> None:
        sys.stdin.read()
        os._exit(_ORPHANED)

    threading.Thread(target=wait_for_end, daemon=True).start()
    return task
