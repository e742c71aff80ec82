"""Tables on disk: what is written is read again, and so is what was published."""

from __future__ import annotations

import csv
import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerfold.errors import MissingEntryError, ProvenanceMismatchError, TableError, WriteError
from layerfold.solver import Solution
from layerfold.tables import (
    ImportanceEntry,
    ImportanceTable,
    LatencyEntry,
    LatencyTable,
    Provenance,
    check_coverage,
    read_table,
)

PUBLISHED = {
    "mbv2_1.0": ("fish_gpu1_1228", 171, (0, 50), 33.67011618891358),
    "vgg19_no_trt": ("fish_gpu1_0317", 36, (0, 16), 193.08426587104796),
}


def latency_table(entries: dict[tuple[int, int], float], **provenance: object) -> LatencyTable:
    return LatencyTable(
        [LatencyEntry(start=start, end=end, latency_ms=ms) for (start, end), ms in entries.items()],
        provenance=Provenance(kind="latency", **provenance),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_latency_table_loads(shared_path: Path, name: str) -> None:
    suffix, rows, chain, original_ms = PUBLISHED[name]
    table = LatencyTable.read(shared_path / "seed_tables" / name / f"time_{suffix}.csv")
    assert len(table) == rows
    assert table.chains == (chain,)
    assert table.original_ms == pytest.approx(original_ms, rel=1e-12)
    assert (table.provenance.fixed_ms, table.provenance.scale) == (0.0, 1.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_optimal_table_loads_with_breaks(shared_path: Path, name: str) -> None:
    suffix, rows, _, _ = PUBLISHED[name]
    table = LatencyTable.read(shared_path / "seed_tables" / name / f"opt_time_{suffix}.csv")
    assert len(table) == rows
    assert all(entry.breaks is not None and entry.breaks[0] == entry.start for entry in table.entries)


def test_first_written_columns_are_the_published_ones(tmp_path: Path) -> None:
    latency_table({(0, 1): 1.0, (1, 2): 2.0}).write(tmp_path / "time.csv")
    with (tmp_path / "time.csv").open() as file:
        assert next(csv.reader(file))[:5] == ["id", "st", "end", "time", "stdev"]


def test_latency_table_survives_a_round_trip(tmp_path: Path) -> None:
    provenance = Provenance(
        kind="latency",
        model="timm:net",
        network_hash="ab",
        input_shape=(3, 32, 32),
        batch=2,
        dtype="float32",
        device="cpu",
        backend="onnxruntime",
        versions={"onnxruntime": "1"},
        fixed_ms=0.25,
        scale=1.1,
        chains=((0, 2), (2, 3)),
        options={"max_kernel": 7},
        date="2026-01-01",
        notes="quiet machine",
    )
    table = LatencyTable(
        [
            LatencyEntry(
                start=0,
                end=1,
                latency_ms=0.1,
                spread_ms=0.01,
                start_act=1,
                end_act=0,
                runs=7,
                signature="3x32x32 conv:o8,k3x3,s1x1,p1.1.1.1,d1x1,g1 act:relu6,x=0.5",
            ),
            LatencyEntry(start=1, end=2, latency_ms=1 / 3, macs=12, params=3),
            LatencyEntry(start=2, end=3, latency_ms=1e-5),
        ],
        provenance=provenance,
    )
    table.write(tmp_path / "sub" / "time.csv")
    again = LatencyTable.read(tmp_path / "sub" / "time.csv")
    assert again.entries == table.entries
    assert again.provenance == provenance
    assert again.hash == table.hash


def test_importance_table_survives_a_round_trip(tmp_path: Path) -> None:
    table = ImportanceTable(
        [
            ImportanceEntry(
                start=0,
                end=1,
                start_act=1,
                end_act=1,
                importance=-0.5,
                train_loss=0.1,
                train_acc=-1.0,
                val_loss=0.2,
                val_acc=-0.5,
                extra={"steps": 20.0, "note": "stopped early"},
            ),
            ImportanceEntry(
                start=1, end=2, start_act=1, end_act=0, importance=0.25, val_acc=0.25, extra={"steps": 5.0, "note": ""}
            ),
        ],
        provenance=Provenance(kind="importance", left_out=((0, 2),)),
    )
    table.write(tmp_path / "imp.csv")
    again = ImportanceTable.read(tmp_path / "imp.csv")
    assert [entry.key for entry in again.entries] == [entry.key for entry in table.entries]
    assert again.entries[0].extra == {"steps": 20.0, "note": "stopped early"}
    assert again.hash == table.hash
    assert again.provenance.left_out == ((0, 2),)


def test_importance_column_wins_over_val_acc(tmp_path: Path) -> None:
    header = "id,st,end,st_act,end_act,train_loss,train_acc,val_loss,val_acc"
    (tmp_path / "plain.csv").write_text(f"{header}\n0,0,1,1,1,0,0,0,-2.5\n")
    (tmp_path / "own.csv").write_text(f"{header},importance\n0,0,1,1,1,0,0,0,-2.5,-1.5\n")
    assert ImportanceTable.read(tmp_path / "plain.csv").entries[0].importance == -2.5
    assert ImportanceTable.read(tmp_path / "own.csv").entries[0].importance == -1.5


def test_negative_zero_importance_reads_as_zero(tmp_path: Path) -> None:
    (tmp_path / "imp.csv").write_text("id,st,end,st_act,end_act,val_acc\n0,0,1,1,1,-0.0\n")
    value = ImportanceTable.read(tmp_path / "imp.csv").entries[0].importance
    assert math.copysign(1.0, value) == 1.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_every_latency_is_written_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    path = tmp_path_factory.mktemp("t") / "time.csv"
    table = latency_table({(index, index + 1): value for index, value in enumerate(values)})
    table.write(path)
    assert [entry.latency_ms for entry in LatencyTable.read(path).entries] == values


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "time.csv"
    latency_table({(0, 1): 1.0}).write(path)
    before = path.read_bytes(), (tmp_path / "time.csv.json").read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(WriteError, match="No space"):
        latency_table({(0, 1): 2.0}).write(path)
    assert (path.read_bytes(), (tmp_path / "time.csv.json").read_bytes()) == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["time.csv", "time.csv.json"]


def test_chains_come_from_the_sidecar_else_one_over_all() -> None:
    entries = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 2): 1.5}
    assert latency_table(entries).chains == ((0, 3),)
    assert latency_table(entries, chains=((0, 2), (2, 3))).chains == ((0, 2), (2, 3))


def test_prediction_is_fixed_plus_scale_times_sum() -> None:
    table = latency_table({(0, 1): 1.0, (1, 2): 2.0, (0, 2): 2.5, (2, 3): 4.0}, chains=((0, 2), (2, 3)))
    solution = Solution(act_pos=[], merge_pos=[3])
    assert table.predict_ms(solution) == 6.5, "a chain's end is a merge position, named or not"
    calibrated = LatencyTable(table.entries, provenance=replace(table.provenance, fixed_ms=0.5, scale=2.0))
    assert calibrated.predict_ms(solution) == 13.5
    assert table.original_ms == 7.0


def test_prediction_names_a_segment_that_was_never_measured() -> None:
    table = latency_table({(0, 1): 1.0, (1, 2): 2.0, (2, 3): 3.0, (0, 2): 1.0})
    with pytest.raises(MissingEntryError, match=r"\(1,3\)"):
        table.predict_ms(Solution(act_pos=[1], merge_pos=[1, 3]))


def test_useful_segments_are_those_faster_than_their_parts() -> None:
    table = latency_table({(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 2): 1.5, (1, 3): 2.0, (0, 3): 2.6})
    assert table.useful_segments() == ((0, 1), (0, 2), (1, 2), (2, 3)), "(1,3) ties, (0,3) loses to (0,2)+(2,3)"


def test_useful_segments_match_the_definition() -> None:
    rng = random.Random(3)
    for _ in range(20):
        size = rng.randint(2, 6)
        entries = {
            (i, j): rng.uniform(0.5, 2.0) * (j - i) ** 0.8
            for i in range(size)
            for j in range(i + 1, size + 1)
            if j == i + 1 or rng.random() < 0.8
        }

        def best(i: int, j: int, proper: bool, entries: dict[tuple[int, int], float] = entries) -> float:
            ways = [entries[i, j]] if not proper and (i, j) in entries else []
            ways += [best(i, k, False) + best(k, j, False) for k in range(i + 1, j)]
            return min(ways, default=math.inf)

        useful = tuple(sorted(s for s in entries if s[1] == s[0] + 1 or entries[s] < best(*s, True) - 1e-12))
        assert latency_table(entries).useful_segments() == useful


def test_gap_in_the_chain_is_named() -> None:
    with pytest.raises(TableError, match="no entries lead from 0 to 3, the last position reached is 1"):
        latency_table({(0, 1): 1.0, (2, 3): 1.0})


def test_table_rejects_other_device_and_input_shape() -> None:
    from layerfold.tables import merge_tables

    base = {"device": "cpu", "dtype": "float32", "input_shape": (1, 3, 32, 32)}
    first = latency_table({(0, 1): 1.0}, **base)
    for name, value in (("device", "gpu"), ("dtype", "float16"), ("input_shape", (1, 3, 64, 64))):
        other = latency_table({(0, 1): 1.0}, **{**base, name: value})
        with pytest.raises(ProvenanceMismatchError, match=name):
            merge_tables([first, other])


def test_importance_must_cover_the_latency_table_unless_left_out() -> None:
    latency = latency_table({(0, 1): 1.0, (1, 2): 1.0, (0, 2): 3.0})
    entries = [ImportanceEntry(start=i, end=i + 1, start_act=1, end_act=1, importance=0.0) for i in range(2)]
    with pytest.raises(MissingEntryError, match="st=0, end=2"):
        check_coverage(latency, ImportanceTable(entries))
    check_coverage(latency, ImportanceTable(entries, provenance=Provenance(left_out=((0, 2),))))


def test_kind_of_table_is_told_by_its_columns(tmp_path: Path) -> None:
    latency_table({(0, 1): 1.0}).write(tmp_path / "a.csv")
    ImportanceTable([ImportanceEntry(start=0, end=1, start_act=1, end_act=1, importance=0.0)]).write(tmp_path / "b.csv")
    assert isinstance(read_table(tmp_path / "a.csv"), LatencyTable)
    assert isinstance(read_table(tmp_path / "b.csv"), ImportanceTable)


def test_sidecar_says_how_many_rows_there_are(tmp_path: Path) -> None:
    path = tmp_path / "time.csv"
    latency_table({(0, 1): 1.0, (1, 2): 1.0}).write(path)
    assert json.loads((tmp_path / "time.csv.json").read_text())["rows"] == 2
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(TableError, match="1 rows, expected the 2"):
        LatencyTable.read(path)


def test_unknown_sidecar_keys_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "time.csv"
    latency_table({(0, 1): 1.0}, fixed_ms=0.5).write(path)
    sidecar = tmp_path / "time.csv.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "weather": "rain"}))
    assert LatencyTable.read(path).provenance.fixed_ms == 0.5
