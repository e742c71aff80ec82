"""How latencies are measured: one policy for table entries and whole networks alike.

A *runner* is a function without arguments that does one forward pass. A *block* is as many passes as make
the timer's own cost negligible (:mod:`layerfold.profiler.timing.clock`); its value is the mean time of one pass.
Runners are interleaved in random order block by block, so that drift of the machine (clocks, neighbours) spreads over
all of them and does not become bias. The reported latency is the median over blocks, with a distribution-free 95 %
interval from order statistics (:mod:`layerfold.profiler.timing.block_statistics`).

Two kinds of odd blocks are told apart. An *outlier* is a block far from the others for no reason that is known: it
is counted, its size kept, and it stays in; the median bears it. A *disturbed* block is one during which the kernel
says that it gave the processor to another thread (it timed that thread too), or behind which the sentinel finds the
processor slowed (:mod:`layerfold.profiler.timing.sentinel`): it is run again. What decides is the kernel's count and
the sentinel and never the value, so that the choice cannot favour a result; the blocks are counted, and
``median_all_ms`` says what the median would be with them.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from layerfold.profiler.timing.block_statistics import is_narrow
from layerfold.profiler.timing.blocks import refills_of, time_block, warm_up
from layerfold.profiler.timing.clock import least_block_ms, time_passes
from layerfold.profiler.timing.measurement import Measurement, MeasurePolicy, summarise_blocks
from layerfold.profiler.timing.sentinel import SENTINEL

_ROUGH_BLOCKS = 3
_WARMUP_WINDOW = 3
_MOST_REFILLS = 5
_RETRY_S = 0.05
_PATIENCE = 4.0
_BLOCK_MEMORY = 100_000


@dataclass
class TimedRunner:
    """A runner with its block size and the values measured so far."""

    run: Callable[[], object]
    policy: MeasurePolicy
    runs_per_block: int = 1
    values_ms: list[float] = field(default_factory=list)
    timed_s: float = 0.0
    pass_ms: float = math.inf
    disturbed: int = 0
    disturbed_ms: list[float] = field(default_factory=list)
    last_ms: float = math.inf
    busy_s: float = 0.0
    retry_s: float = _RETRY_S
    is_in_caller: bool = False
    is_settled: bool = False
    _next_check: int = 0

    def block_ms(self) -> float | None:
        """Run one block and return the mean time of a pass, in milliseconds.

        A block during which the system took the processor away, or behind which the sentinel finds it slowed, is
        counted as disturbed and run again for a while; None if it was disturbed every time. ``last_ms`` then holds the
        least of those times, without the time that others had the processor, where undisturbed blocks have shown that
        all the work is done in this thread.
        """
        self.last_ms = math.inf
        began = time.perf_counter()
        while True:
            block = time_block(self.run, refills=refills_of(self.pass_ms, _MOST_REFILLS), passes=self.runs_per_block)
            if not block.is_interrupted and not SENTINEL.is_slowed():
                self.is_in_caller = block.processor_ms > 0.9 * block.pass_ms
                self.last_ms = block.pass_ms
                return block.pass_ms
            self.disturbed += 1
            if len(self.disturbed_ms) < _BLOCK_MEMORY:
                self.disturbed_ms.append(block.pass_ms)
            self.last_ms = min(self.last_ms, block.processor_ms if self.is_in_caller else block.pass_ms)
            if time.perf_counter() - began > self.retry_s:
                return None

    def is_plainly_above(self, limit_ms: float) -> bool:
        """Say whether the second and third pass both take half as long again as ``limit_ms``; then three are enough."""
        self.run()
        return all(self._single_pass_ms() > 1.5 * limit_ms for _ in range(2))

    def add_rough_blocks(self) -> None:
        """Time three single passes, without refilling the caches before them."""
        self.runs_per_block = 1
        self.values_ms = [self._single_pass_ms() for _ in range(_ROUGH_BLOCKS)]

    def _single_pass_ms(self) -> float:
        return time_passes(self.run, 1) / 1e6

    def warm_up(self) -> None:
        """Run until passes no longer get faster, and fix the block size."""
        policy = self.policy
        block_ms = max(policy.block_ms, least_block_ms())

        def next_ms() -> float:
            self.block_ms()
            self.pass_ms = min(self.pass_ms, self.last_ms)
            # By the least: the first passes are slow, and blocks sized by them would come out too short.
            self.runs_per_block = max(self.runs_per_block, math.ceil(block_ms / max(self.pass_ms, 1e-6)))
            if self.pass_ms < 1:
                self.runs_per_block = max(self.runs_per_block, 3)
            return self.last_ms

        warm_up(next_ms, cap_s=policy.warmup_cap_s, window=_WARMUP_WINDOW, enough_ms=1e3 * policy.cap_s / 4)
        self.disturbed, self.disturbed_ms = 0, []  # what is reported is of the blocks that are timed

    def add_block(self) -> None:
        """Time one more block and decide whether the measurement has settled."""
        began = time.perf_counter()
        value_ms = self.block_ms()
        self.busy_s += time.perf_counter() - began
        if self.busy_s >= _PATIENCE * self.policy.cap_s:
            self.retry_s = 0.0
        elif value_ms is None:
            return
        self.values_ms.append(self.last_ms)
        self.timed_s += self.last_ms * self.runs_per_block / 1e3
        count = len(self.values_ms)
        if count >= max(self.policy.min_blocks, self._next_check):
            self.is_settled = is_narrow(self.values_ms, self.policy.target)
            self._next_check = count + max(count // 16, 1)  # sorting at every block would cost more than the blocks

    @property
    def is_done(self) -> bool:
        spent_s = max(self.timed_s, self.busy_s / _PATIENCE)
        is_over = spent_s >= self.policy.cap_s and len(self.values_ms) >= _ROUGH_BLOCKS
        return self.is_settled or is_over or len(self.values_ms) >= _BLOCK_MEMORY

    def measurement(self, *, is_rough: bool = False) -> Measurement:
        return summarise_blocks(
            self.values_ms,
            runs=len(self.values_ms) * self.runs_per_block,
            is_settled=self.is_settled,
            is_rough=is_rough,
            disturbed=self.disturbed,
            disturbed_ms=self.disturbed_ms,
        )


def measure_runners(
    runners: Sequence[Callable[[], object]],
    policy: MeasurePolicy | None = None,
    *,
    rough_above_ms: Sequence[float] | None = None,
    on_finished: Callable[[int, Measurement], None] | None = None,
    seed: int = 0,
) -> list[Measurement]:
    """Measure each runner, interleaved block by block in random order.

    Args:
        runners: functions that do one forward pass each. Keep few sessions alive at a time: call this
            with chunks, since the threads and memory of idle sessions disturb the one that runs.
        policy: when to stop.
        rough_above_ms: for each runner, a latency; if it plainly takes longer, three passes are enough (a candidate
            many times slower than what it replaces needs no precise value), and ``is_settled`` is False.
        on_finished: called with (index, measurement) the moment one is finished, so that it can be stored.
        seed: of the random order.

    Returns:
        One measurement per runner, in the order given.
    """
    policy = policy or MeasurePolicy()
    shuffle = random.Random(seed).shuffle
    timed = [TimedRunner(run, policy) for run in runners]
    limits = list(rough_above_ms) if rough_above_ms is not None else [math.inf] * len(timed)
    found: dict[int, Measurement] = {}

    def finish(index: int, *, is_rough: bool = False) -> None:
        found[index] = timed[index].measurement(is_rough=is_rough)
        if on_finished is not None:
            on_finished(index, found[index])

    for index, runner in enumerate(timed):
        if limits[index] < math.inf and runner.is_plainly_above(limits[index]):
            runner.add_rough_blocks()
            finish(index, is_rough=True)
        else:
            runner.warm_up()
    active = [index for index in range(len(timed)) if index not in found]
    while active:
        shuffle(active)
        for index in active:
            timed[index].add_block()
            if timed[index].is_done:
                finish(index)
        active = [index for index in active if index not in found]
    return [found[index] for index in range(len(timed))]
