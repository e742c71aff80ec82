"""What users ask a frontier: a budget, a speed-up, the knee, files and a picture."""

from __future__ import annotations

import csv
import itertools
import json
import random
from pathlib import Path

import pytest

from layerfold.errors import InfeasibleBudgetError, ProvenanceMismatchError, TableError, UsageError
from layerfold.solver import Frontier, Limits, explain_point, solve_frontier
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance


def tables(layers: int = 12, seed: int = 0, **provenance: object) -> tuple[LatencyTable, ImportanceTable]:
    rng = random.Random(seed)
    segments = [(i, j) for i in range(layers) for j in range(i + 1, min(i + 4, layers) + 1)]
    latency = LatencyTable(
        [
            LatencyEntry(
                start=i,
                end=j,
                latency_ms=rng.uniform(0.5, 1.5) * (j - i) ** 0.5,
                spread_ms=0.05,
                signature=f"8x16x16 conv:o8,k{2 * (j - i) + 1}x3,s1x1,p1.1.1.1,d1x1,g1 act:relu",
            )
            for i, j in segments
        ],
        provenance=Provenance(kind="latency", model="net", network_hash="abc", **provenance),  # type: ignore[arg-type]
    )
    importance = ImportanceTable(
        [
            ImportanceEntry(start=i, end=j, start_act=1, end_act=1, importance=-rng.uniform(0.1, 1.0) * (j - i - 1))
            for i, j in segments
        ]
    )
    return latency, importance


@pytest.fixture(scope="module")
def frontier() -> Frontier:
    return solve_frontier(*tables())


def test_points_rise_in_latency_and_importance(frontier: Frontier) -> None:
    points = list(frontier)
    assert len(points) == len(frontier) > 5
    for before, after in itertools.pairwise(points):
        assert before.predicted_ms < after.predicted_ms
        assert before.importance < after.importance


def test_plan_never_exceeds_budget(frontier: Frontier) -> None:
    latency, _ = tables()
    for step in range(200):
        budget_ms = frontier.least_ms + step * 0.05
        solution = frontier.at(budget_ms=budget_ms)
        assert latency.predict_ms(solution) <= budget_ms
        assert solution.budget_ms == budget_ms


def test_every_point_is_reached_by_its_own_latency_as_budget(frontier: Frontier) -> None:
    for solution in frontier:
        assert frontier.at(budget_ms=solution.predicted_ms).merge_pos == solution.merge_pos


def test_solution_carries_what_it_was_made_from(frontier: Frontier) -> None:
    latency, importance = tables()
    solution = frontier.at(speedup=1.2)
    assert (solution.model, solution.network_hash) == ("net", "abc")
    assert solution.table_hashes == {"latency": latency.hash, "importance": importance.hash}
    assert solution.status == "optimal"
    assert solution.gap == 0.0
    assert sum(each.latency_ms for each in solution.segments) == pytest.approx(solution.predicted_ms)
    assert {each.plan for each in solution.segments if each.end == each.start + 1} <= {"keep"}


def test_speedup_is_a_budget_relative_to_the_original(frontier: Frontier) -> None:
    assert frontier.at(speedup=1.25).budget_ms == pytest.approx(frontier.original_ms / 1.25)


def test_unreachable_budget_names_the_least_latency(frontier: Frontier) -> None:
    with pytest.raises(InfeasibleBudgetError, match="least reachable latency") as caught:
        frontier.at(budget_ms=0.5 * frontier.least_ms)
    assert caught.value.least_ms == pytest.approx(frontier.least_ms)
    named = float(str(caught.value).split("least reachable latency is ")[1].split(" ms")[0])
    assert frontier.at(budget_ms=named).predicted_ms <= named, "the budget that the message names can be met"


def test_budget_counts_the_fixed_part_unless_it_is_of_segments() -> None:
    latency, importance = tables(fixed_ms=2.0, scale=1.5)
    calibrated = solve_frontier(latency, importance)
    bare = solve_frontier(*tables())
    for speedup in (1.1, 1.3):
        sum_ms = bare.original_ms / speedup
        of_segments = calibrated.at(budget_ms=sum_ms, budget_of="segments")
        assert of_segments.merge_pos == bare.at(budget_ms=sum_ms).merge_pos
        assert of_segments.predicted_ms <= 2.0 + 1.5 * sum_ms
        assert calibrated.at(budget_ms=2.0 + 1.5 * sum_ms).merge_pos == of_segments.merge_pos
    with pytest.raises(InfeasibleBudgetError) as caught:
        calibrated.at(budget_ms=0.1, budget_of="segments")
    assert caught.value.least_ms == pytest.approx(bare.least_ms)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"budget_ms": 1.0, "speedup": 1.0},
        {"budget_ms": 0.0},
        {"budget_ms": -1.0},
        {"budget_ms": float("nan")},
        {"budget_ms": True},
        {"speedup": 0},
        {"budget_ms": (1.0, 2.0)},
        {"budget_ms": 1.0, "budget_of": "all"},
    ],
)
def test_wrong_budgets_are_refused(frontier: Frontier, asked: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        frontier.at(**asked)  # type: ignore[arg-type]


def test_knee_is_above_the_line_between_the_ends(frontier: Frontier) -> None:
    knee = frontier.knee()
    first, last = frontier[0], frontier[-1]
    share = (knee.predicted_ms - first.predicted_ms) / (last.predicted_ms - first.predicted_ms)
    assert knee.importance > first.importance + share * (last.importance - first.importance)


def test_indexing_works_like_a_sequence(frontier: Frontier) -> None:
    assert frontier[-1] == frontier[len(frontier) - 1]
    assert frontier[1:3] == [frontier[1], frontier[2]]
    with pytest.raises(IndexError):
        frontier[len(frontier)]
    assert frontier.index_at(budget_ms=frontier[2].predicted_ms) == 2


def test_frontier_files_hold_every_point(frontier: Frontier, tmp_path: Path) -> None:
    frontier.write_csv(tmp_path / "frontier.csv")
    frontier.write_json(tmp_path / "frontier.json")
    with (tmp_path / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = json.loads((tmp_path / "frontier.json").read_text())["points"]
    assert len(rows) == len(points) == len(frontier)
    for row, point, solution in zip(rows, points, frontier, strict=True):
        assert float(row["latency_ms"]) == pytest.approx(solution.predicted_ms)
        assert row["merge_pos"] == ",".join(map(str, solution.merge_pos))
        assert tuple(point["act_pos"]) == solution.act_pos
        assert point["importance"] == pytest.approx(solution.importance)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_is_an_image(frontier: Frontier, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "plots" / f"frontier.{suffix}"
    frontier.plot(path, budget_ms=9.0, chosen=frontier.knee(), title="a network")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        assert b"<svg" in content


def test_risk_costs_latency_and_never_gains() -> None:
    latency, importance = tables()
    plain, careful = solve_frontier(latency, importance), solve_frontier(latency, importance, risk=0.05)
    for step in range(1, 40):
        budget_ms = careful.least_ms + 0.1 * step
        solution = careful.at(budget_ms=budget_ms)
        assert solution.costs["latency_at_risk_ms"] <= budget_ms * (1 + 1e-12)
        assert solution.costs["latency_at_risk_ms"] == pytest.approx(
            solution.predicted_ms + 1.6448536 * 0.05 * len(solution.segments) ** 0.5
        )
        assert solution.importance <= plain.at(budget_ms=budget_ms).importance + 1e-12


@pytest.mark.parametrize("risk", [0.0, 0.6, -0.1, float("nan"), True])
def test_risk_must_be_a_probability_up_to_a_half(risk: float) -> None:
    with pytest.raises(UsageError, match="risk"):
        solve_frontier(*tables(), risk=risk)


def test_kernel_limit_holds_in_every_point() -> None:
    latency, importance = tables()
    for solution in solve_frontier(latency, importance, limits=Limits(max_kernel=5)):
        assert all(each.end - each.start <= 2 for each in solution.segments)


def test_kernel_limit_needs_signatures() -> None:
    latency = LatencyTable(
        [
            LatencyEntry(start=0, end=1, latency_ms=1.0),
            LatencyEntry(start=1, end=2, latency_ms=1.0),
            LatencyEntry(start=0, end=2, latency_ms=1.0),
        ]
    )
    importance = ImportanceTable(
        [ImportanceEntry(start=i, end=j, start_act=1, end_act=1, importance=0.0) for i, j in ((0, 1), (1, 2), (0, 2))]
    )
    with pytest.raises(TableError, match="no signature that tells its kernel"):
        solve_frontier(latency, importance, limits=Limits(max_kernel=5))
    with pytest.raises(TableError, match="max_macs cannot be checked"):
        solve_frontier(latency, importance, limits=Limits(max_macs=5))


def test_caps_read_sizes_from_signatures() -> None:
    latency, importance = tables()
    free = solve_frontier(latency, importance)
    params = [sum(8 * 8 * 3 * (2 * (s.end - s.start) + 1) + 8 for s in solution.segments) for solution in free]
    cap = sorted(params)[len(params) // 2]
    capped = solve_frontier(latency, importance, limits=Limits(max_params=cap))
    for solution in capped:
        assert sum(8 * 8 * 3 * (2 * (s.end - s.start) + 1) + 8 for s in solution.segments) <= cap
        assert solution.costs["params"] <= cap


@pytest.mark.parametrize("limits", [Limits(keep_activations=frozenset([99])), Limits(never_merge=frozenset([0]))])
def test_fixed_decisions_must_lie_in_the_network(limits: Limits) -> None:
    with pytest.raises(UsageError, match="expected one in"):
        solve_frontier(*tables(), limits=limits)


def test_tables_of_different_networks_are_refused() -> None:
    latency, importance = tables()
    other = ImportanceTable(importance.entries, provenance=Provenance(network_hash="xyz"))
    with pytest.raises(ProvenanceMismatchError, match="network_hash differs"):
        solve_frontier(latency, other)


def test_second_device_must_have_the_same_segments() -> None:
    latency, importance = tables()
    other = LatencyTable(latency.entries[:-2] + latency.entries[-1:])
    with pytest.raises(TableError, match="which the other table has"):
        solve_frontier([latency, other], importance)


def test_several_devices_keep_every_budget() -> None:
    (first, importance), (second, _) = tables(10), tables(10, seed=9)
    frontier = solve_frontier([first, second], importance)
    alone = solve_frontier(first, importance)
    for share in (0.75, 0.9):
        budgets = (share * first.original_ms, share * second.original_ms)
        solution = frontier.at(budget_ms=budgets)
        assert first.predict_ms(solution) <= budgets[0]
        assert second.predict_ms(solution) <= budgets[1]
        assert solution.costs["latency_2_ms"] == pytest.approx(second.predict_ms(solution))
        assert solution.importance <= alone.at(budget_ms=budgets[0]).importance + 1e-12
        known = solve_frontier([first, second], importance, budgets_ms=budgets)
        assert known.at(budget_ms=budgets).importance == pytest.approx(solution.importance)
        assert len(known) <= len(frontier)


def test_budgets_known_beforehand_that_nothing_meets_are_an_error() -> None:
    latency, importance = tables()
    with pytest.raises(InfeasibleBudgetError, match="least reachable latency"):
        solve_frontier(latency, importance, budgets_ms=[0.1])


def test_explanation_accounts_for_the_whole_prediction(frontier: Frontier) -> None:
    for index in range(len(frontier)):
        explanation = explain_point(frontier, index)
        solution = explanation.solution
        assert sum(each.latency_ms for each in explanation.stretches) == pytest.approx(solution.predicted_ms)
        assert sum(each.importance for each in explanation.stretches) == pytest.approx(solution.importance)
        assert sum(each.original_ms for each in explanation.stretches) == pytest.approx(frontier.original_ms)
        if index + 1 < len(frontier):
            assert explanation.next_solution == frontier[index + 1]
            assert "points: " in explanation.lines()[-1]
        else:
            assert explanation.next_solution is None
        json.dumps(explanation.to_json(), allow_nan=False)
