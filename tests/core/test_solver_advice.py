"""What an error about a budget names as reachable is reachable: asking for just that succeeds."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest

from layerfold.errors import InfeasibleBudgetError, MissingEntryError
from layerfold.solver import Frontier, Limits, solve_alternatives, solve_frontier
from layerfold.solver.rounding import round_to
from tests.oracles.instances import Problem, random_problem

NUMBER = r"([0-9.e+-]+)"


def problems(count: int = 150) -> Iterator[tuple[int, Problem, Frontier]]:
    for seed in range(count):
        problem = replace(random_problem(seed, most_layers=6), limits=Limits())
        try:
            frontier = solve_frontier(problem.latencies, problem.importance, problem.alpha, risk=problem.risk)
        except (InfeasibleBudgetError, MissingEntryError):
            continue
        yield seed, problem, frontier


def test_latency_that_an_infeasible_budget_names_is_reached() -> None:
    checked = 0
    for seed, _, frontier in problems():
        rng = random.Random(seed)
        least_ms = frontier.latencies_ms.min(axis=0).tolist()
        asked = [least * rng.choice([0.5, 0.9, 0.999, 1.0001, 1.2]) for least in least_ms]
        line = refusal(frontier, asked)
        if not line or "no plan meets the other budgets either" in line:
            assert not line or len(asked) > 1
            continue
        named = float(re.search(rf"is {NUMBER} ms", line)[1])  # type: ignore[index]
        tries = [[named]] if len(asked) == 1 else [[named, asked[1]], [asked[0], named]]
        assert not all(refusal(frontier, budgets) for budgets in tries), f"seed {seed}: {line}"
        checked += 1
    assert checked > 50


def refusal(frontier: Frontier, budgets: list[float]) -> str:
    try:
        frontier.at(budget_ms=budgets)
    except InfeasibleBudgetError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("factor", [1.0001, 1.001, 1.1, 3.0, 1e4])
def test_speedup_and_segment_budgets_that_are_named_are_reached(factor: float) -> None:
    checked = 0
    for seed, problem, frontier in problems(60):
        if len(problem.latencies) > 1:
            continue
        with pytest.raises(InfeasibleBudgetError) as caught:
            frontier.at(speedup=factor * frontier.original_ms / frontier.least_ms)
        speedup = float(re.search(rf"speedup {NUMBER}", str(caught.value))[1])  # type: ignore[index]
        assert frontier.at(speedup=speedup).merge_pos, f"seed {seed}: {caught.value}"
        provenance = problem.latencies[0].provenance
        least_sum = (frontier.least_ms - provenance.fixed_ms) / provenance.scale
        with pytest.raises(InfeasibleBudgetError) as caught:
            frontier.at(budget_ms=least_sum / factor, budget_of="segments")
        named = float(re.search(rf"is {NUMBER} ms", str(caught.value))[1])  # type: ignore[index]
        assert frontier.at(budget_ms=named, budget_of="segments").merge_pos, f"seed {seed}: {caught.value}"
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("budget_ms", [5e-324, 1e-320, 1e-300, 1e-12, 1e-3])
def test_tiny_budgets_are_answered_without_a_warning(budget_ms: float) -> None:
    for _, problem, frontier in problems(10):
        asked = [budget_ms] * len(problem.latencies)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert refusal(frontier, asked)
            with pytest.raises(InfeasibleBudgetError, match="the least reachable"):
                solve_frontier(problem.latencies, problem.importance, budgets_ms=asked)


def test_points_of_a_frontier_differ_by_more_than_rounding() -> None:
    for seed, problem, frontier in problems(100):
        if len(problem.latencies) == 1:
            latencies_ms = [solution.predicted_ms for solution in frontier] if problem.risk is None else []
            assert len(set(latencies_ms)) == len(latencies_ms), f"seed {seed}"


def test_budget_known_beforehand_that_is_named_is_reached() -> None:
    checked = 0
    for seed, problem, frontier in problems(80):
        if problem.risk is not None or len(problem.latencies) > 1:
            continue
        arguments = {"alpha": problem.alpha, "count": 1}
        with pytest.raises(InfeasibleBudgetError) as caught:
            solve_alternatives(
                problem.latencies,
                problem.importance,
                budgets_ms=[0.9 * frontier.least_ms],
                **arguments,  # type: ignore[arg-type]
            )
        named = float(re.search(rf"is {NUMBER} ms", str(caught.value))[1])  # type: ignore[index]
        found = solve_alternatives(problem.latencies, problem.importance, budgets_ms=[named], **arguments)  # type: ignore[arg-type]
        assert found, f"seed {seed}"
        checked += 1
    assert checked > 20


@pytest.mark.parametrize("digits", [1, 3, 6])
def test_rounded_numbers_stay_on_their_side_and_near(digits: int) -> None:
    rng = random.Random(digits)
    odd = [1.0, 2.2, 100.0, 999.9999999, 0.1 + 0.2, 1e-5, 123456789.0]
    for value in [*odd, *(10 ** rng.uniform(-12, 12) for _ in range(2000))]:
        up, down = float(round_to(value, up=True, digits=digits)), float(round_to(value, up=False, digits=digits))
        assert value <= up <= value * (1 + 10.0 ** (1 - digits) * 1.01)
        assert value * (1 - 10.0 ** (1 - digits) * 1.01) <= down <= value
    assert round_to(2.2, up=True, digits=6) == round_to(2.2, up=False) == "2.2"
