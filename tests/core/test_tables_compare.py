"""Tables merged from parts, and compared."""

from __future__ import annotations

import pytest

from layerfold.errors import ProvenanceMismatchError, TableError
from layerfold.tables import (
    ImportanceEntry,
    ImportanceTable,
    LatencyEntry,
    LatencyTable,
    Provenance,
    diff_tables,
    merge_tables,
)


def part(entries: dict[tuple[int, int], float], source: str, runs: int = 0, **provenance: object) -> LatencyTable:
    return LatencyTable(
        [LatencyEntry(start=i, end=j, latency_ms=ms, runs=runs) for (i, j), ms in entries.items()],
        provenance=Provenance(kind="latency", **provenance),  # type: ignore[arg-type]
        source=source,
        partial=True,
    )


def test_parts_join_into_one_table() -> None:
    merged = merge_tables([part({(1, 2): 2.0}, "b"), part({(0, 1): 1.0, (1, 2): 2.0}, "a", device="cpu")])
    assert isinstance(merged, LatencyTable)
    assert [(entry.start, entry.end, entry.latency_ms) for entry in merged.entries] == [(0, 1, 1.0), (1, 2, 2.0)]
    assert merged.provenance.device == "cpu"


def test_merge_refuses_a_whole_with_a_gap() -> None:
    with pytest.raises(TableError, match="no entries lead"):
        merge_tables([part({(0, 1): 1.0}, "a"), part({(2, 3): 1.0}, "b")])


def test_conflict_is_named_by_segment_and_files() -> None:
    with pytest.raises(TableError, match=r"st=0, end=1: 1\.0 in a\.csv and 1\.1 in b\.csv"):
        merge_tables([part({(0, 1): 1.0}, "a.csv"), part({(0, 1): 1.1}, "b.csv")])


def test_values_within_tolerance_become_their_mean_weighted_by_runs() -> None:
    merged = merge_tables([part({(0, 1): 1.0}, "a", runs=30), part({(0, 1): 1.1}, "b", runs=10)], tolerance=0.1)
    assert isinstance(merged, LatencyTable)
    entry = merged.entries[0]
    assert entry.latency_ms == pytest.approx(1.025)
    assert entry.runs == 40
    assert entry.spread_ms == pytest.approx((0.75 * 0.025**2 + 0.25 * 0.075**2) ** 0.5)


def test_merge_refuses_parts_of_different_calibration() -> None:
    with pytest.raises(ProvenanceMismatchError, match="fixed_ms and scale differ"):
        merge_tables([part({(0, 1): 1.0}, "a", fixed_ms=0.1), part({(1, 2): 1.0}, "b", fixed_ms=0.2)])


def test_merge_refuses_importances_of_different_weights() -> None:
    entry = ImportanceEntry(start=0, end=1, start_act=1, end_act=1, importance=0.0)
    tables = [ImportanceTable([entry], provenance=Provenance(model_hash=each)) for each in ("x", "y")]
    with pytest.raises(ProvenanceMismatchError, match="model_hash"):
        merge_tables(tables)


def test_merge_refuses_latency_with_importance() -> None:
    entry = ImportanceEntry(start=0, end=1, start_act=1, end_act=1, importance=0.0)
    with pytest.raises(TableError, match="expected parts alike"):
        merge_tables([part({(0, 1): 1.0}, "a"), ImportanceTable([entry])])


def test_left_out_segment_that_another_part_has_is_no_longer_left_out() -> None:
    def table(start: int, left_out: tuple[tuple[int, int], ...]) -> ImportanceTable:
        entry = ImportanceEntry(start=start, end=start + 1, start_act=1, end_act=1, importance=0.0)
        return ImportanceTable([entry], provenance=Provenance(left_out=left_out))

    merged = merge_tables([table(0, ((1, 2), (0, 2))), table(1, ((0, 1), (0, 2)))])
    assert merged.provenance.left_out == ((0, 2),)


def test_diff_lists_largest_change_first() -> None:
    first = part({(0, 1): 1.0, (1, 2): 2.0, (2, 3): 3.0}, "a", device="x")
    second = part({(0, 1): 1.1, (1, 2): 4.0, (3, 4): 1.0}, "b", device="y")
    difference = diff_tables(first, second)
    assert [key for key, *_ in difference.changed] == [(1, 2), (0, 1)]
    assert difference.only_first == ((2, 3),)
    assert difference.only_second == ((3, 4),)
    assert difference.provenance == {"device": ("x", "y")}
    assert any("+100.00 %" in line for line in difference.lines())


def test_diff_of_a_table_with_itself_is_empty() -> None:
    table = part({(0, 1): 1.0, (1, 2): 2.0}, "a")
    difference = diff_tables(table, table)
    assert (difference.changed, difference.only_first, difference.only_second) == ((), (), ())
    assert difference.num_equal == 2
