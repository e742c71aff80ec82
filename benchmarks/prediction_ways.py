"""Entries timed between their neighbours, by themselves: one of the ways that docs/prediction.md compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import layerfold as lf
from layerfold.profiler.plans.plan import MeasuredPlan


def ratios_of(
    changes_ms: Mapping[tuple[int, int], float], table: lf.LatencyTable, plans: Sequence[MeasuredPlan]
) -> list[float]:
    """Return the latency that changes predict for plans, relative to the original."""
    return [
        1 + sum(changes_ms.get(pair, 0.0) for pair in table.segments_of(plan.merge_pos)) / table.original_ms
        for plan in plans
    ]
