"""The solver against enumeration and MILP on random problems.

`benchmarks/solver/solver_oracles.py` runs 10,000 of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from layerfold.errors import InfeasibleBudgetError, MissingEntryError
from layerfold.solver import Limits, Solution, solve_alternatives, solve_frontier
from layerfold.tables import LatencyTable
from tests.oracles.brute_force import enumerate_solutions
from tests.oracles.drops import compare_drops, random_drop_problem
from tests.oracles.instances import Problem, random_problem
from tests.oracles.published import fill_table
from tests.oracles.solver_check import check_solver


def test_solver_matches_brute_force() -> None:
    found = [check_solver(seed, with_milp=False) for seed in range(400)]
    assert [line for each in found for line in each.differences] == []
    assert not any(each.is_over for each in found)
    assert sum(each.is_feasible for each in found) > 200, "the problems must have answers to compare"


def test_solver_matches_milp() -> None:
    found = [check_solver(seed, most_layers=7) for seed in range(1000, 1080)]
    assert [line for each in found for line in each.differences] == []
    assert sum(each.with_milp for each in found) > 30


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_solver_matches_brute_force_on_the_smallest_networks(layers: int) -> None:
    found = [check_solver(seed, most_layers=layers) for seed in range(50)]
    assert [line for each in found for line in each.differences] == []


@pytest.mark.parametrize("epsilon", [1e-3, 0.05, 0.5])
def test_gap_is_proven_where_labels_are_thinned(epsilon: float) -> None:
    found = [check_solver(seed, with_milp=False, epsilon=epsilon) for seed in range(150)]
    assert [line for each in found for line in each.differences] == []
    assert not any(each.is_over for each in found)


def test_alternatives_are_the_best_that_differ() -> None:
    compared = 0
    for seed in range(60):
        problem = random_problem(seed, most_layers=5)
        within: dict[frozenset[int], float] = {}
        for each in enumerate_solutions(problem):
            if all(ms <= budget for ms, budget in zip(each.latencies_ms, problem.budgets_ms, strict=True)):
                within[each.act_pos] = max(within.get(each.act_pos, -1e9), each.importance)
        expected = sorted(within.values(), reverse=True)[:4]
        try:
            found = solve_alternatives(
                problem.latencies,
                problem.importance,
                count=4,
                budgets_ms=problem.budgets_ms,
                alpha=problem.alpha,
                limits=problem.limits,
                risk=problem.risk,
            )
        except (InfeasibleBudgetError, MissingEntryError):
            assert expected == []
            continue
        assert len({solution.act_pos for solution in found}) == len(found)
        assert [solution.importance for solution in found] == pytest.approx(expected, abs=1e-9), f"seed {seed}"
        compared += len(found) > 1
    assert compared > 15


def test_solver_is_at_least_as_good_as_the_published_algorithm_within_budget() -> None:
    over = 0
    for seed in range(60):
        problem = random_problem(seed, most_layers=7, plain=True)
        first = problem.latencies[0]
        table = LatencyTable(first.entries, provenance=replace(first.provenance, fixed_ms=0.0, scale=1.0))
        if len(table.chains) > 1:
            continue
        # It removes activations where merging stops all the same.
        frontier = solve_frontier(table, problem.importance, limits=Limits(allow_bare_stops=True))
        times = {(entry.start, entry.end): entry.latency_ms for entry in table.entries}
        gains = {entry.key: entry.importance for entry in problem.importance.entries}
        published = fill_table(times, gains, table.chains[0][1], 50.0, 2)
        for budget_ms in (2.0, 4.0, 7.5, 12.0):
            theirs = published.at(budget_ms)
            if theirs is None or theirs[1] > budget_ms:
                over += theirs is not None
                continue
            ours = frontier.at(budget_ms=budget_ms)
            assert ours.importance >= theirs[0] - 1e-9
            assert ours.predicted_ms <= budget_ms
    assert over > 0, "truncation never overran: the comparison is not the published one"


def test_solver_with_dropped_layers_matches_brute_force() -> None:
    """`benchmarks/solver/drops_oracle.py` runs more, and records them."""
    found = [compare_drops(seed) for seed in range(800)]
    assert [line for lines, _, _ in found for line in lines] == []
    assert sum(is_feasible for _, is_feasible, _ in found) > 600, "the problems must have answers to compare"
    assert sum(drops for *_, drops in found) > 280, "and answers that drop layers"


def test_solver_with_several_levers_matches_brute_force() -> None:
    found = [compare_drops(seed, others=("half", "int8")) for seed in range(400)]
    assert [line for lines, _, _ in found for line in lines] == []
    assert sum(changes for *_, changes in found) > 140, "answers must change layers"


def needlessly_removed(problem: Problem, solution: Solution) -> set[int]:
    """Return where merging stops and the original's activation is gone all the same."""
    entries = problem.importance.entries
    empty = {e.start for e in entries if not e.start_act} | {e.end for e in entries if not e.end_act}
    return set(solution.merge_pos) - set(solution.act_pos) - empty


@pytest.mark.parametrize(
    ("problem_of", "count"),
    [
        (random_problem, 400),
        (random_drop_problem, 200),
        (lambda seed: random_problem(seed, most_layers=14), 150),
        (lambda seed: random_problem(seed, most_layers=1), 20),
        (lambda seed: random_problem(seed, most_layers=2), 60),
    ],
    ids=["merging", "dropping", "longer", "one layer", "two layers"],
)
@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_no_solution_removes_an_activation_whose_removal_frees_no_merge(
    problem_of: Callable[[int], Problem], count: int, epsilon: float
) -> None:
    points = allowed = 0
    for seed in range(count):
        problem = problem_of(seed)
        try:
            frontier = problem.frontier(epsilon=epsilon)
        except (InfeasibleBudgetError, MissingEntryError):
            continue
        needless = [needlessly_removed(problem, solution) for solution in frontier]
        if problem.limits.allow_bare_stops:
            allowed += any(needless)
        else:
            points += len(needless)
            assert not any(needless), f"seed {seed}: {needless}"
    assert points > count / 4, "there must be something to check"
    assert allowed or count < 100, "the rule that is checked changes nothing"


def test_alternatives_remove_no_activation_needlessly() -> None:
    checked = 0
    for seed in range(80):
        problem = replace(random_problem(seed, most_layers=6), limits=Limits(), risk=None)
        try:
            found = solve_alternatives(problem.latencies, problem.importance, count=6, budgets_ms=problem.budgets_ms)
        except (InfeasibleBudgetError, MissingEntryError):
            continue
        assert not any(needlessly_removed(problem, solution) for solution in found), f"seed {seed}"
        checked += len(found)
    assert checked > 150
