"""Proven upper bounds: the concave hull of the frontier, by Lagrangian relaxation.

For a price per millisecond, the best of (importance - price * latency) over all ways through a chain takes one pass
over its options. Each price gives a line that no solution lies above:
importance <= best(price) + price * latency. The lines of several chains add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerfold.solver.options import ChainOptions

Floats = NDArray[np.float64]
_ROUNDING = 1e-13
Groups = list[NDArray[np.intp]]


@dataclass(frozen=True, kw_only=True)
class Hull:
    """Lines above all solutions of one cost, and the best values they were made from.

    Attributes:
        prices: [prices] points of importance a unit of cost, rising from 0.
        best: [prices] best value of all chains together.
        to_go: one [states, prices] a chain: best value from a state to the chain's end.
        span: importance of the best solution less that of the fastest.
    """

    prices: Floats
    best: Floats
    to_go: tuple[Floats, ...]
    span: float

    def bound(self, costs: Floats) -> Floats:
        """Return the highest importance that any solution of at most these costs could have."""
        found = np.full(np.shape(costs), np.inf)
        for price, best in zip(self.prices, self.best, strict=True):
            line = price * np.where(np.isfinite(costs) | (price > 0.0), costs, 0.0)
            # Rounding must not press a line below the solutions on it.
            np.minimum(found, best + line + _ROUNDING * (abs(best) + line), out=found)
        return found


def make_hull(chains: Sequence[ChainOptions], *, tightness: float = 1e-5, most: int = 192) -> Hull:
    """Return the hull of the summed frontiers of chains with one cost each.

    Prices are added where the lines lie farthest above the solutions found, until that is nowhere more than
    ``tightness`` times the span of importance, or there are ``most`` of them.
    """
    groups = [grouped(each.from_state) for each in chains]
    spread = sum(float(np.abs(each.importances).sum()) for each in chains)
    # What costs nothing at all takes no part in it.
    least = min((float(each.costs[each.costs > 0.0].min()) for each in chains if (each.costs > 0.0).any()), default=1.0)
    # Above this price the fastest way is the best, whatever it costs in importance.
    highest = max(1.0, spread) / max(least, 1e-9) * 1e3
    prices, costs, to_go = np.empty(0), np.empty(0), [np.empty((each.num_states, 0)) for each in chains]
    fresh = np.array([0.0, highest])
    while len(fresh):
        added = np.zeros(len(fresh))
        for index, options in enumerate(chains):
            values, way_costs = _values_to_go(options, fresh, groups[index])
            to_go[index] = np.concatenate((to_go[index], values), axis=1)
            added += way_costs
        prices, costs = np.concatenate((prices, fresh)), np.concatenate((costs, added))
        order = np.argsort(prices)
        prices, costs = prices[order], costs[order]
        to_go = [each[:, order] for each in to_go]
        best = np.sum([each[1] for each in to_go], axis=0)
        fresh = _next_prices(prices, costs, best, tightness, most - len(prices))
    importances = best + prices * costs
    return Hull(prices=prices, best=best, to_go=tuple(to_go), span=float(np.ptp(importances)))


def values_so_far(options: ChainOptions, prices: Floats) -> Floats:
    """Return [states, prices]: the best value from the chain's start to each state."""
    costs, importances = options.costs[:, 0], options.importances
    values = np.full((options.num_states, len(prices)), -np.inf)
    values[1] = 0.0
    for group in grouped(options.to_state):
        way = values[options.from_state[group]]
        way += importances[group, None]
        way -= costs[group, None] * prices
        values[options.to_state[group[0]]] = way.max(axis=0)
    return values


def grouped(states: NDArray[np.int64]) -> Groups:
    """Return the indices of equal states, by rising state."""
    order = np.argsort(states, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(states[order])) + 1) if len(order) else []


def _values_to_go(options: ChainOptions, prices: Floats, groups: Groups) -> tuple[Floats, Floats]:
    """Return the best values from every state, and the cost of the best way through the chain."""
    costs, importances = options.costs[:, 0], options.importances
    size, each_price = (options.num_states, len(prices)), np.arange(len(prices))
    values, way_costs = np.full(size, -np.inf), np.zeros(size)
    values[list(options.end_states)] = 0.0
    for group in reversed(groups):
        state = options.from_state[group[0]]
        way = values[options.to_state[group]]
        way += importances[group, None]
        way -= costs[group, None] * prices
        best = way.argmax(axis=0)
        values[state] = way[best, each_price]
        chosen = group[best]
        way_costs[state] = costs[chosen] + way_costs[options.to_state[chosen], each_price]
    return values, way_costs[1]


def _next_prices(prices: Floats, costs: Floats, best: Floats, tightness: float, room: int) -> Floats:
    """Return the slopes between neighbouring vertices where the lines lie too far above them."""
    importances = best + prices * costs
    run, rise = costs[:-1] - costs[1:], importances[:-1] - importances[1:]
    apart = np.flatnonzero((run > 1e-12 * (1.0 + abs(costs[0]))) & (rise > 0.0))
    slopes = rise[apart] / run[apart]
    # The lines of two neighbours meet here; the chord between their vertices lies below.
    meet = (best[apart] - best[apart + 1]) / (prices[apart + 1] - prices[apart])
    error = best[apart] + prices[apart] * meet - (importances[apart + 1] + slopes * (meet - costs[apart + 1]))
    wide = np.flatnonzero(error > tightness * np.ptp(importances))
    wide = wide[np.argsort(-error[wide], kind="stable")][: max(room, 0)]
    return np.setdiff1d(slopes[wide], prices)
