"""The published algorithm (Kim et al. 2023, section 4 and appendix B), written from the paper's description.

Time is cut into steps of 1/precision ms and every latency is truncated to whole steps; a table over (position,
activation, steps left) is filled from the chain's start. Plain Python, as published; used to compare with only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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


def solve_discretised(
    latency_ms: Mapping[tuple[int, int], float], importance: Mapping[Key, float], num_layers: int, budget_ms: float,
    precision: int,
) -> tuple[float, float, list[int], list[int]] | None:
    """Return (importance, true latency, act_pos, merge_pos) for one budget, or None where nothing fits.

    The true latency is the sum of the entries; it may exceed the budget, since every term was truncated.
    """
    best_ms, breaks = optimal_latency(latency_ms, num_layers)
    extended = extended_importance(importance, num_layers)
    steps = int(budget_ms * precision)
    cut = {pair: int(total * precision) for pair, total in best_ms.items()}
    value: list[list[list[float]]] = [
        [[-math.inf] * (steps + 1) for _ in (0, 1)] for _ in range(num_layers + 1)
    ]
    choice: dict[tuple[int, int, int], tuple[int, int]] = {}
    value[0][1] = [0.0] * (steps + 1)
    for end in range(1, num_layers + 1):
        for b in (0, 1):
            for t in range(steps + 1):
                for start in range(end):
                    needed = cut.get((start, end))
                    if needed is None or needed > t:
                        continue
                    for a in (0, 1):
                        gain = extended.get((start, end, a, b))
                        if gain is not None and value[start][a][t - needed] + gain > value[end][b][t]:
                            value[end][b][t] = value[start][a][t - needed] + gain
                            choice[end, b, t] = (start, a)
    state = max((0, 1), key=lambda b: value[num_layers][b][steps])
    total = value[num_layers][state][steps]
    if total == -math.inf:
        return None
    acts: list[int] = []
    merges: list[int] = []
    position, t = num_layers, steps
    while position > 0:
        if state:
            acts.append(position)
        start, before = choice[position, state, t]
        merges += breaks[start, position][1:]
        t -= cut[start, position]
        position, state = start, before
    merges = sorted(set(merges))
    return total, _sum_ms(latency_ms, merges), sorted(acts), merges


def _sum_ms(latency_ms: Mapping[tuple[int, int], float], merges: Sequence[int]) -> float:
    return math.fsum(latency_ms[pair] for pair in zip([0, *merges[:-1]], merges, strict=True))
