"""Where each of several processes of one machine works: on a GPU of its own, or on processors of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from layerfold.errors import UsageError

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Device and processors of one process.

    Attributes:
        device: as the user calls it; None for the first.
        visible: the GPU that the process sees, as CUDA counts them; None for all.
        processors: that it is pinned to; empty for wherever the system puts it.
    """

    device: str | None = None
    visible: str | None = None
    processors: tuple[int, ...] = ()

    @property
    def torch_device(self) -> str:
        """What torch calls the device in a process that was moved here: it sees one GPU, and counts from 0."""
        kind = (self.device or "cpu").partition(":")[0]
        return kind if self.visible is None else f"{kind}:0"


def places_of(devices: Sequence[str], workers: int, threads: int) -> list[Place]:
    """Return one place per process.

    Args:
        devices: names such as ``cuda:0``, one as often as it is to have processes; empty for the first, on the
            processors here.
        workers: processes, where no devices are named.
        threads: of each process.

    Raises:
        UsageError: more threads in all than processors.
    """
    if devices:
        split = [name.partition(":") for name in devices]
        return [Place(device=name, visible=index or None) for name, _, index in split]
    if workers == 1:
        return [Place()]
    free = processors()
    if workers * threads > len(free):
        raise UsageError(
            f"workers={workers} with {threads} thread(s) each need {workers * threads} processors, "
            f"and this process may use {len(free)}: name fewer, or they would disturb each other"
        )
    share = len(free) // workers
    return [Place(processors=free[i * share : (i + 1) * share]) for i in range(workers)]


def move_to(place: Place) -> None:
    """Make this process one of the place; to be called before a library looks for its device."""
    if place.visible is not None:
        os.environ[VISIBLE] = place.visible
    if place.processors and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, place.processors)


def processors() -> tuple[int, ...]:
    """Return the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
