"""A machine whose time passes only while a runner works: what is measured on it is known beforehand."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """Stands in for the module ``time``; the machine is slowed for two fifths of each tenth of a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return int(self.now * 1e9)

    thread_time_ns = perf_counter_ns

    def runner(self, seconds: float) -> Callable[[], None]:
        """Return a function that takes that long on the machine when it is not slowed, and 1.4 times as long then."""

        def run() -> None:
            self.now += seconds * (1.4 if self.now % 0.1 > 0.06 else 1.0)

        return run
