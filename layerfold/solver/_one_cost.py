"""The exact frontier of one chain with one cost: each label one complex number, cost - i * importance.

Adding such numbers adds both parts; NumPy orders them by cost, then by falling importance. Half the calls of separate
arrays, and one sort instead of two: with the small frontiers of short chains, the calls are what takes the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerfold.solver._pareto import TIE, TooManyLabels
from layerfold.solver.options import ChainOptions

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Labels = NDArray[np.complex128]
Group = tuple[int, int, int]
"""(from state, first option, last option + 1) of the options between the same two states."""


@dataclass(frozen=True, kw_only=True)
class OneCostLabels:
    """Non-dominated labels of every state, and what they were chosen from.

    Labels met at a state are numbered group by group, option by option. What a label was made of is worked out from
    its number when somebody asks, which is for a few labels only.

    Attributes:
        of_state: labels by state, by rising cost.
        kept: numbers of these labels among all that met there; None where all were kept as they came.
        groups: options into each state.
        end_states: a number given to :meth:`path` counts through the labels of these.
    """

    of_state: list[Labels]
    kept: list[Indices | None]
    groups: list[list[Group]]
    end_states: tuple[int, int]

    def at_end(self) -> Labels:
        """Return the labels of the end states, one after the other."""
        return np.concatenate([self.of_state[state] for state in self.end_states])

    def path(self, label: int) -> list[int]:
        """Return the indices of the options that lead to a label of :meth:`at_end`."""
        state = self.end_states[0]
        if label >= len(self.of_state[state]):
            label -= len(self.of_state[state])
            state = self.end_states[1]
        found = []
        # State 1, the chain's start with its activation, is where every way begins.
        while state != 1:
            kept = self.kept[state]
            met = label if kept is None else int(kept[label])
            for start, first, last in self.groups[state]:
                size = len(self.of_state[start])
                if met < (last - first) * size:
                    found.append(first + met // size)
                    state, label = start, met % size
                    break
                met -= (last - first) * size
        return found[::-1]


def join_labels(
    options: ChainOptions, to_go: Floats, *, cap: float | None, max_labels: int | None, most_met: float
) -> OneCostLabels:
    """Return the labels of all states that lead to the chain's end.

    Args:
        options: options with one cost.
        to_go: [states] least cost to the chain's end.
        cap: upper limit of the cost; labels that cannot stay within it are dropped. None for no limit.
        max_labels: most labels per state.
        most_met: most labels that meet at all states together.

    Raises:
        TooManyLabels: one of the two limits is passed.
    """
    steps = _as_labels(options.costs[:, 0], options.importances)
    step_list: list[complex] = steps.tolist()
    groups = _groups(options)
    of_state = [np.empty(0, dtype=np.complex128)] * options.num_states
    of_state[1] = np.zeros(1, dtype=np.complex128)
    kept: list[Indices | None] = [None] * options.num_states
    for state, (into, least) in enumerate(zip(groups, to_go.tolist(), strict=True)):
        if not into or least == math.inf:
            continue
        most_met -= sum([(last - first) * len(of_state[start]) for start, first, last in into])
        if most_met < 0:
            raise TooManyLabels
        parts = [
            of_state[start] + step_list[first]
            if last == first + 1
            else np.add.outer(steps[first:last], of_state[start]).ravel()
            for start, first, last in into
        ]
        met = parts[0] if len(parts) == 1 else np.concatenate(parts)
        chosen: Indices | None = None
        if cap is not None:
            chosen = np.flatnonzero(met.real + least <= cap)
            met = met.take(chosen)
        # A single option moves a whole frontier, which stays one.
        if len(into) > 1 or into[0][2] > into[0][1] + 1:
            best = undominated_labels(met)
            chosen = best if chosen is None else chosen.take(best)
            met = met.take(best)
        if max_labels is not None and len(met) > max_labels:
            raise TooManyLabels
        of_state[state], kept[state] = met, chosen
    return OneCostLabels(of_state=of_state, kept=kept, groups=groups, end_states=options.end_states)


def undominated_labels(labels: Labels) -> Indices:
    """Return what :func:`layerfold.solver._pareto.pareto_indices` returns for labels of one cost."""
    order: Indices = labels.argsort(kind="stable")
    if len(order) < 2:
        return order
    losses = labels.imag.take(order)
    best = np.minimum.accumulate(losses)[:-1]
    margin = np.abs(best)
    margin *= TIE
    best -= margin
    keep = np.empty(len(order), dtype=bool)
    keep[0] = True
    np.less(losses[1:], best, out=keep[1:])
    return order[keep]


def _as_labels(costs: Floats, importances: Floats) -> Labels:
    labels = np.empty(len(costs), dtype=np.complex128)
    labels.real = costs
    np.negative(importances, out=labels.imag)
    return labels


def _groups(options: ChainOptions) -> list[list[Group]]:
    """Return the options into each state; they come sorted by (to state, from state)."""
    found: list[list[Group]] = [[] for _ in range(options.num_states)]
    if len(options.to_state):
        pair = options.to_state * options.num_states + options.from_state
        first = [0, *((pair[1:] != pair[:-1]).nonzero()[0] + 1).tolist()]
        starts, ends = options.from_state.take(first).tolist(), options.to_state.take(first).tolist()
        for start, end, here, following in zip(starts, ends, first, [*first[1:], len(pair)], strict=True):
            found[end].append((start, here, following))
    return found
