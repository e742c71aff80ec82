"""One block of passes, and how a runner is warmed up: whatever measures, times its blocks here.

The first passes of a block are not timed: after another network has run, its weights fill the caches, and the next
five passes were seen to take 2.1, 1.7, 1.3, 1.07 and 1.02 times the steady latency (MobileNetV2 at 64 px).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from layerfold.profiler.timing.clock import time_passes

try:
    import resource

    _RUSAGE_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)
except ImportError:  # Windows
    _RUSAGE_THREAD = None

_REFILL_MS = 10.0
_WARMUP_GAIN = 0.03
_LEAST_WARMUP = 2


@dataclass(frozen=True, kw_only=True)
class Block:
    """Times of one block.

    Attributes:
        pass_ms: mean time of a pass.
        processor_ms: of that, time for which this thread had the processor.
        is_interrupted: whether the system took the processor away, be it while the caches were filled.
    """

    pass_ms: float
    processor_ms: float
    is_interrupted: bool


def time_block(run: Callable[[], object], *, refills: int, passes: int) -> Block:
    """Run ``refills`` passes untimed, then time ``passes``."""
    switches = involuntary_switches()
    for _ in range(refills):
        run()
    processor_ns = time.thread_time_ns()
    wall_ns = time_passes(run, passes)
    processor_ns = time.thread_time_ns() - processor_ns
    return Block(
        pass_ms=wall_ns / 1e6 / passes,
        processor_ms=processor_ns / 1e6 / passes,
        is_interrupted=involuntary_switches() != switches,
    )


def refills_of(pass_ms: float, most: int) -> int:
    """Return how many passes fill the caches again: ten milliseconds of them, at least one."""
    return min(most, max(1, math.ceil(_REFILL_MS / pass_ms)))


def warm_up(next_ms: Callable[[], float], *, cap_s: float, window: int, enough_ms: float = math.inf) -> float:
    """Time blocks until they no longer get faster; return the least time of a pass.

    Args:
        next_ms: times one more block.
        cap_s: seconds after which to stop, once there are two.
        window: blocks that must have gained less than 3 % on all before them, of which there are as many at least.
        enough_ms: a pass that takes longer ends it at once.
    """
    values: list[float] = []
    began = time.perf_counter()
    while True:
        values.append(next_ms())
        has_levelled = len(values) >= 2 * window and (
            min(values[-window:]) > (1 - _WARMUP_GAIN) * min(values[:-window])
        )
        is_late = len(values) >= _LEAST_WARMUP and time.perf_counter() - began > cap_s
        if has_levelled or is_late or values[-1] > enough_ms:
            return min(values)


def involuntary_switches() -> int:
    """Return how often the system has taken the processor from this thread; always 0 where it does not say."""
    if _RUSAGE_THREAD is None:
        return 0
    return resource.getrusage(_RUSAGE_THREAD).ru_nivcsw
