"""The answer by enumeration: every choice of activations A and of merge positions S, straight from the definitions.

Shares no code with ``layerfold.solver``. No stage 1, no extension, no frontier: importances are summed along every
sequence of (position, activation) and latencies over every S that holds A and otherwise only slots that may be empty;
what is removed for nothing, by :mod:`tests.oracles.rules`, is no solution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from statistics import NormalDist

from tests.oracles.instances import Problem
from tests.oracles.rules import is_worth_it, may_be_bare, whole_costs

Positions = frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One solution of a problem: importance, latency a device (at risk, if any), further costs."""

    act_pos: Positions
    merge_pos: Positions
    importance: float
    latencies_ms: tuple[float, ...]


def enumerate_solutions(problem: Problem) -> list[Candidate]:
    """Return every solution that keeps to the limits, each with the best importance of its A."""
    table, limits = problem.latencies[0], problem.limits
    shift = 0.0
    if problem.alpha:
        singles = [e.importance for e in problem.importance.entries if e.end == e.start + 1]
        shift = problem.alpha * sum(singles) / len(singles)
    importances = {entry.key: entry.importance - shift for entry in problem.importance.entries}
    per_chain = [list(_chain_solutions(problem, chain, importances)) for chain in table.chains]
    deviations = 0.0 if problem.risk is None else NormalDist().inv_cdf(1.0 - problem.risk)
    found = []
    for parts in product(*per_chain):
        segments = [segment for part in parts for segment in part[2]]
        entries = [table.entry(*segment) for segment in segments]
        if limits.max_params is not None and sum(entry.params or 0 for entry in entries) > limits.max_params:
            continue
        if limits.max_macs is not None and sum(entry.macs or 0 for entry in entries) > limits.max_macs:
            continue
        if limits.max_merged is not None and sum(e.end - e.start > 1 for e in entries) > limits.max_merged:
            continue
        latencies = []
        for device in problem.latencies:
            alike = [device.entry(*segment) for segment in segments]
            sum_ms = math.fsum(entry.latency_ms for entry in alike)
            sum_ms += deviations * math.sqrt(math.fsum(entry.spread_ms**2 for entry in alike))
            latencies.append(device.provenance.fixed_ms + device.provenance.scale * sum_ms)
        found.append(
            Candidate(
                act_pos=frozenset().union(*(part[0] for part in parts)),
                merge_pos=frozenset(end for _, end in segments),
                importance=math.fsum(part[1] for part in parts),
                latencies_ms=tuple(latencies),
            )
        )
    return found


def best_within(candidates: list[Candidate], budgets_ms: tuple[float, ...]) -> Candidate | None:
    """Return the candidate of highest importance within all budgets, the fastest of those; None if there is none."""
    fits = [
        each
        for each in candidates
        if all(latency <= budget for latency, budget in zip(each.latencies_ms, budgets_ms, strict=True))
    ]
    return max(fits, key=lambda each: (each.importance, -each.latencies_ms[0]), default=None)


def _chain_solutions(
    problem: Problem, chain: tuple[int, int], importances: dict[tuple[int, int, int, int], float]
) -> Iterator[tuple[Positions, float, list[tuple[int, int]]]]:
    """Yield (A, importance, segments) of one chain."""
    start, end = chain
    inner = range(start + 1, end)
    limits = problem.limits
    bare, whole = may_be_bare(problem), whole_costs(problem)
    worth_it = {segment for segment, costs in whole.items() if is_worth_it(problem, segment, costs, whole)}
    best: dict[Positions, float] = {}
    for states in product((None, 0, 1), repeat=len(inner)):
        for end_state in (0, 1):
            stops = [
                (start, 1),
                *((p, s) for p, s in zip(inner, states, strict=True) if s is not None),
                (end, end_state),
            ]
            total = 0.0
            for (i, a), (j, b) in pairwise(stops):
                if (i, j, a, b) not in importances:
                    break
                total += importances[i, j, a, b]
            else:
                acts = frozenset(p for p, s in stops[1:] if s)
                best[acts] = max(best.get(acts, -math.inf), total)
    for acts, importance in best.items():
        if any(start < p <= end and p not in acts for p in limits.keep_activations):
            continue
        if acts & limits.drop_activations:
            continue
        free = [p for p in inner if p not in acts and p in bare]
        for count in range(len(free) + 1):
            for extra in combinations(free, count):
                stops = [start, *sorted((acts - {end}) | set(extra)), end]
                segments = list(pairwise(stops))
                if worth_it.issuperset(segments):
                    yield acts, importance, segments
