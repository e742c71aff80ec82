"""The answer by SciPy's MILP (HiGHS), from a formulation that has neither T_opt nor I_ext.

One flow goes through (position, activation) states along measured importances, another through positions along
measured segments; where the first passes a position with an activation, the second must stop. It may stop elsewhere
only in slots that may be empty (:mod:`tests.oracles.rules`).
"""

from __future__ import annotations

import math

import numpy as np

from tests.oracles.instances import Problem
from tests.oracles.rules import is_worth_it, may_be_bare, whole_costs


def best_importance(problem: Problem) -> float | None:
    """Return the highest importance within the budgets and limits, or None where nothing fits. No ``risk``."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    assert problem.risk is None, "a quantile of a sum is not linear"
    table, limits = problem.latencies[0], problem.limits
    singles = [entry.importance for entry in problem.importance.entries if entry.end == entry.start + 1]
    shift = problem.alpha * sum(singles) / len(singles) if problem.alpha else 0.0
    steps, segments = [], []
    bare, whole = may_be_bare(problem), whole_costs(problem)
    for chain in table.chains:
        inside = [e for e in problem.importance.entries if chain[0] <= e.start and e.end <= chain[1]]
        steps += [(chain, entry) for entry in inside]
        segments += [
            (chain, entry)
            for entry in table.entries
            if chain[0] <= entry.start
            and entry.end <= chain[1]
            and (segment := (entry.start, entry.end)) in whole
            and is_worth_it(problem, segment, whole[segment], whole)
        ]
    count = len(steps) + len(segments)
    rows: list[tuple[dict[int, float], float, float]] = []

    for chain in table.chains:
        start, end = chain
        for position in range(start, end):
            for state in (0, 1):
                row: dict[int, float] = {}
                for index, (where, e) in enumerate(steps):
                    if where == chain and (e.start, e.start_act) == (position, state):
                        row[index] = row.get(index, 0.0) + 1.0
                    if where == chain and (e.end, e.end_act) == (position, state):
                        row[index] = row.get(index, 0.0) - 1.0
                amount = 1.0 if (position, state) == (start, 1) else 0.0
                rows.append((row, amount, amount))
            row = {}
            for index, (where, e) in enumerate(segments, start=len(steps)):
                if where == chain and e.start == position:
                    row[index] = 1.0
                if where == chain and e.end == position:
                    row[index] = -1.0
            rows.append((row, float(position == start), float(position == start)))
        for position in range(start + 1, end):
            row = {}
            for index, (where, e) in enumerate(steps):
                if where == chain and (e.end, e.end_act) == (position, 1):
                    row[index] = 1.0
            for index, (where, e) in enumerate(segments, start=len(steps)):
                if where == chain and e.start < position < e.end:
                    row[index] = 1.0
            rows.append((row, -math.inf, 1.0))
            if position not in bare:
                row = {
                    index: 1.0
                    for index, (where, e) in enumerate(steps)
                    if where == chain and (e.end, e.end_act) == (position, 1)
                }
                for index, (where, e) in enumerate(segments, start=len(steps)):
                    if where == chain and e.end == position:
                        row[index] = -1.0
                rows.append((row, 0.0, math.inf))
        for position in range(start + 1, end + 1):
            row = {
                index: 1.0
                for index, (where, e) in enumerate(steps)
                if where == chain and (e.end, e.end_act) == (position, 1)
            }
            if position in limits.keep_activations:
                rows.append((row, 1.0, 1.0))
            if position in limits.drop_activations:
                rows.append((row, 0.0, 0.0))
    for device, budget_ms in zip(problem.latencies, problem.budgets_ms, strict=True):
        provenance = device.provenance
        rows.append(
            (
                {index: device.entry(e.start, e.end).latency_ms for index, (_, e) in enumerate(segments, len(steps))},
                -math.inf,
                (budget_ms - provenance.fixed_ms) / provenance.scale,
            )
        )
    for most, size in (
        (limits.max_params, lambda e: float(e.params)),
        (limits.max_macs, lambda e: float(e.macs)),
        (limits.max_merged, lambda e: float(e.end - e.start > 1)),
    ):
        if most is not None:
            rows.append(({index: size(e) for index, (_, e) in enumerate(segments, len(steps))}, -math.inf, float(most)))
    cells = [(number, column, value) for number, (row, _, _) in enumerate(rows) for column, value in row.items()]
    matrix = csr_array(
        ([value for *_, value in cells], ([number for number, *_ in cells], [column for _, column, _ in cells])),
        shape=(len(rows), count),
    )
    gains = np.zeros(count)
    gains[: len(steps)] = [entry.importance - shift for _, entry in steps]
    answer = milp(
        -gains,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix, [low for _, low, _ in rows], [high for *_, high in rows]),
        options={"mip_rel_gap": 0.0},
    )
    if answer.status == 2:
        return None
    assert answer.status == 0, answer.message
    return float(gains @ np.round(answer.x))
