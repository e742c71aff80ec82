"""``layerfold solve`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from layerfold.cli import main
from layerfold.solver import Solution
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, Provenance

SEGMENTS = [(i, j) for i in range(8) for j in range(i + 1, min(i + 3, 8) + 1)]


@pytest.fixture
def tables(tmp_path: Path) -> list[str]:
    """Write a latency and an importance table; return the arguments that name them."""
    LatencyTable(
        [
            LatencyEntry(
                start=i,
                end=j,
                latency_ms=(1.0 + 0.1 * ((3 * i + j) % 5)) * (j - i) ** 0.4,
                spread_ms=0.02,
                signature=f"8x16x16 conv:o8,k{2 * (j - i) + 1}x3,s1x1,p1.1.1.1,d1x1,g1 act:relu",
            )
            for i, j in SEGMENTS
        ],
        provenance=Provenance(kind="latency", model="net", network_hash="abc", fixed_ms=0.5),
    ).write(tmp_path / "time.csv")
    ImportanceTable(
        [
            ImportanceEntry(
                start=i, end=j, start_act=1, end_act=1, importance=-0.3 * (j - i - 1) - 0.01 * ((i + 2 * j) % 7)
            )
            for i, j in SEGMENTS
        ]
    ).write(tmp_path / "imp.csv")
    return ["solve", "--time-path", str(tmp_path / "time.csv"), "--imp-path", str(tmp_path / "imp.csv")]


def solved(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_budget_is_kept_and_the_file_written(
    tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "solution.json"
    assert main([*tables, "--budget", "7.5ms", "-o", str(out)]) == 0
    solution = Solution.read(out)
    assert solution.budget_ms == 7.5
    assert LatencyTable.read(tables[2]).predict_ms(solution) == solution.predicted_ms <= 7.5
    printed = capsys.readouterr()
    assert "budget 7.5 ms: predicted" in printed.out
    assert "optimal" in printed.out
    assert f"wrote {out}" in printed.err


@pytest.mark.parametrize("text", ["7.5", "7.5ms", "0.0075s", "7500us"])
def test_budgets_have_units(tables: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = solved(capsys, *tables, "--budget", text)
    assert answer["solutions"][0]["budget_ms"] == pytest.approx(7.5)


def test_several_budgets_give_several_files(
    tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tables, "--budget", "7.5", "--budget", "8", "--speedup", "1.1", "-o", str(tmp_path / "s.json")]
    answer = solved(capsys, *arguments)
    assert len(answer["solutions"]) == 3
    for number, solution in enumerate(answer["solutions"], start=1):
        assert json.loads((tmp_path / f"s-{number}.json").read_text()) == solution


def test_budget_of_segments_leaves_the_fixed_part_out(tables: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    whole = solved(capsys, *tables, "--budget", "7.5")
    bare = solved(capsys, *tables, "--budget", "7.0", "--budget-of", "segments")
    assert bare["solutions"][0]["merge_pos"] == whole["solutions"][0]["merge_pos"]


def test_unreachable_budget_exits_3_and_names_one_that_is_reachable(
    tables: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tables, "--budget", "1.0"]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    named = printed.err.split("least reachable latency is ")[1].split(" ms")[0]
    assert main([*tables, "--budget", named]) == 0


def test_explain_says_what_was_merged_and_what_is_next(tables: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tables, "--budget", "7.5", "--explain"]) == 0
    out = capsys.readouterr().out
    for word in ("layers", "saved ms", "importance", "one conv", "next better point"):
        assert word in out
    answer = solved(capsys, *tables, "--budget", "7.5", "--explain")
    assert answer["explanations"][0]["next"]["importance"] > answer["solutions"][0]["importance"]


def test_frontier_and_plot_are_written(tables: list[str], tmp_path: Path) -> None:
    for name in ("f.csv", "f.json"):
        assert main([*tables, "--knee", "--frontier", str(tmp_path / name)]) == 0
    assert main([*tables, "--budget", "7.5", "--plot", str(tmp_path / "f.png")]) == 0
    assert len((tmp_path / "f.csv").read_text().splitlines()) - 1 == len(
        json.loads((tmp_path / "f.json").read_text())["points"]
    )
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_alternatives_differ_and_fall_in_importance(tables: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = solved(capsys, *tables, "--budget", "7.5", "--alternatives", "4")["solutions"]
    assert len({tuple(each["act_pos"]) for each in found}) == 4
    importances = [each["importance"] for each in found]
    assert importances == pytest.approx(sorted(importances, reverse=True))
    assert all(each["predicted_ms"] <= 7.5 for each in found)


def test_risk_shows_what_it_costs(tables: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tables, "--budget", "7.5", "--risk", "0.05"]) == 0
    assert "risk 0.05: costs" in capsys.readouterr().out
    answer = solved(capsys, *tables, "--budget", "7.5", "--risk", "0.05")
    assert answer["without_risk"][0]["importance"] >= answer["solutions"][0]["importance"]


@pytest.mark.parametrize(
    ("flags", "keeps"),
    [
        (["--max-merged", "2"], lambda s: sum(e["end"] - e["start"] > 1 for e in s["segments"]) <= 2),
        (["--max-kernel", "5"], lambda s: all(e["end"] - e["start"] <= 2 for e in s["segments"])),
        (["--keep-act", "3-4"], lambda s: {3, 4} <= set(s["act_pos"])),
        (
            ["--never-merge", "5"],
            lambda s: {"start": 4, "end": 5} in [{"start": e["start"], "end": e["end"]} for e in s["segments"]],
        ),
        (["--max-params", "4100"], lambda s: s["costs"]["params"] <= 4100),
        (["--max-macs", "1000000"], lambda s: s["costs"]["macs"] <= 1e6),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_limits_hold(tables: list[str], flags: list[str], keeps: object, capsys: pytest.CaptureFixture[str]) -> None:
    solution = solved(capsys, *tables, "--budget", "8.2", *flags)["solutions"][0]
    assert keeps(solution)  # type: ignore[operator]
    assert solution["predicted_ms"] <= 8.2


def test_two_devices_need_two_budgets_and_keep_both(
    tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = LatencyTable(
        [LatencyEntry(start=i, end=j, latency_ms=(0.5 + 0.1 * ((i + j) % 3)) * (j - i) ** 0.6) for i, j in SEGMENTS]
    )
    second.write(tmp_path / "phone.csv")
    arguments = [*tables, "--budget", "8ms", "--time-path", str(tmp_path / "phone.csv"), "--budget", "4.1ms"]
    solution = solved(capsys, *arguments)["solutions"][0]
    assert solution["predicted_ms"] <= 8.0
    assert solution["costs"]["latency_2_ms"] <= 4.1
    assert main([*tables, "--time-path", str(tmp_path / "phone.csv"), "--budget", "8"]) == 2
    assert "expected one for each --latency" in capsys.readouterr().err


def test_epsilon_answers_say_how_near_they_come(tables: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    exact = solved(capsys, *tables, "--budget", "7.5")["solutions"][0]
    near = solved(capsys, *tables, "--budget", "7.5", "--epsilon", "0.01")["solutions"][0]
    assert exact["gap"] == 0.0
    assert near["importance"] + near["gap"] >= exact["importance"] - 1e-9


def test_published_tables_are_solved(shared_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time_path = shared_path / "seed_tables" / "mbv2_1.0" / "time_fish_gpu1_1228.csv"
    with (tmp_path / "imp.csv").open("w") as file:
        file.write("id,st,end,st_act,end_act,train_loss,train_acc,val_loss,val_acc\n")
        for number, entry in enumerate(LatencyTable.read(time_path).entries):
            loss = -0.1 * (entry.end - entry.start - 1)
            file.write(f"{number},{entry.start},{entry.end},1,1,0,0,0,{loss}\n")
    arguments = ["solve", "--time-path", str(time_path), "--imp-path", str(tmp_path / "imp.csv"), "--budget", "25.0"]
    solution = solved(capsys, *arguments)["solutions"][0]
    assert solution["predicted_ms"] <= 25.0
    assert solution["status"] == "optimal"


def test_solving_imports_neither_torch_nor_scipy_nor_pandas(tables: list[str]) -> None:
    code = (
        "import sys; from layerfold.cli import main; code = main(sys.argv[1:]);"
        "heavy = [m for m in ('torch', 'scipy', 'pandas', 'matplotlib') if m in sys.modules];"
        "print(heavy, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *tables, "--budget", "7.5", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
