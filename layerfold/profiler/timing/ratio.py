"""A latency relative to another, measured in the same rounds: a number without a unit."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from layerfold.files import JsonObject
from layerfold.profiler.timing.block_statistics import median_interval


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A latency over another: median over rounds and its 95 % interval."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """Return what the ratios of single rounds amount to."""
        low, high = median_interval(ratios)
        return cls(estimate=statistics.median(ratios), low=low, high=high)

    @property
    def half_width(self) -> float:
        """Half the interval's width, relative to the estimate."""
        return (self.high - self.low) / 2 / self.estimate


@dataclass(frozen=True, kw_only=True)
class MeasuredRatio:
    """A ratio, and the rounds behind it.

    Attributes:
        ratio: the result.
        rounds, contended: rounds used, and set aside because something else slowed the machine.
        runs: timed passes of the runner in the rounds used.
        is_settled: whether it is as good as was asked for.
    """

    ratio: Ratio
    rounds: int
    contended: int
    runs: int
    is_settled: bool

    def to_json(self) -> JsonObject:
        """Return what a JSON file would hold: flat."""
        facts = asdict(self)
        return {**facts.pop("ratio"), **facts}
