"""Tables of options with dropped layers: ours, and LayerMerge's, read, written, refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from layerfold.errors import MissingEntryError, TableError
from layerfold.solver import Solution, SolutionSegment, solve_frontier
from layerfold.tables import (
    ImportanceEntry,
    ImportanceTable,
    LatencyEntry,
    LatencyTable,
    check_coverage,
    diff_tables,
    merge_tables,
    read_table,
)
from layerfold.tables.kernel import kernel_columns, kernel_of_columns, kernel_text

# As LayerMerge's generate_tables.py and importance.py write them: two 3x3 convs that keep the shape, and a depthwise
# one before a 1x1 conv. The index in front is that of its aggregate_imp.py.
TIME = """id,st,end,ker,str,is_dw,time,stdev
0,0,1,3,1,False,1.0,0.01
1,0,2,3,1,False,1.1,0.01
2,0,2,5,1,False,1.9,0.02
3,1,2,3,1,False,1.0,0.01
4,2,3,3,1,True,0.5,0.01
5,2,4,3,1,False,0.8,0.01
6,2,4,1,1,False,0.4,0.01
7,3,4,1,1,False,0.4,0.01
"""
IMPORTANCE = """,id,st,end,ker,str,is_dw,conv_comb,importance
0,0,0,1,3,1,False,"(1,)",1.0
1,1,0,2,3,1,False,"(2,)",0.97
2,2,0,2,5,1,False,"(1, 2)",0.99
3,3,1,2,3,1,False,"(2,)",1.0
4,4,2,3,3,1,True,"(3,)",1.0
5,5,2,4,3,1,False,"(3, 4)",0.98
6,6,2,4,1,1,False,"(4,)",0.9
7,7,3,4,1,1,False,"(4,)",1.0
"""


@pytest.fixture
def layer_merge(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "time.csv").write_text(TIME)
    (tmp_path / "importance.csv").write_text(IMPORTANCE)
    return tmp_path / "time.csv", tmp_path / "importance.csv"


def test_layer_merge_tables_are_read(layer_merge: tuple[Path, Path]) -> None:
    latency, importance = LatencyTable.read(layer_merge[0]), ImportanceTable.read(layer_merge[1])
    assert latency.at((0, 2, "3x3")).latency_ms == 1.1
    assert latency.entry(0, 2).latency_ms == 1.9
    assert (2, 4, "1x1") in latency
    assert latency.entry(2, 4).merged == "3x3"
    assert latency.original_ms == pytest.approx(2.9)
    assert importance.by_key[0, 2, 1, 1, "3x3"].kept == (2,)
    assert importance.by_key[2, 4, 1, 1, "1x1"].dropped == (3,)
    check_coverage(latency, importance)


def test_layer_merge_tables_are_told_apart_by_their_columns(layer_merge: tuple[Path, Path]) -> None:
    latency, importance = (read_table(path) for path in layer_merge)
    assert isinstance(latency, LatencyTable)
    assert isinstance(importance, ImportanceTable)


def test_layer_merge_tables_are_solved(layer_merge: tuple[Path, Path]) -> None:
    latency, importance = LatencyTable.read(layer_merge[0]), ImportanceTable.read(layer_merge[1])
    frontier = solve_frontier(latency, importance)
    fastest = frontier[0]
    assert fastest.kept_layers == (2, 4)
    assert fastest.merge_pos == (2, 4)
    assert fastest.predicted_ms == pytest.approx(1.5)
    assert fastest.importance == pytest.approx(1.87)
    assert [each.kernel for each in fastest.segments] == ["3x3", "1x1"]
    assert latency.predict_ms(fastest) == fastest.predicted_ms


def test_read_and_written_tables_are_the_same(layer_merge: tuple[Path, Path], tmp_path: Path) -> None:
    for path, kind in zip(layer_merge, (LatencyTable, ImportanceTable), strict=True):
        table = kind.read(path)
        table.write(tmp_path / "again.csv")
        again = kind.read(tmp_path / "again.csv")
        assert again.entries == table.entries
        assert again.hash == table.hash
        assert diff_tables(table, again).num_equal == len(table)


def test_written_tables_have_what_layer_merge_reads(layer_merge: tuple[Path, Path], tmp_path: Path) -> None:
    """Its solver takes st, end, ker, str, is_dw, and time or importance with conv_comb."""
    for path, kind, names in (
        (layer_merge[0], LatencyTable, ("time",)),
        (layer_merge[1], ImportanceTable, ("importance", "conv_comb")),
    ):
        kind.read(path).write(tmp_path / "ours.csv")
        with path.open() as theirs, (tmp_path / "ours.csv").open() as ours:
            for expected, found in zip(csv.DictReader(theirs), csv.DictReader(ours), strict=True):
                for name in ("st", "end", "ker", "str", "is_dw"):
                    assert found[name] == expected[name]
                for name in names:
                    assert found[name] == expected[name]


def test_our_tables_tell_more_kernels_apart_than_the_published_columns(tmp_path: Path) -> None:
    entries = [LatencyEntry(start=p, end=p + 1, latency_ms=1.0, merged="3x3") for p in range(3)]
    entries += [
        LatencyEntry(start=0, end=3, latency_ms=ms, merged=merged, kept=kept)
        for merged, kept, ms in (
            ("3x3", (1,), 0.9),
            ("3x3 g4", (2,), 0.5),
            ("3x5 s2x2 dw", (3,), 0.4),
            ("identity", (), 0.0),
        )
    ]
    table = LatencyTable(entries)
    table.write(tmp_path / "time.csv")
    again = LatencyTable.read(tmp_path / "time.csv")
    assert again.entries == table.entries
    assert (0, 3) not in again  # no row keeps every layer, and none is taken for it
    assert again.keys == {
        (0, 1),
        (1, 2),
        (2, 3),
        (0, 3, "3x3"),
        (0, 3, "3x3 g4"),
        (0, 3, "3x5 s2x2 dw"),
        (0, 3, "identity"),
    }


def test_tables_without_drops_are_written_as_before(tmp_path: Path) -> None:
    LatencyTable([LatencyEntry(start=0, end=1, latency_ms=1.0, merged="3x3")]).write(tmp_path / "time.csv")
    assert (tmp_path / "time.csv").read_text().splitlines()[0] == "id,st,end,time,stdev,st_act,end_act,signature,runs"


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('"(1, x)"', "layers that stay"),
        ('"(1, 2"', "layers that stay"),
        ("1", "layers that stay"),
        ("", "layers that stay"),
        ('"(,)"', "layers that stay"),
        ('"(1 2)"', "layers that stay"),
        ('"(-1,)"', "layers that stay"),
        ("__import__('os').system('x')", "layers that stay"),
        ('"{1, 2}"', "layers that stay"),
        ('"(1, 1)"', "each layer once, from 1 to 2"),
        ('"(2, 3)"', "each layer once, from 1 to 2"),
        ('"(0, 1)"', "each layer once, from 1 to 2"),
        ('"(1.0,)"', "layers that stay"),
    ],
)
def test_malformed_conv_comb_is_refused_by_row_and_column(tmp_path: Path, cell: str, expected: str) -> None:
    (tmp_path / "importance.csv").write_text(IMPORTANCE.replace('"(1, 2)"', cell))
    with pytest.raises(TableError, match=rf"importance.csv: row 4, column conv_comb: .*expected {expected}[^\n]*$"):
        ImportanceTable.read(tmp_path / "importance.csv")


@pytest.mark.parametrize("text", ["(1, 2)", "(1,2)", "[1, 2]", "( 2 , 1 )", "(1, 2,)"])
def test_conv_comb_may_be_any_python_tuple_or_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "importance.csv").write_text(IMPORTANCE.replace('"(1, 2)"', f'"{text}"'))
    assert ImportanceTable.read(tmp_path / "importance.csv").by_key[0, 2, 1, 1].kept is None


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("0,2,3,1,False", "0,2,x,1,False", "row 3, column ker"),
        ("0,2,3,1,False", "0,2,3,0,False", "row 3, column ker"),
        ("0,2,3,1,False", "0,2,3,1,maybe", "row 3, column ker"),
        ("0,2,3,1,False", "0,2,5,1,False", "row 4, column st"),
        ("0,2,3,1,False,1.1", "0,2,3,1,False,0.0", "row 3, column time"),
    ],
)
def test_malformed_kernels_are_refused_by_row_and_column(tmp_path: Path, before: str, after: str, what: str) -> None:
    (tmp_path / "time.csv").write_text(TIME.replace(before, after))
    with pytest.raises(TableError, match=rf"time.csv: {what}: [^\n]*$"):
        LatencyTable.read(tmp_path / "time.csv")


def test_importances_of_merged_kernels_must_say_which_layers_stay(tmp_path: Path) -> None:
    text = "id,st,end,st_act,end_act,ker,str,is_dw,val_acc\n0,0,1,1,1,3,1,False,0.0\n"
    (tmp_path / "importance.csv").write_text(text)
    with pytest.raises(TableError, match="row 1: no column 'conv_comb'"):
        ImportanceTable.read(tmp_path / "importance.csv")


def test_identity_takes_no_time(tmp_path: Path) -> None:
    path = tmp_path / "time.csv"
    path.write_text(TIME.replace("6,2,4,1,1,False,0.4", "6,2,4,0,1,True,0.0"))
    assert LatencyTable.read(path).at((2, 4, "identity")).latency_ms == 0.0
    with pytest.raises(TableError, match=r"latency_ms=0.0, expected milliseconds above 0"):
        LatencyEntry(start=0, end=1, latency_ms=0.0, merged="1x1", kept=())


def test_solution_by_hand_is_predicted_from_entries_measured_with_its_layers() -> None:
    entries = [LatencyEntry(start=p, end=p + 1, latency_ms=1.0) for p in range(3)]
    table = LatencyTable([*entries, LatencyEntry(start=0, end=2, latency_ms=0.7, merged="3x3", kept=(2,))])
    assert table.predict_ms(Solution(act_pos=(), merge_pos=(2, 3), kept_layers=(2, 3))) == pytest.approx(1.7)
    assert table.predict_ms(Solution(act_pos=(), merge_pos=(1, 2, 3), kept_layers=(1, 2, 3))) == pytest.approx(3.0)
    with pytest.raises(MissingEntryError, match=r"segment \(0,2\) without 2; profile"):
        table.predict_ms(Solution(act_pos=(), merge_pos=(2, 3), kept_layers=(1, 3)))
    segments = (SolutionSegment(start=0, end=2, plan="drop", kernel="3x3"), SolutionSegment(start=2, end=3))
    told = Solution(act_pos=(), merge_pos=(2, 3), kept_layers=(1, 3), segments=segments)
    assert table.predict_ms(told) == pytest.approx(1.7)


def test_parts_of_tables_with_drops_are_merged_by_kernel() -> None:
    whole = [LatencyEntry(start=0, end=1, latency_ms=1.0), LatencyEntry(start=1, end=2, latency_ms=1.0)]
    drop = LatencyEntry(start=0, end=2, latency_ms=0.5, merged="3x3", kept=(1,))
    merged = merge_tables([LatencyTable(whole), LatencyTable([*whole, drop])])
    assert isinstance(merged, LatencyTable)
    assert merged.at((0, 2, "3x3")).latency_ms == 0.5
    other = LatencyTable([*whole, LatencyEntry(start=0, end=2, latency_ms=0.4, merged="3x3", kept=(1,))])
    with pytest.raises(TableError, match=r"st=0, end=2, merged=3x3: 0.4 in .* and 0.5 in"):
        merge_tables([LatencyTable([*whole, drop]), other])


def test_rows_need_the_kernel_that_leads_to_their_latency() -> None:
    with pytest.raises(TableError, match=r"merged='', expected the kernel that the segment without 2 merges into"):
        ImportanceEntry(start=0, end=2, start_act=1, end_act=1, importance=0.0, kept=(1,))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("3x3", ("3", "1", "False")),
        ("5x5 dw", ("5", "1", "True")),
        ("3x3 s2x2", ("3", "2", "False")),
        ("1x7", ("1x7", "1", "False")),
        ("identity", ("0", "1", "True")),
    ],
)
def test_kernels_survive_the_published_columns(text: str, columns: tuple[str, str, str]) -> None:
    assert kernel_columns(text) == columns
    assert kernel_of_columns(*columns) == text


def test_kernels_that_differ_have_different_texts() -> None:
    texts = {
        kernel_text(size, stride=stride, dilation=dilation, groups=groups, is_depthwise=depthwise)
        for size in ((1, 1), (1, 3), (3, 1))
        for stride in ((1, 1), (2, 2))
        for dilation in ((1, 1), (2, 2))
        for groups, depthwise in ((1, False), (4, False), (8, True))
    }
    assert len(texts) == 36
