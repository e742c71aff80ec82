"""What reading the clock costs, and how long a block must be for that not to matter."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

TIMER_SHARE = 0.001
"""The largest share of a block that the timer itself may take."""
_MARGIN = 1.5
_EMPTY_BLOCKS = 999


def time_passes(run: Callable[[], object], passes: int) -> int:
    """Return the nanoseconds that ``passes`` calls take, the two readings of the clock included."""
    repeats = range(passes)
    began_ns = time.perf_counter_ns()
    for _ in repeats:
        run()
    return time.perf_counter_ns() - began_ns


@functools.cache
def timer_cost_ms() -> float:
    """Return the median time of a block of no passes: what the timer adds to every block. Measured once per process."""
    return statistics.median(time_passes(_nothing, 0) for _ in range(_EMPTY_BLOCKS)) / 1e6


def least_block_ms() -> float:
    """Return the length of a block from which on the timer takes less than ``TIMER_SHARE`` of it, with a margin.

    The cost differs between machines, and by more than ten times where the kernel has fallen back to a slow clock
    source. So it is measured, not assumed.
    """
    return _MARGIN * timer_cost_ms() / TIMER_SHARE


def _nothing() -> None:
    pass
