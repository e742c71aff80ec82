"""Adaptive refinement, with made-up cheap and expensive importances whose plans are known."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from layerfold.importance.adaptive import on_one_scale, refine
from layerfold.importance.requests import Request
from layerfold.options import Refinement
from layerfold.solver import solve_frontier
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable

LAYERS, LONGEST = 12, 4
SPANS = [(i, j) for i in range(LAYERS) for j in range(i + 1, min(i + LONGEST, LAYERS) + 1)]
MERGED = [Request(start=i, end=j, start_act=1, end_act=1) for i, j in SPANS if j - i > 1]


class Problem:
    """A chain on which merging always pays: expensive importances are drawn, cheap ones are these with an error."""

    def __init__(self, seed: int, error: float) -> None:
        rng = np.random.default_rng(seed)
        self.latency = LatencyTable(
            [
                LatencyEntry(start=i, end=j, latency_ms=float(rng.uniform(0.8, 1.2) * (1 + 0.2 * (j - i - 1))))
                for i, j in SPANS
            ]
        )
        truth = {each: -float(rng.exponential(2.0)) * (each.end - each.start - 1) for each in MERGED}
        self.truth = truth
        self.cheap = {each: 3.0 * value + error * float(rng.normal()) - 1.0 for each, value in truth.items()}
        self.asked: list[Request] = []

    def expensive(self, wanted: Sequence[Request]) -> dict[Request, float]:
        assert not set(wanted) & set(self.asked)
        self.asked += wanted
        return {each: self.truth[each] for each in wanted}

    def table(self, values: dict[Request, float]) -> ImportanceTable:
        return ImportanceTable(
            [
                ImportanceEntry(
                    start=i,
                    end=j,
                    start_act=1,
                    end_act=1,
                    importance=values.get(Request(start=i, end=j, start_act=1, end_act=1), 0.0),
                )
                for i, j in SPANS
            ]
        )

    def refine(self, most: int = 10_000, budgets_ms: Sequence[float] = ()):  # type: ignore[no-untyped-def]
        return refine(
            MERGED,
            self.cheap,
            self.expensive,
            self.table,
            self.latency,
            frozenset({LAYERS}),
            most=most,
            budgets_ms=budgets_ms,
        )

    def loss_at(self, values: dict[Request, float], budget_ms: float) -> float:
        """Return how much importance the plan by ``values`` lacks, by the truth, against the best plan."""
        true = self.table(self.truth)
        chosen = solve_frontier(self.latency, self.table(values)).at(budget_ms=budget_ms)
        best = solve_frontier(self.latency, true).at(budget_ms=budget_ms)
        stops = [0, *chosen.act_pos]
        got = sum(
            self.truth.get(Request(start=i, end=j, start_act=1, end_act=1), 0.0) for i, j in itertools.pairwise(stops)
        )
        return (best.importance or 0.0) - got


@pytest.mark.parametrize("seed", range(12))
def test_settled_plans_stand_on_refined_entries_and_lose_little(seed: int) -> None:
    problem = Problem(seed, error=2.0)
    singles_ms = sum(each.latency_ms for each in problem.latency.entries if each.end == each.start + 1)
    budgets = [0.6 * singles_ms, 0.8 * singles_ms]
    values, refined, spent = problem.refine(budgets_ms=budgets)
    assert spent.is_settled
    assert refined == frozenset(problem.asked)
    assert len(refined) == spent.refined < spent.entries == len(MERGED)
    assert all(values[each] == problem.truth[each] for each in refined)
    for budget_ms in budgets:
        found, cheap = problem.loss_at(values, budget_ms), problem.loss_at(problem.cheap, budget_ms)
        assert found <= cheap + 1e-9
        assert found < 2.0


@pytest.mark.parametrize("seed", [0, 2, 6, 7, 8, 9, 11])  # a fit through few pairs may have no error at all
def test_settled_plans_would_stand_if_every_other_entry_were_better_by_the_error_of_the_fit(seed: int) -> None:
    problem, budgets = Problem(seed, error=4.0), [5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    _, refined, spent = problem.refine(budgets_ms=budgets)
    assert spent.is_settled
    values, doubt = on_one_scale(MERGED, problem.cheap, {each: problem.truth[each] for each in refined})
    assert doubt > 0
    hopeful = {each: value + (doubt if each not in refined else 0.0) for each, value in values.items()}
    for budget_ms in budgets:
        assert set(behind(problem, hopeful, budget_ms)) <= refined


def behind(problem: Problem, values: dict[Request, float], budget_ms: float) -> list[Request]:
    """Return the merged segments of the best plan."""
    stops = [0, *solve_frontier(problem.latency, problem.table(values)).at(budget_ms=budget_ms).act_pos, LAYERS]
    chosen = [Request(start=i, end=j, start_act=1, end_act=1) for i, j in itertools.pairwise(dict.fromkeys(stops))]
    return [each for each in chosen if each in problem.truth]


def test_limit_is_kept_and_told() -> None:
    problem = Problem(1, error=3.0)
    _, refined, spent = problem.refine(most=3)
    assert len(refined) == len(problem.asked) == spent.refined == 3
    assert not spent.is_settled


@pytest.mark.parametrize("seed", range(8))
def test_what_most_plans_stand_on_is_refined_first(seed: int) -> None:
    problem = Problem(seed, error=2.0)
    budgets = [6.0, 7.0, 8.0, 9.0]
    plans = {tuple(behind(problem, problem.cheap, budget_ms)) for budget_ms in budgets}
    counts = Counter(itertools.chain.from_iterable(plans))
    _, refined, _ = problem.refine(most=1, budgets_ms=budgets)
    (first,) = refined
    assert counts[first] == max(counts.values())


def test_cheap_values_that_are_true_need_one_more_look_only() -> None:
    problem = Problem(2, error=0.0)
    values, _, spent = problem.refine()
    assert spent.is_settled
    order = sorted(MERGED, key=lambda each: problem.truth[each])
    assert np.all(np.diff([values[each] for each in order]) > 0)


@pytest.mark.parametrize("known", [0, 1, 2, 5, len(MERGED)])
def test_one_scale_keeps_refined_values_and_the_cheap_order(known: int) -> None:
    problem = Problem(3, error=1.0)
    refined = {each: problem.truth[each] for each in MERGED[:known]}
    values, doubt = on_one_scale(MERGED, problem.cheap, refined)
    assert all(values[each] == refined[each] for each in refined)
    if known < 3:
        assert doubt == 0.0
    elif known == len(MERGED):
        assert 0.0 < doubt < 1.0  # the cheap values err by 1 at a slope of 3
    others = sorted((each for each in MERGED if each not in refined), key=lambda each: problem.cheap[each])
    assert np.all(np.diff([values[each] for each in others]) >= 0)


def test_refinement_names_what_is_wrong() -> None:
    from layerfold.errors import UsageError

    with pytest.raises(UsageError, match=r"refine_with='finetun': must be one of .*finetune"):
        Refinement(refine_with="finetun")
    with pytest.raises(UsageError, match=r"most=0: must be at least 1"):
        Refinement(most=0)
