"""Stage 1 and the extended importances, on published tables and by definition."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from layerfold.errors import MissingEntryError, UsageError
from layerfold.solver import compute_optimal_latency, extend_importance, solve_frontier
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance


@pytest.mark.parametrize(("name", "suffix"), [("mbv2_1.0", "fish_gpu1_1228"), ("vgg19_no_trt", "fish_gpu1_0317")])
def test_optimal_latency_equals_the_published_in_every_row(shared_path: Path, name: str, suffix: str) -> None:
    folder = shared_path / "seed_tables" / name
    ours = compute_optimal_latency(LatencyTable.read(folder / f"time_{suffix}.csv"))
    published = LatencyTable.read(folder / f"opt_time_{suffix}.csv")
    assert len(ours) == len(published)
    for mine, theirs in zip(ours.entries, published.entries, strict=True):
        assert (mine.start, mine.end, mine.breaks) == (theirs.start, theirs.end, theirs.breaks)
        # The file keeps 15 digits.
        assert mine.latency_ms == pytest.approx(theirs.latency_ms, rel=2e-15, abs=0)
        assert mine.spread_ms == pytest.approx(theirs.spread_ms, rel=1e-13)


def test_optimal_latency_is_the_least_over_all_breaks() -> None:
    rng = random.Random(0)
    entries = {
        (i, j): rng.uniform(0.5, 2.0) * (j - i) ** 0.7
        for i in range(6)
        for j in range(i + 1, 7)
        if j == i + 1 or rng.random() < 0.8
    }
    table = LatencyTable([LatencyEntry(start=i, end=j, latency_ms=ms) for (i, j), ms in entries.items()])
    for entry in compute_optimal_latency(table).entries:
        inner = range(entry.start + 1, entry.end)
        ways = [
            (entry.start, *chosen, entry.end)
            for count in range(len(inner) + 1)
            for chosen in itertools.combinations(inner, count)
        ]
        sums = [
            sum(entries[pair] for pair in itertools.pairwise(way))
            for way in ways
            if all(pair in entries for pair in itertools.pairwise(way))
        ]
        assert entry.latency_ms == pytest.approx(min(sums), rel=1e-14)
        assert entry.breaks is not None
        assert sum(entries[pair] for pair in itertools.pairwise(entry.breaks)) == pytest.approx(min(sums), rel=1e-14)


def test_optimal_latency_does_not_cross_chains() -> None:
    entries = [LatencyEntry(start=i, end=j, latency_ms=1.0) for i, j in ((0, 1), (1, 2), (0, 2), (2, 3))]
    table = LatencyTable(entries, provenance=Provenance(chains=((0, 2), (2, 3))))
    assert [entry.breaks for entry in compute_optimal_latency(table).entries] == [(0, 1), (1, 2), (0, 2), (2, 3)]


def test_merging_whole_wins_a_tie() -> None:
    table = LatencyTable(
        [
            LatencyEntry(start=0, end=1, latency_ms=1.0),
            LatencyEntry(start=1, end=2, latency_ms=1.0),
            LatencyEntry(start=0, end=2, latency_ms=2.0),
        ]
    )
    assert compute_optimal_latency(table).entry(0, 2).breaks == (0, 2)


def importance_table(values: dict[tuple[int, int, int, int], float]) -> ImportanceTable:
    return ImportanceTable(
        [
            ImportanceEntry(start=i, end=j, start_act=a, end_act=b, importance=value)
            for (i, j, a, b), value in values.items()
        ]
    )


def test_extension_adds_up_over_slots_without_activation() -> None:
    extended = extend_importance(
        importance_table(
            {
                (0, 1, 1, 0): -0.1,
                (1, 2, 0, 0): -0.2,
                (2, 3, 0, 1): -0.3,
                (0, 2, 1, 0): -0.25,
                (0, 3, 1, 1): -1.0,
            }
        )
    )
    entry = extended.entry(0, 3, 1, 1)
    assert entry.importance == pytest.approx(-0.55), "0-2 measured at -0.25 beats -0.1 - 0.2"
    assert entry.breaks == (0, 2, 3)
    assert extended.entry(0, 2, 1, 0).breaks == (0, 2)


def test_extension_never_breaks_where_an_activation_is() -> None:
    extended = extend_importance(importance_table({(0, 1, 1, 1): 0.0, (1, 2, 1, 1): 0.0, (0, 2, 1, 1): -1.0}))
    assert extended.entry(0, 2).importance == -1.0


def test_extending_twice_changes_nothing() -> None:
    rng = random.Random(1)
    values = {
        (i, j, a, b): rng.uniform(-2, 0)
        for i in range(5)
        for j in range(i + 1, 6)
        for a in ((1,) if i == 0 else (0, 1))
        for b in (0, 1)
        if rng.random() < 0.7
    }
    once = extend_importance(importance_table(values))
    twice = extend_importance(once)
    assert {e.key: e.importance for e in twice.entries} == pytest.approx({e.key: e.importance for e in once.entries})


@pytest.mark.parametrize(
    ("name", "suffix", "empty"),
    [("mbv2_1.0", "fish_gpu1_1228", range(2, 51, 3)), ("vgg19_no_trt", "fish_gpu1_0317", range(0))],
)
def test_extended_table_has_the_rows_of_the_importance_table_as_the_published_solver_asks(
    shared_path: Path, tmp_path: Path, name: str, suffix: str, empty: range
) -> None:
    rng = random.Random(3)
    latency = LatencyTable.read(shared_path / "seed_tables" / name / f"time_{suffix}.csv")
    table = importance_table(
        {
            (e.start, e.end, a, b): -rng.random() * (e.end - e.start)
            for e in latency.entries
            for a in ((0, 1) if e.start in empty else (1,))
            for b in ((0, 1) if e.end in empty and e.end < 50 else (1,))
        }
    )
    extend_importance(table).write(tmp_path / "ext.csv")
    extended = ImportanceTable.read(tmp_path / "ext.csv")
    assert set(extended.by_key) == set(table.by_key)
    assert all(extended.by_key[key].importance >= entry.importance for key, entry in table.by_key.items())
    first, second = solve_frontier(latency, table), solve_frontier(latency, extended)
    for budget_ms in [first.least_ms * share for share in (1.001, 1.1, 1.3, 1.7, 2.0)]:
        assert first.at(budget_ms=budget_ms).importance == pytest.approx(second.at(budget_ms=budget_ms).importance)


@pytest.mark.parametrize("missing", [(0, 2), (1, 3), (0, 3), (2, 4), (1, 4)])
def test_a_stretch_that_is_no_segment_of_the_table_has_no_extended_row(missing: tuple[int, int]) -> None:
    values = {
        (i, j, a, b): -1.0 * (j - i)
        for i in range(4)
        for j in range(i + 1, 5)
        if (i, j) != missing
        for a in ((1,) if i == 0 else (0, 1))
        for b in ((1,) if j == 4 else (0, 1))
    }
    extended = extend_importance(importance_table(values))
    assert {(e.start, e.end) for e in extended.entries} == {key[:2] for key in values}


@pytest.mark.parametrize(("normalise", "mean"), [("single", -2.0), ("default", -11 / 3), ("all", -2.8)])
def test_alpha_takes_off_the_mean_of_the_chosen_entries(normalise: str, mean: float) -> None:
    # Slot 1 appears without activation, so the original has none there: its default entries are those with 0.
    table = importance_table(
        {
            (0, 1, 1, 1): -3.0,
            (0, 1, 1, 0): -1.0,
            (1, 2, 0, 1): -4.0,
            (0, 2, 1, 1): -6.0,
            (1, 2, 1, 1): 0.0,
        }
    )
    shifted = extend_importance(table, 0.5, normalise)  # type: ignore[arg-type]
    assert shifted.entry(0, 1).importance == pytest.approx(-3.0 - 0.5 * mean)


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf"), "much"])
def test_alpha_must_be_a_number_of_at_least_zero(alpha: object) -> None:
    with pytest.raises(UsageError, match="alpha"):
        extend_importance(importance_table({(0, 1, 1, 1): 0.0}), alpha)  # type: ignore[arg-type]


def test_left_out_pair_is_no_option() -> None:
    latency = LatencyTable(
        [
            LatencyEntry(start=0, end=1, latency_ms=1.0),
            LatencyEntry(start=1, end=2, latency_ms=1.0),
            LatencyEntry(start=0, end=2, latency_ms=1.0),
        ]
    )
    both = {(0, 1, 1, 1): 0.0, (1, 2, 1, 1): 0.0, (0, 2, 1, 1): -1.0, (0, 1, 1, 0): 5.0, (1, 2, 0, 1): 5.0}
    without = {key: value for key, value in both.items() if key != (1, 2, 0, 1)}
    assert solve_frontier(latency, importance_table(both)).at(budget_ms=9).importance == 10.0
    assert solve_frontier(latency, importance_table(without)).at(budget_ms=9).importance == 0.0


def test_no_way_through_a_chain_is_an_error_that_names_it() -> None:
    latency = LatencyTable([LatencyEntry(start=0, end=1, latency_ms=1.0), LatencyEntry(start=1, end=2, latency_ms=1.0)])
    with pytest.raises(MissingEntryError, match=r"no options lead through the chain 0\.\.2"):
        solve_frontier(latency, importance_table({(0, 1, 1, 1): 0.0, (1, 2, 0, 1): 0.0}))


def test_order_of_rows_does_not_matter() -> None:
    rng = random.Random(5)
    segments = [(i, j) for i in range(7) for j in range(i + 1, 8)]
    latencies = [LatencyEntry(start=i, end=j, latency_ms=float(rng.randint(1, 4))) for i, j in segments]
    values = {(i, j, 1, 1): float(-rng.randint(0, 3)) for i, j in segments}
    first = solve_frontier(LatencyTable(latencies), importance_table(values))
    rng.shuffle(latencies)
    shuffled = list(values.items())
    rng.shuffle(shuffled)
    second = solve_frontier(LatencyTable(latencies), importance_table(dict(shuffled)))
    assert [(s.act_pos, s.merge_pos) for s in first] == [(s.act_pos, s.merge_pos) for s in second]


def test_table_of_optimal_latencies_gives_the_same_solutions() -> None:
    rng = random.Random(8)
    segments = [(i, j) for i in range(8) for j in range(i + 1, 9)]
    latency = LatencyTable(
        [LatencyEntry(start=i, end=j, latency_ms=rng.uniform(0.5, 2.0) * (j - i) ** 0.9) for i, j in segments]
    )
    optimal = compute_optimal_latency(latency)
    assert any(len(entry.breaks or ()) > 2 for entry in optimal.entries)
    importance = importance_table({(i, j, 1, 1): -rng.uniform(0.0, 1.0) * (j - i) for i, j in segments})
    first, second = solve_frontier(latency, importance), solve_frontier(optimal, importance)
    assert [(s.act_pos, s.merge_pos, s.predicted_ms) for s in first] == [
        (s.act_pos, s.merge_pos, s.predicted_ms) for s in second
    ]
