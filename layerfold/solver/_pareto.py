"""Which of many labels are not dominated."""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
TIE = 1e-13
"""Importances that differ by less than this part of their size are equal: they differ by rounding only."""

_BLOCK = 256
"""Labels that are compared at once."""


class TooManyLabels(Exception):
    """A frontier grew beyond its limit; caught where the limit was set."""


def pareto_indices(costs: Floats, importances: Floats, slack: float = 0.0) -> Indices:
    """Return the indices of the labels that no other dominates, by rising first cost.

    A label is dominated if another has no higher cost in any column and no lower importance; of equal ones, the
    first stays.

    Args:
        costs: [labels, columns], lower is better.
        importances: [labels], higher is better.
        slack: points by which a label must be better than those it costs more than; what is dropped for it has
            a kept label of no higher cost and at most ``slack`` less importance.
    """
    if costs.shape[1] == 1:
        return _one_cost(costs[:, 0], importances, slack)
    order: Indices = np.lexsort((-importances, *costs.T[::-1]))
    if costs.shape[1] == 2:
        return order[_two_costs(costs[order, 1], importances[order], slack)]
    return order[_many_costs(costs[order], importances[order], slack)]


def _one_cost(costs: Floats, importances: Floats, slack: float) -> Indices:
    if len(costs) < 2:
        return np.arange(len(costs))
    order = np.lexsort((-importances, costs))
    ordered = importances.take(order)
    best = np.maximum.accumulate(ordered)[:-1]
    best += TIE * np.abs(best)
    keep = np.empty(len(order), dtype=bool)
    keep[0] = True
    np.greater(ordered[1:], best, out=keep[1:])
    kept: Indices = order[keep]
    if slack and len(kept):
        chosen, last = [0], importances[kept[0]]
        for index, importance in enumerate(importances[kept].tolist()):
            if importance > last + slack:
                chosen.append(index)
                last = importance
        kept = kept[chosen]
    return kept


def _two_costs(second: Floats, importances: Floats, slack: float) -> Indices:
    """Sweep by the first cost, holding the staircase of (second cost, importance) seen so far."""
    stair_costs: list[float] = []
    stair_importances: list[float] = []
    kept = []
    for index, (cost, importance) in enumerate(zip(second.tolist(), importances.tolist(), strict=True)):
        place = bisect.bisect_right(stair_costs, cost)
        if place and stair_importances[place - 1] >= importance - TIE * abs(importance) - slack:
            continue
        kept.append(index)
        # Both rise along the staircase: what now costs at least as much for no more importance leaves it.
        first = bisect.bisect_left(stair_costs, cost)
        last = bisect.bisect_right(stair_importances, importance, lo=first)
        stair_costs[first:last] = [cost]
        stair_importances[first:last] = [importance]
    return np.array(kept, dtype=np.intp)


def _many_costs(costs: Floats, importances: Floats, slack: float) -> Indices:
    """Compare block by block with all labels kept so far; labels come sorted by their costs."""
    values = np.column_stack((costs[:, 1:], -importances + TIE * np.abs(importances) + slack))
    bounds = np.column_stack((costs[:, 1:], -importances))
    kept = np.empty(0, dtype=np.intp)
    for start in range(0, len(values), _BLOCK):
        here = np.arange(start, min(start + _BLOCK, len(values)))
        for past in range(0, len(kept), 4 * _BLOCK):
            rivals = bounds[kept[past : past + 4 * _BLOCK]]
            beaten = (rivals[:, None, :] <= values[None, here, :]).all(axis=2).any(axis=0)
            here = here[np.logical_not(beaten)]
            if not len(here):
                break
        rivalled: NDArray[np.bool_] = np.asarray((bounds[here][:, None, :] <= values[None, here, :]).all(axis=2))
        fresh: list[int] = []
        for index in range(len(here)):
            if not rivalled[fresh, index].any():
                fresh.append(index)
        kept = np.concatenate((kept, here[fresh]))
    return kept
