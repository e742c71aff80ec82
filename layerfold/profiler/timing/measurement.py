"""When a measurement has settled, and what it gave."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from layerfold.errors import UsageError
from layerfold.files import JsonObject
from layerfold.profiler.timing.block_statistics import median_interval, outliers, quantiles, trend


@dataclass(frozen=True, kw_only=True)
class MeasurePolicy:
    """When a measurement has settled, and when to give up.

    Attributes:
        target: half-width of the 95 % interval of the median, relative to the median, at which to stop.
        cap_s: seconds of timed running after which a runner is given up as unsettled; untimed and disturbed passes
            may take three times as long besides.
        min_blocks: least number of blocks (6 is the least for which a 95 % rank interval exists).
        block_ms: least length of a block; a longer one is taken where the timer would cost more than 0.1 % of it.
        warmup_cap_s: most seconds of warm-up per runner.
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
