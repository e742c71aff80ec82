"""Frontiers with and without the options that drop layers, of one and the same tables."""

from __future__ import annotations

from typing import Any

import layerfold as lf
from layerfold.tables import Provenance

SPEEDUPS = (1.1, 1.2, 1.3, 1.4, 1.6, 1.7, 2.0, 2.5, 3.0)
_SHOWN = 200

Points = list[tuple[float, float]]


def compare_frontiers(table: lf.LatencyTable, importance: lf.ImportanceTable) -> dict[str, Any]:
    """Solve with and without drops on the same numbers; say at how many budgets either is better.

    Returns:
        Counts; the greatest importance at each of :data:`SPEEDUPS` (None: out of reach); and for a picture, the points
        of either frontier as (speed-up, importance), at most 200 of them.
    """
    ways = {"merging": without_drops(table), "dropping too": table}
    points = {
        way: [(point.predicted_ms or 0.0, point.importance or 0.0) for point in lf.solve_frontier(each, importance)]
        for way, each in ways.items()
    }
    without, with_drops = points["merging"], points["dropping too"]
    pairs = [(best_at(with_drops, budget_ms), importance) for budget_ms, importance in without]
    return {
        "points": {way: len(each) for way, each in points.items()},
        "budgets_compared": len(pairs),
        "worse_with_drops": sum(best is None or best < other for best, other in pairs),
        "better_with_drops": sum(best is not None and best > other for best, other in pairs),
        "reachable_speedup": {way: table.original_ms / min(ms for ms, _ in each) for way, each in points.items()},
        "importance_at_speedup": {
            f"{speedup:g}": {way: best_at(each, table.original_ms / speedup) for way, each in points.items()}
            for speedup in SPEEDUPS
        },
        "frontier": {
            way: [[round(table.original_ms / ms, 4), round(value, 5)] for ms, value in thinned(each)]
            for way, each in points.items()
        },
    }


def without_drops(table: lf.LatencyTable) -> lf.LatencyTable:
    """Return the table of the options that keep every layer; only what predictions need is left of its provenance."""
    plain = Provenance(
        kind="latency", chains=table.chains, fixed_ms=table.provenance.fixed_ms, scale=table.provenance.scale
    )
    return lf.LatencyTable([entry for entry in table.entries if not entry.drops], provenance=plain)


def best_at(points: Points, budget_ms: float) -> float | None:
    """Return the greatest importance within a budget, or None."""
    return max((importance for latency_ms, importance in points if latency_ms <= budget_ms * (1 + 1e-12)), default=None)


def thinned(points: Points) -> Points:
    """Return evenly chosen points, the first and the last among them."""
    if len(points) <= _SHOWN:
        return points
    return [points[round(index * (len(points) - 1) / (_SHOWN - 1))] for index in range(_SHOWN)]
