"""The importance of a given solution is the sum that the solver found for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layerfold.errors import LayerfoldError, MissingEntryError
from layerfold.solver import Solution, entries_behind, importance_of, solve_frontier
from layerfold.tables import ImportanceEntry, ImportanceTable
from tests.oracles.drops import random_drop_problem
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
        rows = entries_behind(solution, problem.importance, chains, ends)
        assert sum(row.importance for row in rows) == pytest.approx(solution.importance)
        assert [(row.start, row.end) for row in rows] == sorted((row.start, row.end) for row in rows)
        assert {row.end for row in rows} >= set(solution.act_pos)
        marked = replace(solution, importance=123.0)
        assert importance_of(marked, problem.importance, chains, ends) == 123.0


def test_sum_is_the_solvers_where_layers_are_dropped() -> None:
    dropping = 0
    for seed in range(150):
        problem = random_drop_problem(seed, most_layers=6)
        chains = problem.latencies[0].chains
        try:
            frontier = solve_frontier(problem.latencies[0], problem.importance)
        except LayerfoldError:
            continue
        for solution in frontier:
            ends = frozenset(solution.act_pos) & {end for _, end in chains}
            unknown = replace(solution, importance=None, table_hashes={})
            found = importance_of(unknown, problem.importance, chains, ends)
            # The rows that the solver took lead through it; between the same stops others may be worth more.
            assert found >= (solution.importance or 0.0) - 1e-9, f"seed {seed}"
            rows = entries_behind(unknown, problem.importance, chains, ends)
            assert sum(row.importance for row in rows) == pytest.approx(found), f"seed {seed}"
            dropping += solution.kept_layers is not None
    assert dropping > 100


def test_rows_that_drop_other_layers_do_not_count() -> None:
    whole = [ImportanceEntry(start=m, end=m + 1, start_act=1, end_act=1, importance=0.0) for m in range(3)]
    rows = [
        *whole,
        ImportanceEntry(start=1, end=3, start_act=1, end_act=1, importance=-2.0),
        ImportanceEntry(start=1, end=3, start_act=1, end_act=1, importance=-5.0, merged="3x3", kept=(2,)),
        ImportanceEntry(start=1, end=3, start_act=1, end_act=1, importance=-1.0, merged="5x5", kept=(3,)),
    ]
    table, chains, ends = ImportanceTable(rows, source="imp.csv"), ((0, 3),), frozenset({3})
    ways = {None: -2.0, (1, 2): -5.0, (1, 3): -1.0}
    for kept, importance in ways.items():
        solution = Solution(act_pos=(1, 3), merge_pos=(1, 3), kept_layers=kept)
        assert importance_of(solution, table, chains, ends) == importance
    with pytest.raises(MissingEntryError, match="nothing leads from position 1 to 3"):
        importance_of(Solution(act_pos=(1, 3), merge_pos=(1, 3), kept_layers=(1,)), table, chains, ends)


def test_missing_way_is_named() -> None:
    problem = random_problem(1, plain=True, most_layers=8)
    frontier = solve_frontier(problem.latencies[0], problem.importance)
    solution = replace(frontier[len(frontier) - 1], importance=None, table_hashes={})
    chains = problem.latencies[0].chains
    last = max(end for _, end in chains)
    table = ImportanceTable([entry for entry in problem.importance.entries if entry.end != last], source="imp.csv")
    with pytest.raises(MissingEntryError, match=rf"^imp.csv: nothing leads from position \d+ to {last} without"):
        importance_of(solution, table, chains, frozenset())
