"""Fit ``measured = fixed + scale * sum of entries`` on a few measured plans: one of the ways of docs/prediction.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from layerfold.errors import UsageError
from layerfold.tables import LatencyTable

_HUBER = 1.345
_PRIOR_WEIGHT = 0.05
_ROUNDS = 30


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fit of end-to-end latency on sums of entries.

    Attributes:
        fixed_ms, scale: predicted = fixed_ms + scale * sum; fixed_ms >= 0, scale > 0.
        median_error, max_error: of the points fitted, |predicted - measured| / measured.
        num_points: how many were given.
    """

    fixed_ms: float
    scale: float
    median_error: float
    max_error: float
    num_points: int

    def predict_ms(self, sum_ms: float) -> float:
        """Return the end-to-end latency predicted for a sum of entries."""
        return self.fixed_ms + self.scale * sum_ms


def calibrate_latency(
    table: LatencyTable,
    measured: Sequence[tuple[float, float]],
    *,
    weights: Sequence[float] | None = None,
) -> Calibration:
    """Fit the fixed part and the scale of a table to measured plans.

    Relative errors count, with Huber's loss (one bad measurement does not turn the line), and a weak prior holds the
    fixed part near the table's own, so that few points, or points that lie close together, still give a sane slope.
    With one point only the scale is fitted.

    Args:
        table: its ``fixed_ms`` is the prior.
        measured: (sum of entries, measured end-to-end latency) of each plan, both in ms.
        weights: of each point, at least 0; for example larger for plans near the budget.

    Raises:
        UsageError: no points, or numbers that are not above 0.
    """
    points = np.asarray(list(measured), dtype=np.float64).reshape(-1, 2)
    if len(points) == 0:
        raise UsageError("measured is empty; measure at least one plan to calibrate on")
    if not np.all(np.isfinite(points)) or np.any(points <= 0):
        raise UsageError("measured holds a sum or latency that is not above 0 ms; measure that plan again")
    given = np.ones(len(points)) if weights is None else np.asarray(weights, dtype=np.float64)
    if given.shape != (len(points),) or np.any(given < 0) or not np.any(given > 0):
        raise UsageError(f"weights={weights!r} must be one number of at least 0 for each of {len(points)} points")
    sums, latencies = points.T
    prior_ms = min(table.provenance.fixed_ms, 0.9 * float(latencies.min()))
    fixed_ms, scale = _fit(sums, latencies, given, prior_ms)
    errors = np.abs(fixed_ms + scale * sums - latencies) / latencies
    return Calibration(
        fixed_ms=fixed_ms,
        scale=scale,
        median_error=float(statistics.median(errors.tolist())),
        max_error=float(errors.max()),
        num_points=len(points),
    )


def _fit(
    sums: np.ndarray[tuple[int], np.dtype[np.float64]],
    latencies: np.ndarray[tuple[int], np.dtype[np.float64]],
    given: np.ndarray[tuple[int], np.dtype[np.float64]],
    prior_ms: float,
) -> tuple[float, float]:
    """Iteratively reweighted least squares in relative errors; the last row is the prior on the fixed part."""
    typical_ms = float(np.median(latencies))
    robust = np.ones(len(sums))
    fixed_ms, scale = prior_ms, float(np.average((latencies - prior_ms) / sums, weights=given))
    for _ in range(_ROUNDS if len(sums) > 1 else 0):
        weight = np.sqrt(given * robust) / latencies
        rows = np.column_stack([weight, weight * sums])
        prior = np.sqrt(_PRIOR_WEIGHT) / typical_ms
        solution, *_ = np.linalg.lstsq(
            np.vstack([rows, [prior, 0.0]]), np.append(weight * latencies, prior * prior_ms), rcond=None
        )
        fixed_ms, scale = float(solution[0]), float(solution[1])
        if fixed_ms < 0 or scale <= 0:  # outside what a latency can be: the nearest line through an end of the range
            fixed_ms = 0.0 if fixed_ms < 0 else prior_ms
            scale = _scale_only(sums, latencies, given * robust, fixed_ms)
        errors = np.abs(fixed_ms + scale * sums - latencies) / latencies
        spread = max(float(np.median(errors)) / 0.6745, 1e-4)
        robust = np.minimum(1.0, _HUBER * spread / np.maximum(errors, 1e-12))
    return fixed_ms, scale


def _scale_only(
    sums: np.ndarray[tuple[int], np.dtype[np.float64]],
    latencies: np.ndarray[tuple[int], np.dtype[np.float64]],
    weight: np.ndarray[tuple[int], np.dtype[np.float64]],
    fixed_ms: float,
) -> float:
    relative = weight / latencies**2
    return float(np.sum(relative * sums * (latencies - fixed_ms)) / np.sum(relative * sums**2))
