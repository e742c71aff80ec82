"""``layerfold tables plot``: three pictures of a latency table, and one line where there is nothing to draw."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from layerfold.cli import main
from layerfold.profiler.plans.fitted import beliefs_of, fitted_table
from layerfold.profiler.plans.plan import MeasuredPlan
from layerfold.solver import Solution
from layerfold.tables import LatencyEntry, LatencyTable, Provenance

PNG = b"\x89PNG"


@pytest.fixture
def table(tmp_path: Path) -> str:
    entries = [LatencyEntry(start=m, end=m + 1, latency_ms=1.0) for m in range(4)]
    entries += [LatencyEntry(start=m, end=m + 2, latency_ms=1.2) for m in range(3)]
    alone = LatencyTable(entries, provenance=Provenance(kind="latency", model="toy", fixed_ms=0.5))
    plans = [
        MeasuredPlan(act_pos=(), merge_pos=stops, ratio=ratio, low=ratio - 0.01, high=ratio + 0.01)
        for stops, ratio in (((2, 3, 4), 0.85), ((1, 3, 4), 0.82), ((2, 4), 0.66))
    ]
    fitted_table(alone, beliefs_of(alone, plans)).write(tmp_path / "time.csv")
    return str(tmp_path / "time.csv")


@pytest.mark.parametrize("kind", ["heatmap", "prediction", "time"])
def test_each_picture_is_drawn(table: str, tmp_path: Path, kind: str) -> None:
    Solution(act_pos=[2], merge_pos=[2, 4]).write(tmp_path / "solution.json")
    more = ["--solution", str(tmp_path / "solution.json")] if kind == "time" else []
    path = tmp_path / f"{kind}.png"
    assert main(["tables", "plot", table, "-o", str(path), "--kind", kind, *more]) == 0
    assert path.read_bytes()[:4] == PNG
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-o", "x.txt"], r"-o x\.txt: expected a name that ends in \.png"),
        (["-o", "x.png", "--kind", "time"], "--kind time: needs --solution"),
        (["-o", "x.png", "--solution", "s.json"], "--kind heatmap: takes no --solution"),
    ],
)
def test_bad_arguments_are_one_line(
    table: str, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(["tables", "plot", table, *more]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err)


def test_table_that_was_not_fitted_has_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plain.csv"
    LatencyTable([LatencyEntry(start=0, end=1, latency_ms=1.0)]).write(path)
    assert main(["tables", "plot", str(path), "-o", str(tmp_path / "p.png"), "--kind", "prediction"]) == 2
    assert "was not fitted to measured plans" in capsys.readouterr().err
    assert not (tmp_path / "p.png").exists()


@pytest.mark.parametrize("first", [0, 50, 999_990])
def test_heat_map_of_one_row_or_far_positions_is_small(tmp_path: Path, first: int) -> None:
    LatencyTable([LatencyEntry(start=first, end=first + 1, latency_ms=1.0)]).write(tmp_path / "far.csv")
    assert main(["tables", "plot", str(tmp_path / "far.csv"), "-o", str(tmp_path / "far.png")]) == 0
    assert (tmp_path / "far.png").read_bytes()[:4] == PNG


def test_more_positions_than_a_picture_shows_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = [LatencyEntry(start=m, end=m + 1, latency_ms=1.0) for m in (0, 900_000)]
    LatencyTable(ends, provenance=Provenance(chains=((0, 1), (900_000, 900_001)))).write(tmp_path / "wide.csv")
    assert main(["tables", "plot", str(tmp_path / "wide.csv"), "-o", str(tmp_path / "wide.png")]) == 2
    assert "spans the positions 0..900001, and a picture shows at most 2048" in capsys.readouterr().err
