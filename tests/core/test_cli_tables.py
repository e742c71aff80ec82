"""``layerfold tables`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from layerfold.cli import main
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance


def write_latency(path: Path, entries: dict[tuple[int, int], float], **provenance: object) -> str:
    LatencyTable(
        [LatencyEntry(start=i, end=j, latency_ms=ms, runs=10) for (i, j), ms in entries.items()],
        provenance=Provenance(kind="latency", **provenance),
        partial=True,  # type: ignore[arg-type]
    ).write(path)
    return str(path)


def write_importance(path: Path, segments: list[tuple[int, int]]) -> str:
    ImportanceTable(
        [ImportanceEntry(start=i, end=j, start_act=1, end_act=1, importance=-1.0) for i, j in segments]
    ).write(path)
    return str(path)


def test_check_says_what_a_table_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time = write_latency(tmp_path / "time.csv", {(0, 1): 1.0, (1, 2): 2.0}, device="this cpu")
    imp = write_importance(tmp_path / "imp.csv", [(0, 1), (1, 2)])
    assert main(["tables", "check", time, imp, "--against", time]) == 0
    out = capsys.readouterr().out
    assert "kind latency, entries 2, chains 0..2, original_ms 3, device this cpu" in out
    assert "kind importance, entries 2" in out
    assert main(["tables", "check", time, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["entries"] == 2


def test_check_finds_an_importance_table_with_a_hole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time = write_latency(tmp_path / "time.csv", {(0, 1): 1.0, (1, 2): 2.0})
    imp = write_importance(tmp_path / "imp.csv", [(0, 1)])
    assert main(["tables", "check", imp, "--against", time]) == 2
    assert "no entry for st=1, end=2" in capsys.readouterr().err


def test_published_tables_pass_the_check(shared_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(map(str, (shared_path / "seed_tables").rglob("*.csv")))
    assert len(files) == 4
    assert main(["tables", "check", *files]) == 0
    assert capsys.readouterr().out.count("kind latency") == 4


def test_merge_joins_what_two_machines_filled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_latency(tmp_path / "a.csv", {(0, 1): 1.0}, device="cpu")
    second = write_latency(tmp_path / "b.csv", {(1, 2): 2.0, (0, 2): 2.5}, device="cpu")
    assert main(["tables", "merge", first, second, "-o", str(tmp_path / "all.csv")]) == 0
    assert "3 entries from 2 files" in capsys.readouterr().out
    merged = LatencyTable.read(tmp_path / "all.csv")
    assert merged.original_ms == 3.0
    assert merged.provenance.device == "cpu"


@pytest.mark.parametrize(
    ("second", "provenance", "expected"),
    [({(0, 1): 1.1}, {"device": "cpu"}, "st=0, end=1: 1.0 in"), ({(1, 2): 1.0}, {"device": "gpu"}, "device differs")],
    ids=["conflict", "other device"],
)
def test_merge_refuses_and_writes_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    second: dict[tuple[int, int], float],
    provenance: dict[str, str],
    expected: str,
) -> None:
    files = [
        write_latency(tmp_path / "a.csv", {(0, 1): 1.0}, device="cpu"),
        write_latency(tmp_path / "b.csv", second, **provenance),
    ]
    assert main(["tables", "merge", *files, "-o", str(tmp_path / "all.csv")]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "all.csv").exists()


def test_merge_with_tolerance_keeps_the_mean(tmp_path: Path) -> None:
    files = [write_latency(tmp_path / f"{name}.csv", {(0, 1): ms}) for name, ms in (("a", 1.0), ("b", 1.04))]
    assert main(["tables", "merge", *files, "-o", str(tmp_path / "all.csv"), "--tolerance", "5"]) == 0
    assert LatencyTable.read(tmp_path / "all.csv").entries[0].latency_ms == pytest.approx(1.02)


def test_diff_lists_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_latency(tmp_path / "a.csv", {(0, 1): 1.0, (1, 2): 2.0})
    second = write_latency(tmp_path / "b.csv", {(0, 1): 1.5, (1, 2): 2.0})
    assert main(["tables", "diff", first, second]) == 0
    out = capsys.readouterr().out
    assert "1 equal, 1 changed" in out
    assert "st=0, end=1: 1 -> 1.5 (+50.00 %)" in out
    assert main(["tables", "diff", first, second, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == [{"key": [0, 1], "values": [1.0, 1.5]}]


def test_diff_of_two_kinds_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_latency(tmp_path / "a.csv", {(0, 1): 1.0})
    second = write_importance(tmp_path / "b.csv", [(0, 1)])
    assert main(["tables", "diff", first, second]) == 2
    assert "expected two alike" in capsys.readouterr().err
