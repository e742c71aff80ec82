"""From the solver's plan to better wholes: what is promised of every walk, checked on random problems."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection
from functools import partial

import pytest

import layerfold as lf
from layerfold.solver import Solution, climb_plans
from layerfold.tables.kernel import SegmentKey

BUDGET_MS = 0.75
"""A layer takes 1 ms, so most budgets ask for merges: per layer."""


class Problem:
    """A chain of layers, every segment of it an option, and scores of plans that no sum of importances gives."""

    def __init__(self, layers: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.layers = layers
        pairs = [(start, end) for end in range(1, layers + 1) for start in range(end)]
        merged_ms = {(start, end): self.rng.uniform(0.6, 1.2) * (end - start) ** 0.5 for start, end in pairs}
        self.entries = [
            lf.LatencyEntry(start=s, end=e, latency_ms=1.0 if e == s + 1 else merged_ms[s, e]) for s, e in pairs
        ]
        self.importance = lf.ImportanceTable(
            [
                lf.ImportanceEntry(
                    start=s,
                    end=e,
                    start_act=1,
                    end_act=1,
                    importance=0.0 if e == s + 1 else -self.rng.uniform(0.5, 1.5) * (e - s),
                )
                for s, e in pairs
            ]
        )
        self.scores: dict[tuple[int, ...], float] = {}
        self.asked: list[tuple[int, ...]] = []

    def solve_without(self, left_out: Collection[SegmentKey]) -> Solution | None:
        kept = [entry for entry in self.entries if entry.key not in left_out]
        table = lf.LatencyTable(kept, provenance=lf.Provenance(kind="latency", chains=((0, self.layers),)))
        try:
            return lf.solve_frontier(table, self.importance).at(budget_ms=BUDGET_MS * self.layers)
        except lf.InfeasibleBudgetError:
            return None

    def score(self, solution: Solution) -> float:
        self.asked.append(solution.merge_pos)
        return self.scores.setdefault(solution.merge_pos, self.rng.gauss(0, 1))

    def neighbours(self, solution: Solution, left_out: frozenset[SegmentKey]) -> list[Solution]:
        pairs = itertools.pairwise((0, *solution.merge_pos))
        found = [self.solve_without(left_out | {pair}) for pair in pairs if pair[1] - pair[0] > 1]
        return [each for each in found if each is not None]


def problems(count: int) -> list[tuple[Problem, Solution]]:
    made = [Problem(1 + seed % 7, seed) for seed in range(count)]
    firsts = [(each, each.solve_without(())) for each in made]
    return [(problem, first) for problem, first in firsts if first is not None]


def test_scores_rise_and_the_last_plan_has_no_better_neighbour() -> None:
    lengths = []
    for problem, first in problems(300):
        taken = climb_plans(first, problem.score, problem.solve_without, most=1000)
        assert taken[0].solution == first
        scores = [each.score for each in taken]
        assert all(one < other for one, other in itertools.pairwise(scores))
        last = taken[-1]
        assert last.score == problem.scores[last.solution.merge_pos]
        around = problem.neighbours(last.solution, last.left_out)
        assert all(problem.scores[each.merge_pos] <= last.score for each in around)
        assert not last.left_out & {each.key for each in last.solution.segments}
        assert len(set(problem.asked)) == len(problem.asked), "each plan is scored once"
        lengths.append(len(taken))
    assert len(lengths) > 100
    assert max(lengths) >= 4


def test_plan_that_cannot_be_taken_is_not_and_asked_about_once() -> None:
    refusals = 0
    for problem, first in problems(200):
        refused: list[tuple[int, ...]] = []

        def take(solution: Solution, problem: Problem = problem, refused: list[tuple[int, ...]] = refused) -> bool:
            if problem.rng.random() < 0.5:
                refused.append(solution.merge_pos)
                return False
            return True

        taken = climb_plans(first, problem.score, problem.solve_without, take=take, most=1000)
        assert len(set(refused)) == len(refused)
        assert not {each.solution.merge_pos for each in taken} & set(refused)
        last = taken[-1]
        open_ones = [each for each in problem.neighbours(last.solution, last.left_out) if each.merge_pos not in refused]
        assert all(problem.scores[each.merge_pos] <= last.score for each in open_ones)
        refusals += len(refused)
    assert refusals > 20


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_plans_are_scored_than_asked_for(most: int) -> None:
    steps = []
    for problem, first in problems(60):
        advanced = itertools.count()
        taken = climb_plans(first, problem.score, problem.solve_without, most=most, advance=partial(next, advanced))
        assert 1 <= len(problem.asked) <= most
        assert next(advanced) == len(problem.asked)
        assert taken[-1].score == max(problem.scores[each.solution.merge_pos] for each in taken)
        steps.append(len(taken))
    assert (max(steps) > 1) == (most > 1)


def test_two_merges_that_spoil_each_other_are_found_out() -> None:
    """By sums (0, 2) and (2, 4) are best; together they lose 5 more, and one with single layers is the best whole."""
    latencies = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (3, 4): 1.0, (0, 2): 1.0, (2, 4): 1.0, (1, 4): 1.0}
    losses = {(0, 2): -1.0, (2, 4): -1.0, (1, 4): -2.5}
    chains = lf.Provenance(kind="latency", chains=((0, 4),))
    importance = lf.ImportanceTable(
        [
            lf.ImportanceEntry(start=s, end=e, start_act=1, end_act=1, importance=losses.get((s, e), 0.0))
            for s, e in latencies
        ]
    )

    def solve_without(left_out: Collection[SegmentKey]) -> Solution | None:
        table = lf.LatencyTable(
            [
                lf.LatencyEntry(start=s, end=e, latency_ms=ms)
                for (s, e), ms in latencies.items()
                if (s, e) not in left_out
            ],
            provenance=chains,
        )
        try:
            return lf.solve_frontier(table, importance).at(budget_ms=2.5)
        except lf.InfeasibleBudgetError:
            return None

    def score(solution: Solution) -> float:
        merges = set(itertools.pairwise((0, *solution.merge_pos)))
        return sum(losses.get(each, 0.0) for each in merges) - 5.0 * ({(0, 2), (2, 4)} <= merges)

    first = solve_without(())
    assert first is not None
    assert first.merge_pos == (2, 4)
    taken = climb_plans(first, score, solve_without, most=24)
    assert [each.solution.merge_pos for each in taken] == [(2, 4), (1, 4)]
    assert [each.score for each in taken] == [-7.0, -2.5]
