"""The best K solutions that keep different activations."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from itertools import count as counting

from layerfold.arguments import checked, shown, whole
from layerfold.errors import InfeasibleBudgetError, MissingEntryError, UsageError
from layerfold.options.solve import Normalise
from layerfold.solver._limits import Limits
from layerfold.solver._solution import Solution
from layerfold.solver._solve import latency_tables, solve_frontier
from layerfold.solver.budgets import checked_budgets
from layerfold.tables import ImportanceTable, LatencyTable

MOST_ALTERNATIVES = 100
"""Each takes a solve per position, so more would take minutes."""


@checked
def solve_alternatives(
    latency: LatencyTable | Sequence[LatencyTable],
    importance: ImportanceTable,
    *,
    count: int,
    budgets_ms: Sequence[float],
    alpha: float = 0.0,
    normalise: Normalise = "single",
    limits: Limits | None = None,
    risk: float | None = None,
) -> list[Solution]:
    """Return the ``count`` solutions of highest importance within the budgets, no two with the same activations.

    Exact: the set of all solutions but the best is split by the first position at which they differ from it, each
    part is solved by fixing activations, and the best of the parts comes next (Lawler's partition).

    Args:
        count: how many, 1 to 100; fewer are returned where fewer exist.
        budgets_ms: end-to-end budget, one per device.
        latency, importance, alpha, normalise, limits, risk: as in :func:`solve_frontier`.

    Raises:
        InfeasibleBudgetError: not even one solution keeps to the budgets.

    Source: Lawler, "A procedure for computing the K best solutions to discrete optimization problems" (1972).

    Example:
        >>> for each in lf.solve_alternatives(latency, importance, count=2, budgets_ms=[3.5]):
        ...     print(each.act_pos, each.predicted_ms, each.importance)
        (1, 3) 3.2 -1.0
        (2, 3) 3.5 -2.0
    """
    if not 1 <= whole("count", count) <= MOST_ALTERNATIVES:
        raise UsageError(f"count={shown(count)}: expected a whole number from 1 to {MOST_ALTERNATIVES}")
    tables = latency_tables(latency)
    budgets_ms = checked_budgets(budgets_ms, len(tables))
    free = [position for start, end in tables[0].chains for position in range(start + 1, end + 1)]

    def best(fixed: Limits) -> Solution:
        frontier = solve_frontier(tables, importance, alpha, normalise, limits=fixed, risk=risk, budgets_ms=budgets_ms)
        return frontier.at(budget_ms=tuple(budgets_ms))

    first_limits = limits or Limits()
    order = counting()
    first = best(first_limits)
    waiting = [(-(first.importance or 0.0), first.predicted_ms or 0.0, next(order), first, first_limits, 0)]
    found: list[Solution] = []
    while waiting and len(found) < count:
        *_, solution, fixed, depth = heapq.heappop(waiting)
        found.append(solution)
        if len(found) == count:
            break
        kept = set(solution.act_pos)
        for place in range(depth, len(free)):
            position = free[place]
            agreed = free[depth:place]
            part = (
                replace(
                    fixed,
                    keep_activations=fixed.keep_activations.union(
                        (each for each in agreed if each in kept), () if position in kept else (position,)
                    ),
                    drop_activations=fixed.drop_activations.union(
                        (each for each in agreed if each not in kept), (position,) if position in kept else ()
                    ),
                )
                if _is_free(position, fixed)
                else None
            )
            if part is None:
                continue
            try:
                other = best(part)
            except (InfeasibleBudgetError, MissingEntryError):
                continue
            heapq.heappush(
                waiting,
                (-(other.importance or 0.0), other.predicted_ms or 0.0, next(order), other, part, place + 1),
            )
    return found


def _is_free(position: int, fixed: Limits) -> bool:
    return position not in fixed.keep_activations and position not in fixed.drop_activations
