"""The exact frontier of one chain: labels at states, joined along options, the dominated ones dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerfold.solver._one_cost import OneCostLabels, join_labels, undominated_labels
from layerfold.solver._pareto import TooManyLabels, pareto_indices
from layerfold.solver.options import ChainOptions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Indices = NDArray[np.intp]
_MET = 1000
"""Labels joined in all, for each label that a state may have, before a search counts as too large."""
_MOST_MET = 200_000_000
"""Labels joined in all at most, whatever a state may have: about a minute."""


class LabelPool:
    """All labels of one chain in one set of arrays; label 0 stands at the chain's start, with its activation.

    One pool instead of arrays per state lets all options into a state be joined by a fixed number of NumPy calls.
    """

    def __init__(self, options: ChainOptions) -> None:
        self.options = options
        self.costs: Floats = np.zeros((1024, options.costs.shape[1]))
        self.importances: Floats = np.zeros(1024)
        self._option: Ints = np.zeros(1024, dtype=np.int64)
        self._parent: Ints = np.zeros(1024, dtype=np.int64)
        self._offsets: Ints = np.zeros(options.num_states, dtype=np.int64)
        self._sizes: Ints = np.zeros(options.num_states, dtype=np.int64)
        self._count = np.arange(1024)
        self._every_option = np.arange(len(options.importances))
        self._used = 1
        self._sizes[1] = 1

    def meet(self, first: int, last: int, most: float = math.inf) -> tuple[Floats, Floats, Ints, Ints]:
        """Put options first..last-1 behind every label they start from: (costs, importances, option, parent).

        Raises:
            TooManyLabels: more than ``most`` of them.
        """
        starts = self.options.from_state[first:last]
        sizes = self._sizes.take(starts)
        stops = sizes.cumsum()
        total = int(stops[-1])
        if total > most:
            raise TooManyLabels
        if total > len(self._count):
            self._count = np.arange(2 * total)
        # Counting on within each option: the place of its first label less the labels of the options before it.
        shift = self._offsets.take(starts)
        shift -= stops
        shift += sizes
        parent = shift.repeat(sizes)
        parent += self._count[:total]
        option = self._every_option[first:last].repeat(sizes)
        costs = self.costs.take(parent, axis=0)
        costs += self.options.costs.take(option, axis=0)
        importances = self.importances.take(parent)
        importances += self.options.importances.take(option)
        return costs, importances, option, parent

    def add(self, state: int, costs: Floats, importances: Floats, option: Ints, parent: Ints) -> None:
        """Store the labels of a state."""
        size = len(importances)
        while self._used + size > len(self.importances):
            self.costs = np.concatenate((self.costs, np.zeros_like(self.costs)))
            self.importances = np.concatenate((self.importances, np.zeros_like(self.importances)))
            self._option = np.concatenate((self._option, np.zeros_like(self._option)))
            self._parent = np.concatenate((self._parent, np.zeros_like(self._parent)))
        here = slice(self._used, self._used + size)
        self.costs[here], self.importances[here] = costs, importances
        self._option[here], self._parent[here] = option, parent
        self._offsets[state], self._sizes[state] = self._used, size
        self._used += size

    def labels_of(self, state: int) -> Ints:
        """Return the labels of a state."""
        return np.arange(self._offsets[state], self._offsets[state] + self._sizes[state])

    def path(self, label: int) -> list[int]:
        """Return the indices of the options that lead to a label."""
        found = []
        while label:
            found.append(int(self._option[label]))
            label = int(self._parent[label])
        return found[::-1]


@dataclass(frozen=True, kw_only=True)
class ChainFrontier:
    """All non-dominated ways through one chain, by rising first cost.

    Attributes:
        options: what was chosen from.
        costs: [points, columns].
        importances: [points].
    """

    options: ChainOptions
    costs: Floats
    importances: Floats
    _labels: Ints
    _pool: LabelPool | OneCostLabels

    def path(self, point: int) -> list[int]:
        """Return the indices of the options of one point, from the chain's start to its end."""
        return self._pool.path(int(self._labels[point]))


def least_to_go(options: ChainOptions) -> Floats:
    """Return [states, columns]: the least of each cost from a state to the chain's end; infinite where no way leads."""
    columns = []
    for costs in options.costs.T:
        least = [math.inf] * options.num_states
        for state in options.end_states:
            least[state] = 0.0
        # By falling start, so that all ways on from an option's end are known.
        order = np.argsort(-options.from_state, kind="stable")
        for start, end, cost in zip(
            options.from_state[order].tolist(), options.to_state[order].tolist(), costs[order].tolist(), strict=True
        ):
            if least[end] + cost < least[start]:
                least[start] = least[end] + cost
        columns.append(least)
    return np.array(columns).T


def solve_chain(
    options: ChainOptions,
    to_go: Floats,
    *,
    caps: Floats | None = None,
    slack: float = 0.0,
    max_labels: int | None = None,
) -> ChainFrontier | None:
    """Return the frontier of one chain from (start, 1) to its end, or None if no way leads there.

    Args:
        options: the options.
        to_go: :func:`least_to_go` of them.
        caps: [columns] upper limits; labels that cannot stay within them are dropped. None for no limit.
        slack: points of importance that may be lost at each state; 0 for the exact frontier.
        max_labels: most labels per state.

    Raises:
        TooManyLabels: a state has more than ``max_labels``, or a thousand times as many were joined in all (which
            takes some seconds at the default limit).
    """
    may_meet = math.inf if max_labels is None else min(_MET * max_labels, _MOST_MET)
    if options.costs.shape[1] == 1 and not slack:
        cap = None if caps is None else float(caps[0])
        return _one_cost_frontier(
            options, join_labels(options, to_go[:, 0], cap=cap, max_labels=max_labels, most_met=may_meet)
        )
    pool = LabelPool(options)
    is_dead: list[bool] = np.isinf(to_go[:, 0]).tolist()
    for state, first, last in options_by_end(options):
        if is_dead[state]:
            continue
        costs, importances, option, parent = pool.meet(first, last, may_meet)
        may_meet -= len(importances)
        if caps is not None and len(costs):
            fits = np.flatnonzero((costs + to_go[state] <= caps).all(axis=1))
            costs, importances, option, parent = costs[fits], importances[fits], option[fits], parent[fits]
        kept = pareto_indices(costs, importances, slack)
        if max_labels is not None and len(kept) > max_labels:
            raise TooManyLabels
        pool.add(state, costs.take(kept, axis=0), importances.take(kept), option.take(kept), parent.take(kept))
    return ended(pool)


def options_by_end(options: ChainOptions) -> list[tuple[int, int, int]]:
    """Return (to state, first option, last option + 1) by rising state."""
    if not len(options.to_state):
        return []
    edges = [0, *(np.flatnonzero(np.diff(options.to_state)) + 1).tolist(), len(options.to_state)]
    states = options.to_state[edges[:-1]].tolist()
    return list(zip(states, edges[:-1], edges[1:], strict=True))


def ended(pool: LabelPool) -> ChainFrontier | None:
    """Return the non-dominated labels at the chain's end, or None if there are none."""
    labels = np.concatenate([pool.labels_of(state) for state in pool.options.end_states])
    if not len(labels):
        return None
    costs, importances = pool.costs[labels], pool.importances[labels]
    kept = pareto_indices(costs, importances)
    return ChainFrontier(
        options=pool.options, costs=costs[kept], importances=importances[kept], _labels=labels[kept], _pool=pool
    )


def _one_cost_frontier(options: ChainOptions, found: OneCostLabels) -> ChainFrontier | None:
    labels = found.at_end()
    if not len(labels):
        return None
    kept = undominated_labels(labels)
    labels = labels.take(kept)
    # Taken from 0, so that no importance is a negative zero.
    return ChainFrontier(
        options=options, costs=labels.real[:, None], importances=0.0 - labels.imag, _labels=kept, _pool=found
    )
