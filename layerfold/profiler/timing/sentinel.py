"""Whether something slows this processor at the moment: a piece of work that is always the same, against its quickest.

A neighbour on the same core, most often another virtual machine's, comes and goes within seconds. While it is there a
loop takes half as long again, a network a fifth, and some networks more than others: seen with CIFAR ResNet-56, whose
merged forms then ran 5 % faster relative to the original than without the neighbour. No ratio of two networks is
true meanwhile, so what is measured then is set aside. It is decided by this loop alone and never by the values
measured, so that the choice cannot favour a result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_STEPS = 3000
_SLOWED = 1.2
_FOR_GOOD_S = 60.0


def loop_ns() -> int:
    """Do the work, about 0.13 ms, and return what it took."""
    began_ns = time.perf_counter_ns()
    total = 0
    for step in range(_STEPS):
        total += step * step
    return time.perf_counter_ns() - began_ns


class Sentinel:
    """Remembers the quickest time of the work in this process.

    Args:
        work: returns what it took, in any unit.
        clock: seconds.
    """

    def __init__(self, work: Callable[[], float] = loop_ns, clock: Callable[[], float] = time.monotonic) -> None:
        self._work, self._clock = work, clock
        self._quickest = math.inf
        self._slowed_since_s: float | None = None

    def is_slowed(self) -> bool:
        """Say whether the work now takes a fifth longer than its quickest: twice, since once may be chance.

        After a minute of this without a break the machine is taken as it is: what was quickest is forgotten, so that
        one that has become slower for good does not keep every measurement waiting.
        """
        for _ in range(2):
            took = self._work()
            self._quickest = min(self._quickest, took)
            if took <= _SLOWED * self._quickest:
                self._slowed_since_s = None
                return False
        now_s = self._clock()
        if self._slowed_since_s is None:
            self._slowed_since_s = now_s
        if now_s - self._slowed_since_s > _FOR_GOOD_S:
            self._quickest, self._slowed_since_s = math.inf, None
        return True


SENTINEL = Sentinel()
"""That of this process."""
