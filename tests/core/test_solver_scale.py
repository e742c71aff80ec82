"""Frontiers too large to list: what is proven about their answers holds, and time and memory stay bounded."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from layerfold.errors import UsageError
from layerfold.solver import Limits, Option, StretchPlan, solve_frontier
from layerfold.solver._hull import make_hull
from layerfold.solver._pareto import pareto_indices
from layerfold.solver.labels import least_to_go
from layerfold.solver.options import ChainOptions, chain_options
from layerfold.solver.search import Found, solve_options
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance


def random_chain(layers: int, candidates: int, options: int, seed: int, columns: int = 1) -> ChainOptions:
    rng = np.random.default_rng(seed)
    start = np.repeat(np.arange(layers), candidates * options)
    end = start + np.tile(np.repeat(np.arange(1, candidates + 1), options), layers)
    start, end = start[end <= layers], end[end <= layers]
    length = end - start
    return chain_options(
        chain=(0, layers),
        from_state=2 * start + 1,
        to_state=2 * end + 1,
        costs=rng.uniform(0.3, 1.0, (len(start), columns)) * length[:, None] ** 0.6,
        importances=-rng.gamma(2.0, 0.2, len(start)) * length**1.1,
        plan_of=lambda index: StretchPlan(breaks=()),
    )


def solved(chains: list[ChainOptions], **settings: float) -> Found:
    found = solve_options(chains, [least_to_go(each) for each in chains], **settings)  # type: ignore[arg-type]
    assert found is not None
    return found


def answers(found: Found, costs: np.ndarray) -> np.ndarray:
    return found.summed.importances[np.searchsorted(found.summed.costs[:, 0], costs, side="right") - 1]


@pytest.mark.parametrize("seed", range(4))
def test_hull_lies_above_every_point_of_the_exact_frontier(seed: int) -> None:
    chains = [random_chain(12, 4, 3, seed), random_chain(8, 3, 2, seed + 100)]
    found = solved(chains)
    hull = make_hull(chains)
    above = hull.bound(found.summed.costs[:, 0]) - found.summed.importances
    assert above.min() > -1e-9
    assert above.min() < 1e-6, "a hull touches the frontier at its vertices"


@pytest.mark.parametrize("epsilon", [1e-4, 1e-2])
def test_thinned_answers_are_within_their_proven_gap(epsilon: float) -> None:
    chain = random_chain(40, 6, 4, 7)
    exact, near = solved([chain], max_labels=10**6), solved([chain], epsilon=epsilon)
    assert exact.hull is None
    assert near.hull is not None
    budgets = np.linspace(exact.summed.costs[0, 0], exact.summed.costs[-1, 0], 500)
    truth, reached, bound = answers(exact, budgets), answers(near, budgets), near.hull.bound(budgets)
    assert (truth >= reached - 1e-9).all()
    assert (truth <= bound + 1e-9).all()


def test_a_long_chain_is_proven_within_a_few_ten_thousandths_at_most_budgets() -> None:
    chain = random_chain(300, 5, 10, 3)
    found = solved([chain], epsilon=1e-4)
    assert found.hull is not None
    budgets = np.linspace(found.summed.costs[0, 0], found.summed.costs[-1, 0], 1000)
    gaps = (found.hull.bound(budgets) - answers(found, budgets)) / found.hull.span
    assert np.median(gaps) < 3e-4
    assert np.quantile(gaps, 0.9) < 2e-3


def test_a_thousand_layers_take_less_than_a_gigabyte() -> None:
    chain = random_chain(1000, 10, 10, 0)
    tracemalloc.start()
    try:
        found = solved([chain], epsilon=1e-4)
        assert tracemalloc.get_traced_memory()[1] < 1e9
    finally:
        tracemalloc.stop()
    assert len(found.summed.importances) > 500


def test_a_frontier_that_outgrows_the_limit_is_thinned_and_says_so() -> None:
    chain = random_chain(40, 4, 3, 1)
    assert solved([chain], max_labels=10**6).hull is None
    assert solved([chain], max_labels=16).hull is not None


@pytest.mark.parametrize("columns", [2, 3])
def test_thinning_several_costs_keeps_its_promise(columns: int) -> None:
    chain = random_chain(9, 3, 2, 5, columns)
    exact, near = solved([chain]), solved([chain], epsilon=0.02)
    assert exact.gap == 0.0
    assert near.gap > 0.0
    assert len(near.summed.importances) < len(exact.summed.importances)
    for costs, importance in zip(exact.summed.costs, exact.summed.importances, strict=True):
        fits = (near.summed.costs <= costs + 1e-9).all(axis=1)
        assert near.summed.importances[fits].max() >= importance - near.gap - 1e-9


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_pareto_filter_matches_its_definition(columns: int) -> None:
    rng = np.random.default_rng(columns)
    for size in (1, 2, 7, 300, 700):
        costs = rng.integers(0, 6, (size, columns)).astype(float)
        importances = rng.integers(0, 6, size).astype(float)
        kept = pareto_indices(costs, importances)
        points = {(*costs[index], -importances[index]) for index in range(size)}
        best = {
            point
            for point in points
            if not any(other != point and all(x <= y for x, y in zip(other, point, strict=True)) for other in points)
        }
        assert sorted((*costs[index], -importances[index]) for index in kept) == sorted(best)
        assert (np.diff(costs[kept, 0]) >= 0).all()


def test_frontier_of_thinned_tables_reports_the_gap_with_each_answer() -> None:
    rng = np.random.default_rng(0)
    segments = [(i, j) for i in range(60) for j in range(i + 1, min(i + 6, 60) + 1)]
    latency = LatencyTable(
        [LatencyEntry(start=i, end=j, latency_ms=float(rng.uniform(0.3, 1.0) * (j - i) ** 0.6)) for i, j in segments]
    )
    importance = ImportanceTable(
        [
            ImportanceEntry(
                start=i, end=j, start_act=1, end_act=1, importance=float(-rng.gamma(2.0, 0.2) * (j - i) ** 1.1)
            )
            for i, j in segments
        ]
    )
    exact, near = solve_frontier(latency, importance), solve_frontier(latency, importance, epsilon=1e-3)
    assert not exact.gaps.any()
    assert near.gaps.any()
    for budget_ms in np.linspace(exact.least_ms * 1.01, exact.original_ms, 60):
        best, found = exact.at(budget_ms=budget_ms), near.at(budget_ms=budget_ms)
        assert found.status in ("within", "optimal")
        assert found.predicted_ms <= budget_ms
        assert best.importance - found.gap - 1e-9 <= found.importance <= best.importance + 1e-9


def test_options_of_any_kind_are_solved_alike() -> None:
    # Pruning beside merging: the same stretch twice, told apart by kernel, with no special case in the solver.
    options = [
        Option(start=0, start_act=1, end=1, end_act=1, latency_ms=2.0, importance=0.0, plan=StretchPlan(breaks=(0, 1))),
        Option(
            start=0,
            start_act=1,
            end=1,
            end_act=1,
            latency_ms=1.0,
            importance=-1.0,
            plan=StretchPlan(breaks=(0, 1), kernels=("1x1",)),
        ),
        Option(start=1, start_act=1, end=2, end_act=1, latency_ms=1.0, importance=0.0, plan=StretchPlan(breaks=(1, 2))),
    ]
    chain = chain_options(
        chain=(0, 2),
        from_state=np.array([2 * each.start + each.start_act for each in options], dtype=np.int64),
        to_state=np.array([2 * each.end + each.end_act for each in options], dtype=np.int64),
        costs=np.array([[each.latency_ms] for each in options]),
        importances=np.array([each.importance for each in options]),
        plan_of=lambda index: options[index].plan,
    )
    summed = solved([chain]).summed
    assert summed.costs[:, 0].tolist() == [2.0, 3.0]
    assert [chain.option(each).plan.kernels for each in summed.chains[0].path(0)] == [("1x1",), ()]


@pytest.mark.parametrize(
    ("setting", "value"), [("epsilon", -0.1), ("epsilon", 2.0), ("epsilon", float("nan")), ("max_labels", 3)]
)
def test_settings_out_of_range_are_refused(setting: str, value: float) -> None:
    latency = LatencyTable([LatencyEntry(start=0, end=1, latency_ms=1.0)])
    importance = ImportanceTable([ImportanceEntry(start=0, end=1, start_act=1, end_act=1, importance=0.0)])
    with pytest.raises(UsageError, match=setting):
        solve_frontier(latency, importance, **{setting: value})  # type: ignore[arg-type]


def test_limits_refuse_contradictions() -> None:
    with pytest.raises(UsageError, match="both kept and dropped"):
        Limits(keep_activations=frozenset([1]), drop_activations=frozenset([1]))
    with pytest.raises(UsageError, match="max_params"):
        Limits(max_params=-1)


def test_many_chains_add_up_exactly_or_say_that_they_do_not() -> None:
    rng = np.random.default_rng(2)
    chains = [(3 * index, 3 * index + 3) for index in range(24)]
    segments = [(i, j) for start, end in chains for i in range(start, end) for j in range(i + 1, end + 1)]
    latency = LatencyTable(
        [LatencyEntry(start=i, end=j, latency_ms=float(rng.uniform(0.2, 1.0) * (j - i) ** 0.5)) for i, j in segments],
        provenance=Provenance(chains=tuple(chains)),
    )
    importance = ImportanceTable(
        [
            ImportanceEntry(
                start=i, end=j, start_act=1, end_act=1, importance=float(-rng.gamma(2.0, 0.1) * (j - i - 1))
            )
            for i, j in segments
        ]
    )
    exact, thinned = solve_frontier(latency, importance), solve_frontier(latency, importance, max_labels=16)
    assert not exact.gaps.any()
    assert len(exact) > 5 * 16, "the sum must outgrow the limit of the second solve"
    assert thinned.gaps.any()
    for budget_ms in np.linspace(exact.least_ms * 1.01, exact.original_ms, 25):
        best, found = exact.at(budget_ms=budget_ms), thinned.at(budget_ms=budget_ms)
        assert found.predicted_ms <= budget_ms
        assert best.importance - found.gap - 1e-9 <= found.importance <= best.importance + 1e-9


def test_one_budget_is_searched_until_the_promised_gap_is_proven() -> None:
    rng = np.random.default_rng(4)
    segments = [(i, j) for i in range(120) for j in range(i + 1, min(i + 8, 120) + 1)]
    latency = LatencyTable(
        [LatencyEntry(start=i, end=j, latency_ms=float(rng.uniform(0.3, 1.0) * (j - i) ** 0.6)) for i, j in segments]
    )
    importance = ImportanceTable(
        [
            ImportanceEntry(
                start=i, end=j, start_act=1, end_act=1, importance=float(-rng.gamma(2.0, 0.2) * (j - i) ** 1.1)
            )
            for i, j in segments
        ]
    )
    near, exact = solve_frontier(latency, importance, epsilon=1e-4), solve_frontier(latency, importance)
    span = float(np.ptp(exact.importances))
    proven = refined = 0
    for budget_ms in np.linspace(exact.least_ms * 1.02, exact.original_ms, 60):
        best, found = exact.at(budget_ms=budget_ms), near.at(budget_ms=budget_ms)
        assert found.predicted_ms <= budget_ms
        assert best.importance - found.gap - 1e-9 <= found.importance <= best.importance + 1e-9
        if found.status == "optimal":
            assert found.importance == pytest.approx(best.importance, abs=1e-9)
        proven += found.gap <= 1.01e-4 * span
        refined += found.importance > near.importances[near.index_at(budget_ms=budget_ms)] + 1e-9
    assert proven == 60, "every budget of a network of this size is answered within a ten-thousandth"
    assert refined > 0, "the thinned frontier already had every answer: nothing was tested"
