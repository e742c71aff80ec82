"""One budget answered within a promised gap, where the thinned frontier alone proves less."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from layerfold.solver._hull import Hull, values_so_far
from layerfold.solver._near import subset
from layerfold.solver._pareto import TooManyLabels, pareto_indices
from layerfold.solver.labels import ChainFrontier, LabelPool, ended, least_to_go, options_by_end
from layerfold.solver.options import ChainOptions

Floats = NDArray[np.float64]
_PRICES = 12
"""Lines of the hull on either side of the budget's own that labels are held against."""
_MOST_MET = 3_000_000


def refine_budget(options: ChainOptions, hull: Hull, budget: float, floor: float) -> tuple[ChainFrontier | None, bool]:
    """Search one chain for solutions within ``budget`` that have more importance than ``floor``.

    Every label is held against the lines of the hull that matter at this budget; one that no completion can bring
    above ``floor`` is dropped. So if the search ends, either its best solution is optimal, or none is above ``floor``.

    Args:
        options: options with one cost.
        hull: of this chain alone.
        budget: largest sum of costs.
        floor: importance to be beaten.

    Returns:
        the solutions found (None if there are none), and whether the search came to its end.
    """
    own = int(np.argmin(hull.best + hull.prices * budget))
    near = slice(max(0, own - _PRICES), own + _PRICES + 1)
    prices, to_go = hull.prices[near], hull.to_go[0][:, near]
    reach = to_go + prices * budget
    so_far = values_so_far(options, prices)
    above = np.full(len(options.importances), np.inf)
    for index, price in enumerate(prices):
        through = so_far[options.from_state, index] + reach[options.to_state, index]
        through += options.importances - price * options.costs[:, 0]
        np.minimum(above, through, out=above)
    chosen = subset(options, np.flatnonzero(above > floor))
    fastest = least_to_go(chosen)[:, 0]
    pool, may_meet = LabelPool(chosen), _MOST_MET
    for state, first, last in options_by_end(chosen):
        try:
            costs, importances, option, parent = pool.meet(first, last, may_meet)
        except TooManyLabels:
            return None, False
        may_meet -= len(importances)
        fits = np.flatnonzero(costs[:, 0] + fastest[state] <= budget)
        best = (reach[state] - np.multiply.outer(costs[fits, 0], prices)).min(axis=1) + importances[fits]
        fits = fits[best > floor]
        kept = fits[pareto_indices(costs[fits], importances[fits])]
        pool.add(state, costs[kept], importances[kept], option[kept], parent[kept])
    return ended(pool), True
