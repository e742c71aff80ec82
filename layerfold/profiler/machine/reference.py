"""A fixed piece of work, timed now and then: what it takes says how fast the machine is at the moment.

Half of it is arithmetic and half is memory: a slow clock shows in both, a neighbour that fills the caches and the
memory bus in the second only, and one that takes the processor away in the difference of wall and processor time.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

_ARITHMETIC_BYTES = bytes(1 << 17)
_MEMORY = bytearray(1 << 23)
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class ReferenceTime:
    """Milliseconds of the reference work, the best of three tries.

    Attributes:
        arithmetic_ms: processor time of hashing 128 KiB, which stay in the caches.
        memory_ms: processor time of copying 8 MiB, which do not.
        waiting: share of the wall time, over all tries, in which others had the processor.
    """

    arithmetic_ms: float
    memory_ms: float
    waiting: float


def time_reference() -> ReferenceTime:
    """Do the reference work, a few milliseconds in all."""
    arithmetic_ns, memory_ns = [], []
    began_ns, began_processor_ns = time.perf_counter_ns(), time.thread_time_ns()
    for _ in range(_TRIES):
        at_ns = time.thread_time_ns()
        hashlib.sha256(_ARITHMETIC_BYTES).digest()
        then_ns = time.thread_time_ns()
        bytes(_MEMORY)
        arithmetic_ns.append(then_ns - at_ns)
        memory_ns.append(time.thread_time_ns() - then_ns)
    wall_ns, processor_ns = time.perf_counter_ns() - began_ns, time.thread_time_ns() - began_processor_ns
    return ReferenceTime(
        arithmetic_ms=min(arithmetic_ns) / 1e6,
        memory_ms=min(memory_ns) / 1e6,
        waiting=max(1 - processor_ns / wall_ns, 0.0),
    )
