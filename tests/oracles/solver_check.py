"""One random problem, solved by the solver and by the oracles: what differs."""

from __future__ import annotations

from dataclasses import dataclass

from layerfold.errors import InfeasibleBudgetError, MissingEntryError
from layerfold.solver import Solution
from tests.oracles.brute_force import Candidate, best_within, enumerate_solutions
from tests.oracles.instances import Problem, random_problem
from tests.oracles.milp import best_importance

TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class SolverCheck:
    """What one problem showed.

    Attributes:
        differences: one line each; empty where all agree.
        is_feasible: whether any solution exists.
        is_over: whether the answer exceeds a budget.
        with_milp: whether the MILP was asked too.
    """

    differences: tuple[str, ...]
    is_feasible: bool
    is_over: bool
    with_milp: bool


def check_solver(seed: int, *, most_layers: int = 6, with_milp: bool = True, epsilon: float = 0.0) -> SolverCheck:
    """Solve ``random_problem(seed)`` in three ways."""
    problem = random_problem(seed, most_layers=most_layers)
    candidates = enumerate_solutions(problem)
    expected = best_within(candidates, problem.budgets_ms)
    found, lines = None, []
    frontier = None
    try:
        frontier = problem.frontier(epsilon=epsilon)
        found = frontier.at(budget_ms=problem.budgets_ms)
    except (InfeasibleBudgetError, MissingEntryError):
        pass
    with_milp = with_milp and problem.risk is None
    if with_milp:
        proven = best_importance(problem)
        if (proven is None) != (expected is None) or (
            proven is not None and expected is not None and abs(proven - expected.importance) > 1e-6
        ):
            lines.append(f"seed {seed}: the oracles differ, MILP {proven}, enumeration {expected}")
    if (found is None) != (expected is None):
        lines.append(f"seed {seed}: solver {found}, enumeration {expected}")
    is_over = False
    if found is not None and expected is not None:
        gap = found.gap or 0.0
        if not expected.importance - gap - TOLERANCE <= (found.importance or 0.0) <= expected.importance + TOLERANCE:
            lines.append(f"seed {seed}: importance {found.importance} (gap {gap}), enumeration {expected.importance}")
        if not gap and (found.predicted_ms or 0.0) > expected.latencies_ms[0] + TOLERANCE and problem.risk is None:
            lines.append(f"seed {seed}: {found.predicted_ms} ms, as good in {expected.latencies_ms[0]} ms")
        is_over, wrong = _checked(seed, problem, candidates, found)
        lines += wrong
    if frontier is not None and not epsilon:
        lines += _frontier_differences(seed, candidates, frontier.latencies_ms.tolist(), frontier.importances.tolist())
    return SolverCheck(differences=tuple(lines), is_feasible=expected is not None, is_over=is_over, with_milp=with_milp)


def _checked(seed: int, problem: Problem, candidates: list[Candidate], found: Solution) -> tuple[bool, list[str]]:
    """Check that the answer is one of the enumerated solutions, and that its latencies keep to the budgets."""
    same = [
        each
        for each in candidates
        if each.act_pos == frozenset(found.act_pos) and each.merge_pos == frozenset(found.merge_pos)
    ]
    if not same:
        return False, [f"seed {seed}: A={found.act_pos}, S={found.merge_pos} is no solution of the enumeration"]
    over = any(latency > budget for latency, budget in zip(same[0].latencies_ms, problem.budgets_ms, strict=True))
    lines = [f"seed {seed}: over budget, {same[0].latencies_ms} > {problem.budgets_ms}"] if over else []
    if abs(same[0].importance - (found.importance or 0.0)) > TOLERANCE:
        lines.append(f"seed {seed}: says importance {found.importance}, its A has {same[0].importance}")
    predicted = problem.latencies[0].predict_ms(found)
    if abs(predicted - (found.predicted_ms or 0.0)) > TOLERANCE:
        lines.append(f"seed {seed}: says {found.predicted_ms} ms, the table says {predicted}")
    return over, lines


def _frontier_differences(
    seed: int, candidates: list[Candidate], latencies_ms: list[list[float]], importances: list[float]
) -> list[str]:
    """Compare all points with the non-dominated candidates."""
    expected: list[tuple[float, ...]] = []
    for each in sorted(candidates, key=lambda each: (each.latencies_ms, -each.importance)):
        point = (*each.latencies_ms, -each.importance)
        if not any(all(x <= y + TOLERANCE for x, y in zip(other, point, strict=True)) for other in expected):
            expected.append(point)
    found = [(*latency, -importance) for latency, importance in zip(latencies_ms, importances, strict=True)]

    def covered(point: tuple[float, ...], others: list[tuple[float, ...]]) -> bool:
        return any(all(x <= y + TOLERANCE for x, y in zip(other, point, strict=True)) for other in others)

    if all(covered(point, found) for point in expected) and all(covered(point, expected) for point in found):
        return []
    return [f"seed {seed}: frontier of {len(found)} points, enumeration has {len(expected)}"]
