"""How latencies are measured: one policy for table entries and whole networks alike.

A *runner* is a function without arguments that does one forward pass. A *block* is as many passes as make
the timer's own cost negligible (:mod:`layerfold.profiler.timer`); its value is the mean time of one pass. Runners are
interleaved in random order block by block, so that drift of the machine (clocks, neighbours) spreads over all of them
and does not become bias. The reported latency is the median over blocks, with a distribution-free 95 % interval from
order statistics (:mod:`layerfold.profiler.block_statistics`).

Two kinds of odd blocks are told apart. An *outlier* is a block far from the others for no reason that is known: it
is counted, its size kept, and it stays in; the median bears it. A *disturbed* block is one during which the kernel
says that it gave the processor to another thread (it timed that thread too), or behind which the sentinel finds the
processor slowed (:mod:`layerfold.profiler.sentinel`): it is run again. What decides is the kernel's count and the
sentinel and never the value, so that the choice cannot favour a result; the blocks are counted, and ``median_all_ms``
says what the median would be with them.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from layerfold.errors import UsageError
from layerfold.files import JsonObject
from layerfold.profiler.block_statistics import is_narrow as is_narrow
from layerfold.profiler.block_statistics import median_interval as median_interval
from layerfold.profiler.block_statistics import outliers, quantiles, trend
from layerfold.profiler.sentinel import SENTINEL
from layerfold.profiler.timer import least_block_ms, time_passes

try:
    import resource

    _RUSAGE_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)
except ImportError:  # Windows
    _RUSAGE_THREAD = None

_ROUGH_BLOCKS = 3
_WARMUP_WINDOW = 3
_WARMUP_GAIN = 0.03
_REFILL_PASSES = (5, 1)
_REFILL_MS = 10.0
_RETRY_S = 0.05
_PATIENCE = 4.0
_BLOCK_MEMORY = 100_000


@dataclass(frozen=True, kw_only=True)
class MeasurePolicy:
    """When a measurement has settled, and when to give up.

    Attributes:
        target: half-width of the 95 % interval of the median, relative to the median, at which to stop.
        cap_s: seconds of timed running after which a runner is given up as unsettled; untimed and disturbed passes
            may take three times as long besides.
        min_blocks: least number of blocks (6 is the least for which a 95 % rank interval exists).
        block_ms: least length of a block; a longer one is taken where the timer would cost more than 0.1 % of it.
        warmup_cap_s: most seconds of warm-up a runner.
    """

    target: float = 0.01
    cap_s: float = 10.0
    min_blocks: int = 10
    block_ms: float = 0.5
    warmup_cap_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise UsageError(f"target={self.target} must lie between 0 and 1; 0.01 asks for an interval of +-1 %")
        if self.cap_s <= 0:
            raise UsageError(f"cap_s={self.cap_s} must be above 0 seconds")
        if self.min_blocks < 6:
            raise UsageError(f"min_blocks={self.min_blocks} must be at least 6, or no 95 % interval exists")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The latency of one runner, and a summary of the blocks behind it.

    Attributes:
        median_ms: median over blocks of the mean time of one pass.
        low_ms, high_ms: 95 % interval of that median (of a rough measurement: least and largest block).
        spread_ms: robust standard deviation of the blocks (interquartile range / 1.349).
        blocks, runs: timed blocks, and timed passes in them.
        is_settled: whether the interval reached its target before the time cap.
        disturbed: blocks run again because the system gave the processor to someone else meanwhile.
        median_all_ms: the median with the disturbed blocks counted in; None where there were none.
        outliers: blocks further than three interquartile ranges outside the quartiles; they are counted in.
        outlier_ms: the one furthest from the median; None where there are none.
        quantiles_ms: of the blocks, at the levels ``block_statistics.QUANTILES``; empty if unknown.
        trend: by how much the blocks rose or fell while measured, relative; 0 where chance explains it.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    spread_ms: float
    blocks: int
    runs: int
    is_settled: bool
    disturbed: int = 0
    median_all_ms: float | None = None
    outliers: int = 0
    outlier_ms: float | None = None
    quantiles_ms: tuple[float, ...] = ()
    trend: float = 0.0

    @property
    def half_width(self) -> float:
        """Half the interval's width, relative to the median."""
        return (self.high_ms - self.low_ms) / 2 / self.median_ms

    def to_json(self) -> JsonObject:
        """Return what a JSON file would hold."""
        return asdict(self)


def summarise_blocks(
    values_ms: Sequence[float],
    *,
    runs: int,
    is_settled: bool,
    is_rough: bool = False,
    disturbed: int = 0,
    disturbed_ms: Sequence[float] = (),
) -> Measurement:
    """Return the measurement that block values, in the order measured, amount to.

    Args:
        values_ms: of the blocks that count.
        runs: passes in them.
        is_settled: whether the target was reached.
        is_rough: the interval is then the range.
        disturbed: number of blocks run again.
        disturbed_ms: the values of those, as far as known.
    """
    low_ms, high_ms = (min(values_ms), max(values_ms)) if is_rough else median_interval(values_ms)
    median_ms = statistics.median(values_ms)
    levels_ms = quantiles(values_ms)
    far = outliers(values_ms)
    return Measurement(
        median_ms=median_ms,
        low_ms=low_ms,
        high_ms=high_ms,
        spread_ms=(levels_ms[4] - levels_ms[2]) / 1.349,
        blocks=len(values_ms),
        runs=runs,
        is_settled=is_settled,
        disturbed=disturbed,
        median_all_ms=statistics.median([*values_ms, *disturbed_ms]) if disturbed_ms else None,
        outliers=len(far),
        outlier_ms=max(far, key=lambda value: abs(value - median_ms)) if far else None,
        quantiles_ms=levels_ms,
        trend=trend(values_ms),
    )


def involuntary_switches() -> int:
    """Return how often the system has taken the processor from this thread; always 0 where it does not say."""
    if _RUSAGE_THREAD is None:
        return 0
    return resource.getrusage(_RUSAGE_THREAD).ru_nivcsw


@dataclass
class TimedRunner:
    """A runner with its block size and the values measured so far."""

    run: Callable[[], object]
    policy: MeasurePolicy
    runs_per_block: int = 1
    values_ms: list[float] = field(default_factory=list)
    timed_s: float = 0.0
    pass_ms: float = 0.0
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

        The first passes are not timed: after another network has run, its weights fill the caches, and the next
        five passes were seen to take 2.1, 1.7, 1.3, 1.07 and 1.02 times the steady latency (MobileNetV2 at 64 px).
        A block during which the system took the processor away, or behind which the sentinel finds it slowed, is
        counted as disturbed and run again for a while; None if it was disturbed every time. ``last_ms`` then holds the
        least of those times, without the time that others had the processor, where undisturbed blocks have shown that
        all the work is done in this thread.
        """
        run = self.run
        self.last_ms = math.inf
        began = time.perf_counter()
        while True:
            switches = involuntary_switches()
            for _ in range(self.refill_passes):
                run()
            processor_ns = time.thread_time_ns()
            value_ms = time_passes(run, self.runs_per_block) / 1e6 / self.runs_per_block
            processor_ms = (time.thread_time_ns() - processor_ns) / 1e6 / self.runs_per_block
            if involuntary_switches() == switches and not SENTINEL.is_slowed():
                self.is_in_caller = processor_ms > 0.9 * value_ms
                self.last_ms = value_ms
                return value_ms
            self.disturbed += 1
            if len(self.disturbed_ms) < _BLOCK_MEMORY:
                self.disturbed_ms.append(value_ms)
            self.last_ms = min(self.last_ms, processor_ms if self.is_in_caller else value_ms)
            if time.perf_counter() - began > self.retry_s:
                return None

    @property
    def refill_passes(self) -> int:
        """Untimed passes at the start of a block: one to five, the fewer the longer one takes."""
        most, least = _REFILL_PASSES
        return min(most, max(least, math.ceil(_REFILL_MS / self.pass_ms))) if self.pass_ms else least

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
        values: list[float] = []
        began = time.perf_counter()
        while True:
            self.block_ms()
            value_ms = self.last_ms
            values.append(value_ms)
            self.pass_ms = min(values)
            # By the least: the first passes are slow, and blocks sized by them would come out too short.
            self.runs_per_block = max(self.runs_per_block, math.ceil(block_ms / max(self.pass_ms, 1e-6)))
            if self.pass_ms < 1:
                self.runs_per_block = max(self.runs_per_block, 3)
            window = _WARMUP_WINDOW
            has_levelled = len(values) >= 2 * window and (
                min(values[-window:]) > (1 - _WARMUP_GAIN) * min(values[:-window])
            )
            is_over = time.perf_counter() - began > policy.warmup_cap_s or value_ms > 1e3 * policy.cap_s / 4
            if has_levelled or is_over:
                break
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
        One measurement a runner, in the order given.
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
