"""The published algorithm (Kim et al. 2023, section 4 and appendix B), written from the paper's description.

Time is cut into steps of 1/precision ms and every latency is truncated to whole steps; a table over (position,
activation, steps left) is filled from the chain's start. Plain Python, as published; used to compare with only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Key = tuple[int, int, int, int]


def optimal_latency(
    latency_ms: Mapping[tuple[int, int], float], num_layers: int
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], tuple[int, ...]]]:
    """Return T_opt and its breaks for every pair of positions."""
    best: dict[tuple[int, int], float] = {}
    breaks: dict[tuple[int, int], tuple[int, ...]] = {}
    for start in range(num_layers):
        best[start, start], breaks[start, start] = 0.0, (start,)
        for end in range(start + 1, num_layers + 1):
            for last in range(start, end):
                if (last, end) in latency_ms and (start, last) in best:
                    total = best[start, last] + latency_ms[last, end]
                    if total < best.get((start, end), math.inf):
                        best[start, end], breaks[start, end] = total, (*breaks[start, last], end)
    return best, breaks


def extended_importance(importance: Mapping[Key, float], num_layers: int) -> dict[Key, float]:
    """Return I_ext for every (start, end, start_act, end_act) that has one."""
    best = dict(importance)
    for end in range(1, num_layers + 1):
        for start in range(end - 1, -1, -1):
            for a in (0, 1):
                for b in (0, 1):
                    for k in range(start + 1, end):
                        if (start, k, a, 0) in best and (k, end, 0, b) in importance:
                            total = best[start, k, a, 0] + importance[k, end, 0, b]
                            if total > best.get((start, end, a, b), -math.inf):
                                best[start, end, a, b] = total
    return best


@dataclass(frozen=True)
class DiscretisedTable:
    """The filled table: value[position][activation][steps], and where each cell came from.

    One table for the largest budget answers every smaller one, which the published program does not make use of.
    """

    latency_ms: Mapping[tuple[int, int], float]
    precision: int
    cut: Mapping[tuple[int, int], int]
    breaks: Mapping[tuple[int, int], tuple[int, ...]]
    value: list[list[list[float]]]
    choice: Mapping[tuple[int, int, int], tuple[int, int]]

    def at(self, budget_ms: float) -> tuple[float, float, list[int], list[int]] | None:
        """Return (importance, true latency, act_pos, merge_pos) for one budget, or None where nothing fits.

        The true latency is the sum of the entries; it may exceed the budget, since every term was truncated.
        """
        position, steps = len(self.value) - 1, int(budget_ms * self.precision)
        state = max((0, 1), key=lambda b: self.value[position][b][steps])
        total = self.value[position][state][steps]
        if total == -math.inf:
            return None
        acts: list[int] = []
        merges: set[int] = set()
        while position > 0:
            if state:
                acts.append(position)
            start, before = self.choice[position, state, steps]
            merges.update(self.breaks[start, position][1:])
            steps -= self.cut[start, position]
            position, state = start, before
        ordered = sorted(merges)
        latency = math.fsum(self.latency_ms[pair] for pair in zip([0, *ordered[:-1]], ordered, strict=True))
        return total, latency, sorted(acts), ordered


def fill_table(
    latency_ms: Mapping[tuple[int, int], float],
    importance: Mapping[Key, float],
    num_layers: int,
    largest_budget_ms: float,
    precision: int,
) -> DiscretisedTable:
    """Fill the table; lists and early exits make this as fast as plain Python goes."""
    best_ms, breaks = optimal_latency(latency_ms, num_layers)
    extended = extended_importance(importance, num_layers)
    steps = int(largest_budget_ms * precision)
    cut = {pair: int(total * precision) for pair, total in best_ms.items()}
    value = [[[-math.inf] * (steps + 1) for _ in (0, 1)] for _ in range(num_layers + 1)]
    choice: dict[tuple[int, int, int], tuple[int, int]] = {}
    value[0][1] = [0.0] * (steps + 1)
    for end in range(1, num_layers + 1):
        for b in (0, 1):
            row = value[end][b]
            for start in range(end):
                needed = cut.get((start, end))
                for a in (0, 1):
                    gain = extended.get((start, end, a, b))
                    if gain is None or needed is None:
                        continue
                    source = value[start][a]
                    for t in range(needed, steps + 1):
                        total = source[t - needed] + gain
                        if total > row[t]:
                            row[t] = total
                            choice[end, b, t] = (start, a)
    return DiscretisedTable(latency_ms, precision, cut, breaks, value, choice)


def solve_discretised(
    latency_ms: Mapping[tuple[int, int], float],
    importance: Mapping[Key, float],
    num_layers: int,
    budget_ms: float,
    precision: int,
) -> tuple[float, float, list[int], list[int]] | None:
    """Return what :meth:`DiscretisedTable.at` does, for one budget."""
    return fill_table(latency_ms, importance, num_layers, budget_ms, precision).at(budget_ms)


def transcribed_value(
    latency_ms: Mapping[tuple[int, int], float],
    importance: Mapping[Key, float],
    num_layers: int,
    budget_ms: float,
    precision: int,
) -> float:
    """Return the importance for one budget by the paper's recurrence written down as it stands, over NumPy arrays.

    Same numbers as :func:`solve_discretised`, in the manner (and at the speed) of a research program: one loop for
    each index, one array element at a time, sets A and S carried along in every cell.
    """
    import numpy as np

    best_ms, breaks = optimal_latency(latency_ms, num_layers)
    extended = extended_importance(importance, num_layers)
    steps = int(budget_ms * precision)
    cut = np.zeros((num_layers + 1, num_layers + 1), dtype=int)
    gain = np.full((num_layers + 1, num_layers + 1, 2, 2), -np.inf)
    for (start, end), total in best_ms.items():
        cut[start, end] = int(total * precision)
    for (start, end, a, b), amount in extended.items():
        gain[start, end, a, b] = amount
    value = np.full((num_layers + 1, steps + 1, 2), -np.inf)
    kept: dict[tuple[int, int, int], tuple[frozenset[int], frozenset[int]]] = {}
    for t in range(steps + 1):
        value[0, t, 1] = 0.0
        kept[0, t, 1] = (frozenset(), frozenset())
    for end in range(1, num_layers + 1):
        for t in range(steps + 1):
            for b in range(2):
                came_from = None
                for start in range(end):
                    for a in range(2):
                        before = t - cut[start, end]
                        if before >= 0 and value[start, before, a] + gain[start, end, a, b] > value[end, t, b]:
                            value[end, t, b] = value[start, before, a] + gain[start, end, a, b]
                            came_from = (start, int(before), a)
                if came_from is not None:
                    acts, merges = kept[came_from]
                    stops = breaks[came_from[0], end][1:]
                    kept[end, t, b] = (acts | {end} if b else acts, merges.union(stops))
    return float(value[num_layers, steps].max())
