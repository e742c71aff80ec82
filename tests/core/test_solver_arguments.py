"""Arguments and tables out of range: one line that names the argument, at once, whatever the value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from layerfold.errors import LayerfoldError, TableError
from layerfold.solver import (
    Limits,
    compute_optimal_latency,
    explain_point,
    extend_importance,
    solve_alternatives,
    solve_frontier,
)
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance

HUGE = 10**400
NO_NUMBERS = [
    float("nan"),
    float("inf"),
    -float("inf"),
    HUGE,
    -HUGE,
    True,
    "1",
    None,
    [],
    1j,
    np.float64("nan"),
    object(),
]


def latency(layers: int = 6) -> LatencyTable:
    return LatencyTable(
        [
            LatencyEntry(start=i, end=j, latency_ms=(j - i) ** 0.5)
            for i in range(layers)
            for j in range(i + 1, layers + 1)
        ]
    )


def importance(layers: int = 6) -> ImportanceTable:
    return ImportanceTable(
        [
            ImportanceEntry(start=i, end=j, start_act=1, end_act=1, importance=i + 1.0 - j)
            for i in range(layers)
            for j in range(i + 1, layers + 1)
        ]
    )


def refused(work: Callable[[], object], name: str) -> None:
    with pytest.raises(LayerfoldError) as caught:
        work()
    line = str(caught.value)
    assert name in line
    assert "\n" not in line
    assert len(line) < 400


@pytest.mark.parametrize("value", [each for each in NO_NUMBERS if each is not None], ids=lambda value: str(value)[:9])
def test_solver_settings_that_are_no_numbers_are_refused_by_name(value: object) -> None:
    tables = latency(), importance()
    for name in ("alpha", "epsilon", "risk", "max_labels"):
        refused(lambda name=name: solve_frontier(*tables, **{name: value}), name)  # type: ignore[misc]
    refused(lambda: extend_importance(tables[1], value), "alpha")  # type: ignore[arg-type]
    refused(lambda: solve_alternatives(*tables, count=value, budgets_ms=[9.0]), "count")  # type: ignore[arg-type]
    for name in ("max_params", "max_macs", "max_merged", "max_kernel"):
        refused(lambda name=name: Limits(**{name: value}), name)  # type: ignore[misc]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0.0, -1.0], ids=lambda value: str(value)[:9])
def test_budgets_that_are_no_milliseconds_are_refused_by_name(value: object) -> None:
    tables = latency(), importance()
    frontier = solve_frontier(*tables)
    refused(lambda: frontier.at(budget_ms=value), "budget_ms")  # type: ignore[arg-type]
    refused(lambda: frontier.at(speedup=value), "speedup")  # type: ignore[arg-type]
    if value != float("inf"):  # no limit at all
        refused(lambda: solve_frontier(*tables, budgets_ms=[value]), "budgets_ms")  # type: ignore[list-item]
        refused(lambda: solve_alternatives(*tables, count=2, budgets_ms=[value]), "budgets_ms")  # type: ignore[list-item]


@pytest.mark.parametrize("count", [0, 101, 10_000, 100_000_000, 10**30])
def test_more_alternatives_than_there_is_time_for_are_refused(count: int) -> None:
    refused(lambda: solve_alternatives(latency(), importance(), count=count, budgets_ms=[9.0]), f"count={count}"[:20])


def test_as_many_alternatives_as_there_are_end_where_no_more_exist() -> None:
    found = solve_alternatives(latency(4), importance(4), count=100, budgets_ms=[9.0])
    assert len({each.act_pos for each in found}) == len(found) == 8


@pytest.mark.parametrize("max_labels", [-1, 15, 1_000_001, 10**9, 10**30])
def test_limits_of_labels_out_of_range_are_refused(max_labels: int) -> None:
    refused(lambda: solve_frontier(latency(), importance(), max_labels=max_labels), "max_labels")


@pytest.mark.parametrize("value", ["3", [1.5], [None], [-1], [HUGE], [10**7], 3, None, ["x"], [True]], ids=str)
def test_positions_that_are_none_are_refused(value: object) -> None:
    for name in ("keep_activations", "drop_activations", "never_merge"):
        refused(lambda name=name: Limits(**{name: value}), name)  # type: ignore[misc]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: str(value)[:9])
def test_entries_without_finite_numbers_are_refused(value: object) -> None:
    numbers: dict[str, object] = {"start": 0, "end": 1}
    for name in ("latency_ms", "spread_ms", "start", "end", "runs"):
        refused(lambda name=name: LatencyEntry(**{**numbers, "latency_ms": 1.0, name: value}), name[:2])  # type: ignore[misc]
    states = {**numbers, "start_act": 1, "end_act": 1, "importance": 0.0}
    for name in ("importance", "start", "end", "start_act"):
        refused(lambda name=name: ImportanceEntry(**{**states, name: value}), name[:2])  # type: ignore[misc]


def test_numbers_of_numpy_become_plain() -> None:
    entry = LatencyEntry(
        start=np.int64(0), end=np.int32(2), latency_ms=np.float32(1.5), kept=np.array([1]), merged="3x3"
    )
    found = (entry.start, entry.end, entry.latency_ms, *(entry.kept or ()))
    assert [type(each) for each in found] == [int, int, float, int]
    assert solve_frontier(latency(), importance()).at(budget_ms=np.float64(9.0)).predicted_ms == 6.0


@pytest.mark.parametrize("layers", [4097, 10_000, 10**6])
@pytest.mark.parametrize("start", [0, 3])
def test_chains_that_no_memory_holds_are_refused(layers: int, start: int) -> None:
    end = min(start + layers, 10**6)
    if end - start <= 4096:
        return
    with pytest.raises(TableError, match=rf"chain {start}\.\.{end} has {end - start} layers, expected at most 4096"):
        LatencyTable([LatencyEntry(start=start, end=end, latency_ms=1.0)])
    entry = ImportanceEntry(start=start, end=end, start_act=1, end_act=1, importance=0.0)
    with pytest.raises(TableError, match="expected at most 4096"):
        extend_importance(ImportanceTable([entry]))


def test_tables_of_one_row_are_solved() -> None:
    for first in (0, 7, 999_999):
        times = LatencyTable([LatencyEntry(start=first, end=first + 1, latency_ms=1.5)])
        gains = ImportanceTable([ImportanceEntry(start=first, end=first + 1, start_act=1, end_act=1, importance=-0.5)])
        frontier = solve_frontier(times, gains, risk=0.1)
        assert frontier.knee() == frontier[0]
        assert frontier.at(speedup=1.0).merge_pos == (first + 1,)
        assert solve_alternatives(times, gains, count=9, budgets_ms=[2.0])[0].importance == -0.5
        assert len(compute_optimal_latency(times)) == len(extend_importance(gains)) == 1
        assert "1 single" in "\n".join(explain_point(frontier, 0).lines())


@pytest.mark.parametrize("index", [-1, 99, HUGE, 0.5, "0", None, True])
def test_points_that_do_not_exist_are_not_explained(index: object) -> None:
    refused(lambda: explain_point(solve_frontier(latency(), importance()), index), "index")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [None, 3, "table", [], [latency()], {"a": 1}, importance()], ids=lambda each: type(each).__name__
)
def test_what_is_no_table_is_refused(wrong: object) -> None:
    if not isinstance(wrong, ImportanceTable):
        refused(lambda: solve_frontier(latency(), wrong), "importance")  # type: ignore[arg-type]
    refused(lambda: compute_optimal_latency(wrong), "latency")  # type: ignore[arg-type]
    refused(lambda: solve_frontier([latency(), wrong], importance()), "latency")  # type: ignore[list-item]
    refused(lambda: LatencyTable([wrong]), "entries")  # type: ignore[list-item]


@pytest.mark.parametrize(
    "value", [3, None, "ab", [3], [None], [(0, 1, 2)], [(0, 1.5)], {"a": 1}, [(0, HUGE)], np.array(3)], ids=str
)
def test_chains_that_are_no_pairs_are_refused(value: object) -> None:
    refused(lambda: Provenance(chains=value), "chains")  # type: ignore[arg-type]
    refused(lambda: Provenance(left_out=value), "left_out")  # type: ignore[arg-type]


def test_twenty_thousand_chains_are_checked() -> None:
    chains = tuple((start, start + 2) for start in range(0, 40_000, 2))
    entries = [
        LatencyEntry(start=i, end=j, latency_ms=1.0)
        for start, end in chains
        for i, j in ((start, start + 1), (start + 1, end), (start, end))
    ]
    # A second; minutes, where the time grows with chains times rows.
    assert len(LatencyTable(entries, provenance=Provenance(chains=chains))) == 3 * len(chains)
