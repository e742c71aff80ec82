"""The range of each feature map from what it held."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.options.quantise import QuantiseOptions
from layerfold.quantise.observe import Observed

_SHARES = np.linspace(0.2, 1.0, 81)  # of the extremes, that ``mse`` tries


def range_of(observed: Observed, options: QuantiseOptions) -> tuple[float, float]:
    """Return the least and the greatest value that the eight bits are to cover, by ``options.method``."""
    low, high = min(observed.low, 0.0), max(observed.high, 0.0)
    if options.method == "minmax" or observed.reach == 0.0:
        return low, high
    half = observed.counts.size / 2
    centres = np.asarray(observed.reach * (np.arange(2 * half) + 0.5 - half) / half, dtype=np.float64)
    if options.method == "percentile":
        outside = (1 - options.percentile / 100) / (2 if low < 0 < high else 1)
        share = np.cumsum(observed.counts) / observed.counts.sum()
        first, last = np.searchsorted(share, outside), np.searchsorted(share, 1 - outside)
        ends = observed.reach / half / 2
        return max(low, float(centres[first] - ends)), min(high, float(centres[min(last, share.size - 1)] + ends))
    return _least_error(centres, observed.counts, low, high, options.symmetric)


def _least_error(
    centres: NDArray[np.floating[Any]], counts: NDArray[np.float64], low: float, high: float, is_symmetric: bool
) -> tuple[float, float]:
    """Return the range, a share of the whole one on each side, that rounds and cuts off least in the mean square."""
    used = counts > 0
    centres, counts = centres[used], counts[used]
    if is_symmetric:
        most = max(-low, high)
        low, high = -most, most

    def error(low: float, high: float) -> float:
        scale = (high - low) / 255
        if scale <= 0:
            return np.inf
        cut = centres.clip(low, high)
        beyond = cut != centres
        # inside, rounding of values that lie anyhow: scale^2 / 12
        return float(np.sum(counts * np.where(beyond, (centres - cut) ** 2, scale * scale / 12)))

    best = (error(low, high), low, high)
    for share in _SHARES:  # both sides together, then each by itself
        best = min(best, (error(low * share, high * share), low * share, high * share))
    if not is_symmetric and low < 0 < high:
        for share in _SHARES:
            best = min(best, (error(low * share, best[2]), low * share, best[2]))
        for share in _SHARES:
            best = min(best, (error(best[1], high * share), best[1], high * share))
    return best[1], best[2]
