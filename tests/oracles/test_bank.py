"""The bank of solved problems, answered by the solver and by every oracle that can."""

from __future__ import annotations

import pytest

from layerfold.errors import InfeasibleBudgetError
from layerfold.solver import Limits, solve_frontier
from tests.oracles.bank import BANK, Solved
from tests.oracles.brute_force import best_within, enumerate_solutions
from tests.oracles.milp import best_importance
from tests.oracles.published import solve_discretised, transcribed_value

PLAIN = [
    solved
    for solved in BANK
    if solved.problem.limits == Limits()
    and solved.problem.risk is None
    and not solved.problem.alpha
    and len(solved.problem.latencies) == 1
    and len(solved.problem.latencies[0].chains) == 1
    and solved.problem.latencies[0].end_to_end_ms(0.0) == 0.0
]


def by_name(solved: Solved) -> str:
    return solved.name


@pytest.mark.parametrize("solved", BANK, ids=by_name)
def test_solver_finds_the_known_optimum(solved: Solved) -> None:
    problem = solved.problem

    def answer() -> object:
        frontier = solve_frontier(
            problem.latencies, problem.importance, problem.alpha, limits=problem.limits, risk=problem.risk
        )
        return frontier.at(budget_ms=problem.budgets_ms)

    if solved.importance is None:
        with pytest.raises(InfeasibleBudgetError):
            answer()
        return
    solution = answer()
    assert (solution.act_pos, solution.merge_pos) == (solved.act_pos, solved.merge_pos), solved.why
    assert solution.importance == pytest.approx(solved.importance, abs=1e-12)
    if problem.risk is None:
        assert solution.predicted_ms == pytest.approx(solved.latencies_ms[0], abs=1e-12)


@pytest.mark.parametrize("solved", BANK, ids=by_name)
def test_enumeration_finds_the_known_optimum(solved: Solved) -> None:
    best = best_within(enumerate_solutions(solved.problem), solved.problem.budgets_ms)
    if solved.importance is None:
        assert best is None
        return
    assert best is not None
    assert best.importance == pytest.approx(solved.importance, abs=1e-12)
    assert best.latencies_ms == pytest.approx(solved.latencies_ms, abs=1e-6)


@pytest.mark.parametrize("solved", [each for each in BANK if each.problem.risk is None], ids=by_name)
def test_milp_finds_the_known_optimum(solved: Solved) -> None:
    found = best_importance(solved.problem)
    if solved.importance is None:
        assert found is None
    else:
        assert found == pytest.approx(solved.importance, abs=1e-7)


@pytest.mark.parametrize("solved", PLAIN, ids=by_name)
def test_published_algorithm_is_never_below_the_optimum(solved: Solved) -> None:
    # It truncates latencies, so it may take what does not fit, but it misses nothing that does.
    table = solved.problem.latencies[0]
    times = {(entry.start, entry.end): entry.latency_ms for entry in table.entries}
    gains = {entry.key: entry.importance for entry in solved.problem.importance.entries}
    problem = (times, gains, table.chains[0][1], solved.problem.budgets_ms[0], 20)
    found = solve_discretised(*problem)
    if solved.importance is not None:
        assert found is not None
        assert found[0] >= solved.importance - 1e-12
    if found is not None:
        assert transcribed_value(*problem) == pytest.approx(found[0], abs=1e-12)


def test_published_algorithm_overruns_where_truncation_hides_the_cost() -> None:
    solved = next(each for each in BANK if each.name == "truncation would overrun")
    table = solved.problem.latencies[0]
    found = solve_discretised(
        {(entry.start, entry.end): entry.latency_ms for entry in table.entries},
        {entry.key: entry.importance for entry in solved.problem.importance.entries},
        3,
        2.9,
        1,
    )
    assert found is not None
    assert found[1] > 2.9
