"""The exact frontier of one chain: labels at states, joined along options, the dominated ones dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerfold.solver._options import ChainOptions
from layerfold.solver._pareto import pareto_indices

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]


class TooManyLabels(Exception):
    """A frontier grew beyond its limit; caught where the limit was set."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of one state, by rising first cost.

    Attributes:
        costs: [labels, columns].
        importances: [labels].
        option: [labels] the option that led here.
        parent: [labels] the label that it started from, in the option's from state.
    """

    costs: Floats
    importances: Floats
    option: NDArray[np.int64]
    parent: NDArray[np.int64]


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
    _end: NDArray[np.int64]
    _labels: dict[int, Labels]

    def path(self, point: int) -> list[int]:
        """Return the indices of the options of one point, from the chain's start to its end."""
        state, label = int(self._end[point, 0]), int(self._end[point, 1])
        found = []
        while state != 1:
            at = self._labels[state]
            option, label = int(at.option[label]), int(at.parent[label])
            found.append(option)
            state = int(self.options.from_state[option])
        return found[::-1]


def least_to_go(options: ChainOptions) -> Floats:
    """Return [states, columns]: the least of each cost from a state to the chain's end; infinite where no way leads."""
    least = np.full((options.num_states, options.costs.shape[1]), math.inf)
    least[list(options.end_states)] = 0.0
    # Options come by rising to_state; going backward over positions, a state is final once all later ones are.
    by_start = np.argsort(options.from_state, kind="stable")[::-1]
    starts = options.from_state[by_start]
    bounds = np.flatnonzero(np.diff(starts)) + 1
    for group in np.split(by_start, bounds) if len(by_start) else []:
        state = int(options.from_state[group[0]])
        way = (options.costs[group] + least[options.to_state[group]]).min(axis=0)
        least[state] = np.minimum(least[state], way)
    return least


def solve_chain(
    options: ChainOptions, *, caps: Floats | None = None, slack: float = 0.0, max_labels: int | None = None
) -> ChainFrontier | None:
    """Return the frontier of one chain from (start, 1) to its end, or None if no way leads there.

    Args:
        options: the options.
        caps: [columns] upper limits; labels that cannot stay within them are dropped. None for no limit.
        slack: points of importance that may be lost at each state; 0 for the exact frontier.
        max_labels: most labels a state.

    Raises:
        TooManyLabels: a state has more than ``max_labels``, or 200 times as many came together there.
    """
    to_go = least_to_go(options)
    alive: NDArray[np.bool_] = np.asarray(np.isfinite(to_go).all(axis=1))
    columns = options.costs.shape[1]
    none = np.zeros(1, dtype=np.int64)
    labels: dict[int, Labels] = {
        1: Labels(costs=np.zeros((1, columns)), importances=np.zeros(1), option=none, parent=none)
    }
    edges = np.flatnonzero(np.diff(options.to_state) | np.diff(options.from_state)) + 1
    firsts = np.concatenate(([0], edges)).tolist()
    lasts = np.concatenate((edges, [len(options.to_state)])).tolist()
    ends = options.to_state[firsts].tolist() if len(options.to_state) else []
    starts = options.from_state[firsts].tolist() if ends else []
    group = 0
    while group < len(ends):
        state, stop = ends[group], group
        while stop < len(ends) and ends[stop] == state:
            stop += 1
        if alive[state]:
            reached = [
                (starts[each], firsts[each], lasts[each]) for each in range(group, stop) if starts[each] in labels
            ]
            if max_labels is not None:
                meeting = sum(len(labels[start].importances) * (last - first) for start, first, last in reached)
                if meeting > 200 * max_labels:
                    raise TooManyLabels
            joined = join(options, labels, reached, slack=slack)
            if joined is not None:
                if caps is not None:
                    joined = _within(joined, caps, to_go[state])
                if max_labels is not None and len(joined.importances) > max_labels:
                    raise TooManyLabels
                if len(joined.importances):
                    labels[state] = joined
        group = stop
    return ended(options, labels)


def join(
    options: ChainOptions, labels: dict[int, Labels], groups: list[tuple[int, int, int]],
    choose: Callable[[Floats, Floats], Indices] | None = None, *, slack: float = 0.0,
) -> Labels | None:
    """Put every option of ``groups`` (from state, first option, last option + 1) behind every label it starts from.

    ``choose`` may take (costs, importances) of all of them to the indices that are looked at any further.
    """
    if not groups:
        return None
    costs, importances, option, parent = [], [], [], []
    for start, first, last in groups:
        at = labels[start]
        size = len(at.importances)
        if last - first == 1:
            costs.append(at.costs + options.costs[first])
            importances.append(at.importances + options.importances[first])
        else:
            costs.append((at.costs[None] + options.costs[first:last, None]).reshape(-1, at.costs.shape[1]))
            importances.append((at.importances[None] + options.importances[first:last, None]).ravel())
        option.append((first, last, size))
        parent.append(size * (last - first))
    if len(costs) == 1:
        all_costs, all_importances = costs[0], importances[0]
    else:
        all_costs, all_importances = np.concatenate(costs), np.concatenate(importances)
    if choose is None:
        kept = pareto_indices(all_costs, all_importances, slack)
    else:
        chosen = choose(all_costs[:, 0], all_importances)
        kept = chosen[pareto_indices(all_costs[chosen], all_importances[chosen])]
    # Where a kept label came from follows from its place in the concatenation.
    offsets = np.concatenate(([0], np.cumsum(parent)))
    which = np.searchsorted(offsets, kept, side="right") - 1
    inner = kept - offsets[which]
    spans = np.array(option, dtype=np.int64)[which]
    return Labels(
        costs=all_costs[kept], importances=all_importances[kept], option=spans[:, 0] + inner // spans[:, 2],
        parent=inner % spans[:, 2],
    )


def _within(labels: Labels, caps: Floats, to_go: Floats) -> Labels:
    fits = np.asarray((labels.costs + to_go <= caps).all(axis=1))
    return labels if fits.all() else taken(labels, np.flatnonzero(fits))


def taken(labels: Labels, kept: Indices) -> Labels:
    return Labels(
        costs=labels.costs[kept], importances=labels.importances[kept], option=labels.option[kept],
        parent=labels.parent[kept],
    )


def ended(options: ChainOptions, labels: dict[int, Labels]) -> ChainFrontier | None:
    ends = [state for state in options.end_states if state in labels]
    if not ends:
        return None
    costs = np.concatenate([labels[state].costs for state in ends])
    importances = np.concatenate([labels[state].importances for state in ends])
    where = np.concatenate([
        np.column_stack((np.full(len(labels[state].importances), state), np.arange(len(labels[state].importances))))
        for state in ends
    ])
    kept = pareto_indices(costs, importances)
    return ChainFrontier(
        options=options, costs=costs[kept], importances=importances[kept], _end=where[kept], _labels=labels
    )
