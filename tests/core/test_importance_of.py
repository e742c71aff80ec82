"""The importance of a given solution is the sum that the solver found for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerfold.errors import MissingEntryError
from layerfold.solver import importance_of, solve_frontier
from layerfold.tables import ImportanceTable
from tests.oracles.instances import random_problem


@pytest.mark.parametrize("seed", range(60))
def test_sum_is_the_solvers_without_knowing_it(seed: int) -> None:
    problem = random_problem(seed, plain=True, most_layers=8)
    frontier = solve_frontier(problem.latencies[0], problem.importance)
    chains = problem.latencies[0].chains
    for solution in frontier:
        ends = frozenset(solution.act_pos) & {end for _, end in chains}
        unknown = replace(solution, importance=None, table_hashes={})
        assert importance_of(unknown, problem.importance, chains, ends) == pytest.approx(solution.importance)
        marked = replace(solution, importance=123.0)
        assert importance_of(marked, problem.importance, chains, ends) == 123.0


def test_missing_way_is_named() -> None:
    problem = random_problem(1, plain=True, most_layers=8)
    frontier = solve_frontier(problem.latencies[0], problem.importance)
    solution = replace(frontier[len(frontier) - 1], importance=None, table_hashes={})
    chains = problem.latencies[0].chains
    last = max(end for _, end in chains)
    table = ImportanceTable([entry for entry in problem.importance.entries if entry.end != last], source="imp.csv")
    with pytest.raises(MissingEntryError, match=rf"^imp.csv: nothing leads from position \d+ to {last} without"):
        importance_of(solution, table, chains, frozenset())
