"""Frontiers too large to be listed: labels near the hull only, and a proven bound on what that misses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from layerfold.solver._hull import Hull, make_hull, values_so_far
from layerfold.solver._pareto import pareto_indices
from layerfold.solver.labels import ChainFrontier, LabelPool, ended, options_by_end
from layerfold.solver.options import ChainOptions

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
_LABELS = 512
"""Labels kept per state; towards the end of a chain their number rises to _LAST_LABELS."""
_LAST_LABELS = 16_384
_GRID = 64
_OPTIONS = 4
"""Options a position that are looked at, if so many lie near the hull."""


def solve_near(chains: list[ChainOptions], epsilon: float) -> tuple[list[ChainFrontier], Hull, list[ChainOptions]]:
    """Return chain frontiers made of labels that lie near the hull, and the hull that proves how near they come.

    Whatever is dropped, the hull bounds: a point's importance is at most ``hull.bound(budget)`` less what the best
    solution within that budget has. Labels farther than ``epsilon`` (a part of the span of importance) below the
    hull cannot become points within ``epsilon``, so they go first; of those that crowd, the ones nearest the hull
    stay.

    Args:
        chains: options with one cost.
        epsilon: above 0.

    Returns:
        the frontiers, the hull, and the options that the hull was made of (those that no other dominates).
    """
    slim = [undominated(each) for each in chains]
    hull = make_hull(slim, tightness=0.1 * epsilon)
    margin = 1.5 * epsilon * hull.span + 1e-12
    last = _LAST_LABELS if len(slim) == 1 else 2048
    frontiers = []
    for options, to_go in zip(slim, hull.to_go, strict=True):
        below = _below_hull(options, hull, to_go)
        # Sparse tables leave room for more than is needed: what lies a little lower fills steps of the frontier.
        wanted = min(_OPTIONS * (options.num_states // 2), len(below)) - 1
        wide = max(margin, min(float(np.partition(below, wanted)[wanted]), 20.0 * margin))
        near = subset(options, np.flatnonzero(below <= wide))
        frontiers.append(_thinned_frontier(near, hull.prices, to_go, wide, last))
    return frontiers, hull, slim


def undominated(options: ChainOptions) -> ChainOptions:
    """Drop options that another between the same states dominates; they come sorted by states and cost."""
    key = options.from_state * options.num_states + options.to_state
    first = np.concatenate(([True], np.diff(key) != 0))
    # Lifting each pair of states above the one before lets one running maximum serve all.
    lifted = options.importances + (np.cumsum(first) - 1) * (2.0 * float(np.ptp(options.importances)) + 1.0)
    best = np.maximum.accumulate(lifted)
    return subset(options, np.flatnonzero(first | np.concatenate(([True], lifted[1:] > best[:-1]))))


def _below_hull(options: ChainOptions, hull: Hull, to_go: Floats) -> Floats:
    """Return how far below the hull the best way through each option lies."""
    so_far = values_so_far(options, hull.prices)
    below = np.full(len(options.importances), np.inf)
    for index, price in enumerate(hull.prices):
        through = so_far[options.from_state, index] + to_go[options.to_state, index]
        through += options.importances - price * options.costs[:, 0]
        np.minimum(below, to_go[1, index] - through, out=below)
    return below


def _thinned_frontier(options: ChainOptions, prices: Floats, to_go: Floats, margin: float, last: int) -> ChainFrontier:
    pool = LabelPool(options)
    for state, first, stop in options_by_end(options):
        costs, importances, option, parent = pool.meet(first, stop)
        if not len(importances):
            continue
        room = _room(options.num_states - 1 - state, last)
        below = _envelope(prices, to_go[1] - to_go[state], costs[:, 0]) - importances
        kept = np.flatnonzero(below <= margin)
        kept = kept[pareto_indices(costs[kept], importances[kept])]
        kept = kept[_crowd_thinned(costs[kept, 0], importances[kept], below[kept], room)]
        pool.add(state, costs[kept], importances[kept], option[kept], parent[kept])
    frontier = ended(pool)
    assert frontier is not None  # the ways that touch the hull are always kept
    return frontier


def _room(states_left: int, last: int) -> int:
    """Return how many labels a state may keep: few on the way, more and more over the last 80 states."""
    return max(_LABELS, int(last * 2.0 ** (-states_left / 12.0)))


def _envelope(prices: Floats, offsets: Floats, costs: Floats) -> Floats:
    """Return min over prices of offset + price * cost: concave in cost, so a fine grid and chords below it do."""
    grid = np.linspace(costs.min(), costs.max(), _GRID) if len(costs) > _GRID else np.sort(costs)
    values = (offsets[:, None] + np.multiply.outer(prices, grid)).min(axis=0)
    return np.asarray(np.interp(costs, grid, values))


def _crowd_thinned(costs: Floats, importances: Floats, below: Floats, room: int) -> Indices:
    """Cut the frontier's length into ``room`` cells and return in each the label nearest the hull.

    Length counts cost and importance alike, so that neither a flat nor a steep part is left without labels. Labels
    are non-dominated and come by rising cost, so a cell's labels stand side by side.
    """
    if len(costs) <= room:
        return np.arange(len(costs))
    along = costs / (costs[-1] - costs[0]) + importances / (importances[-1] - importances[0])
    cell = ((along - along[0]) * (room / (along[-1] - along[0]))).astype(np.int64)
    firsts = np.concatenate(([0], np.flatnonzero(np.diff(cell)) + 1))
    sizes = np.diff(np.append(firsts, len(costs)))
    nearest = np.flatnonzero(below <= np.minimum.reduceat(below, firsts).repeat(sizes))
    # One a cell, even where two are equally near.
    return nearest[np.concatenate(([True], np.diff(cell[nearest]) != 0))]


def subset(options: ChainOptions, kept: Indices) -> ChainOptions:
    """Return some of the options."""
    plan_of = options.plan_of
    return replace(
        options,
        from_state=options.from_state[kept],
        to_state=options.to_state[kept],
        costs=options.costs[kept],
        importances=options.importances[kept],
        plan_of=lambda index: plan_of(int(kept[index])),
    )
