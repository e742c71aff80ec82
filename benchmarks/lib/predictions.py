"""Predictions of plans that no fit has seen, and how far off they are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import layerfold as lf
from layerfold.profiler.plans.beliefs import Beliefs
from layerfold.profiler.plans.plan import MeasuredPlan


def ratios_of(
    changes_ms: Mapping[tuple[int, int], float], table: lf.LatencyTable, plans: Sequence[MeasuredPlan]
) -> list[float]:
    """Return the latency that changes predict for plans, relative to the original."""
    return [
        1 + sum(changes_ms.get(pair, 0.0) for pair in table.segments_of(plan.merge_pos)) / table.original_ms
        for plan in plans
    ]


def with_intervals(beliefs: Beliefs, held_out: Sequence[MeasuredPlan], measured: Sequence[float]) -> dict[str, Any]:
    """Return the errors of beliefs, and the share of measurements inside their 95 % intervals."""
    found = [beliefs.predict(each.merge_pos) for each in held_out]
    inside = [
        abs(each.ratio - plan.ratio) <= 1.96 * (each.deviation**2 + plan.deviation**2) ** 0.5
        for each, plan in zip(found, held_out, strict=True)
    ]
    return {
        **errors([each.ratio for each in found], measured),
        "inside_95_pct": 100 * statistics.mean(inside),
        "mean_half_width_pct": 100 * statistics.mean(1.96 * each.deviation / each.ratio for each in found),
        "predicted": [each.ratio for each in found],
        "deviations": [each.deviation for each in found],
    }


def errors(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, Any]:
    """Return median and largest relative error in percent, and Spearman's rank correlation."""
    p, m = np.asarray(predicted), np.asarray(measured)
    relative = np.abs(p / m - 1)
    ranks = [np.argsort(np.argsort(values)) for values in (p, m)]
    return {
        "median_pct": 100 * float(np.median(relative)),
        "max_pct": 100 * float(relative.max()),
        "rank": float(np.corrcoef(*ranks)[0, 1]),
    }
