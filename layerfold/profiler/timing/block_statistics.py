"""Statistics of block values: rank intervals, quantiles, outliers, trend. None of them assumes a distribution."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

CONFIDENCE = 0.95
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""The levels that a stored summary holds."""
_TREND_POINTS = 200
_TREND_SIGNIFICANCE = 0.001
_FENCE = 3.0


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the narrowest symmetric pair of order statistics that holds the median with ``CONFIDENCE``.

    With fewer than six values no pair reaches 95 %; the extremes are returned then. Hahn and Meeker, *Statistical
    Intervals* (1991), section 5.2.
    """
    ordered = sorted(values)
    rank = _interval_rank(len(ordered), CONFIDENCE)
    return ordered[rank], ordered[-1 - rank]


def _interval_rank(count: int, confidence: float) -> int:
    """Return the largest r such that x[r] .. x[count-1-r] covers the median with ``confidence``; 0 at least."""
    if count > 200:  # the normal approximation is within one rank from here on
        z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
        return max(math.floor((count - z * math.sqrt(count)) / 2) - 1, 0)
    tail, rank = 0.0, 0
    for hits in range(count // 2):
        tail += math.comb(count, hits) * 0.5**count
        if 2 * tail > 1 - confidence:
            break
        rank = hits
    return rank


def is_narrow(values: Sequence[float], target: float) -> bool:
    """Say whether the median's 95 % interval is narrower than +-``target`` of the median."""
    low, high = median_interval(values)
    return (high - low) / 2 < target * statistics.median(values)


def quantiles(values: Sequence[float], levels: Sequence[float] = QUANTILES) -> tuple[float, ...]:
    """Return quantiles by linear interpolation between order statistics (Hyndman and Fan's type 7)."""
    ordered = sorted(values)
    found = []
    for level in levels:
        place = level * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        found.append(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
    return tuple(found)


def outliers(values: Sequence[float]) -> list[float]:
    """Return the values further than three interquartile ranges outside the quartiles (Tukey's *far out*)."""
    low, high = quantiles(values, (0.25, 0.75))
    fence = _FENCE * (high - low)
    return [value for value in values if value < low - fence or value > high + fence]


def trend(values: Sequence[float]) -> float:
    """Return by how much values in the order measured rose or fell, relative to their median; 0 if by chance.

    The test is Mann and Kendall's, at a level of 0.1 % (of hundreds of entries one would be called drifting by chance
    at 5 %); the size is the difference of the last and the first third's medians. Of more than 200 values, 200 groups'
    medians are tested.
    """
    if len(values) > _TREND_POINTS:
        bounds = [round(i * len(values) / _TREND_POINTS) for i in range(_TREND_POINTS + 1)]
        values = [statistics.median(values[a:b]) for a, b in itertools.pairwise(bounds)]
    count = len(values)
    if count < 6 or kendall_p_value(values) > _TREND_SIGNIFICANCE:
        return 0.0
    third = count // 3
    change = statistics.median(values[-third:]) - statistics.median(values[:third])
    return change / statistics.median(values)


def kendall_p_value(values: Sequence[float]) -> float:
    """Return the two-sided p-value of Kendall's rank correlation with the order, ties counted; approximate."""
    count = len(values)
    score = sum((b > a) - (b < a) for a, b in itertools.combinations(values, 2))
    ties = [len(list(group)) for _, group in itertools.groupby(sorted(values))]
    variance = (count * (count - 1) * (2 * count + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    if variance <= 0:
        return 1.0
    return math.erfc(abs(score) / math.sqrt(2 * variance))
