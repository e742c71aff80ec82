"""``layerfold solve --verify`` and ``verify``: real networks are built and measured; what is not met ends 3."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from layerfold.cli import main
from layerfold.solver import Solution

MODEL = """
from torch import nn

def make():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 48, 1), nn.ReLU(),
              nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.ReLU(), nn.Conv2d(48, 8, 1)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.num_classes = 8
    return net

def normed():
    net = make()
    net[0] = nn.Sequential(net[0], nn.BatchNorm2d(8))
    return net
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("solve")
    (path / "model.py").write_text(MODEL)
    arguments = ["--input", "3x32x32", "--no-cache", "--cap-s", "0.02", "--quiet", "-o", str(path / "time.csv")]
    assert main(["profile", f"{path / 'model.py'}:make", *arguments]) == 0
    rows = ["id,st,end,st_act,end_act,train_loss,train_acc,val_loss,val_acc"]
    for index, line in enumerate((path / "time.csv").read_text().splitlines()[1:]):
        cells = line.split(",")
        start, end = int(cells[1]), int(cells[2])
        rows.append(f"{index},{start},{end},1,{int(end < 4)},0,0,0,{-(end - start - 1):g}")
    (path / "imp.csv").write_text("\n".join(rows) + "\n")
    return path


def solve(folder: Path, *more: str) -> int:
    tables = ["--time-path", str(folder / "time.csv"), "--imp-path", str(folder / "imp.csv")]
    return main(["solve", *tables, "--verify", f"{folder / 'model.py'}:make", *more])


def test_budget_that_everything_meets_keeps_the_original(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert solve(folder, "--budget", "1000ms", "--json", "-o", str(folder / "solution.json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["solutions"][0]["merge_pos"] == [1, 2, 3, 4]
    assert found["verification"]["is_within_budget"] is True
    assert found["verification"]["batch_norm"] == "none"
    written = json.loads((folder / "solution.json").read_text())
    assert written["measured_ms"] == found["verification"]["measured_ms"]


def test_verifying_says_where_the_statistics_come_from(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Solution(act_pos=(1, 2, 3), merge_pos=(1, 2, 3, 4)).write(tmp_path / "solution.json")
    verify = [
        "verify",
        f"{folder / 'model.py'}:normed",
        "--input",
        "3x32x32",
        "--solution",
        str(tmp_path / "solution.json"),
        "--cap-s",
        "0.02",
        "--quiet",
    ]
    assert main(verify) == 0
    assert re.search("BatchNorm +statistics are the original's", capsys.readouterr().out)
    assert main([*verify, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch_norm"] == "original"


def test_speedup_out_of_reach_ends_3_and_names_what_can_be_met(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solve(folder, "--speedup", "1000", "-o", str(folder / "none.json")) == 3
    assert "error: budget 1000x" in capsys.readouterr().err
    assert not (folder / "none.json").exists()


def test_solution_over_the_budget_ends_3_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "given.json").write_text('{"act_pos": [3, 4], "merge_pos": [3, 4]}')
    assert (
        main(
            [
                "verify",
                f"{folder / 'model.py'}:make",
                "--input",
                "3x32x32",
                "--solution",
                str(folder / "given.json"),
                "--cap-s",
                "0.1",
                "--quiet",
                "--budget",
                "1us",
            ]
        )
        == 3
    )
    captured = capsys.readouterr()
    assert "NOT met" in captured.out
    assert "layerfold: over budget: " in captured.err


def test_plans_are_scored_as_wholes_on_images(folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = ["--data", f"images:{pictures}"]
    assert solve(folder, "--budget", "1000ms", *images, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["wholes"] == [pytest.approx(0, abs=1e-6)], "the original loses nothing, and nothing is better"
    assert solve(folder, "--budget", "1000ms", *images, "--importance-images", "4") == 0
    assert "nats before any training" in capsys.readouterr().out
    assert solve(folder, "--budget", "1000ms", *images, "--finalist-steps", "5") == 2
    assert "has no" in capsys.readouterr().err
    assert solve(folder, "--budget", "1000ms", "--finalist-steps", "5") == 2
    assert "--finalist-steps 5: are of --data" in capsys.readouterr().err
    tables = ["--time-path", str(folder / "time.csv"), "--imp-path", str(folder / "imp.csv")]
    assert main(["solve", *tables, "--speedup", "1.2", "--finalist-steps", "5"]) == 2
    assert "--finalist-steps 5: plans are scored with --verify MODEL" in capsys.readouterr().err
    assert solve(folder, "--budget", "1000ms", *images, "--finalist-steps", "5", "--whole-plans", "0") == 2
    assert "--finalist-steps 5: choose among plans that --whole-plans led to" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(24):
        Image.effect_noise((32, 32), 10 + index).convert("RGB").save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("timm:mobilenetv2_050", ["--speedup", "1.2"], "random weights have no score to lose; give --weights"),
        (None, ["--speedup", "1.2"], "plans are scored with --verify MODEL"),
        ("timm:mobilenetv2_050", ["--speedup", "1.2", "--whole-plans", "-1"], "--whole-plans -1: must be at least 0"),
        (
            "timm:mobilenetv2_050",
            ["--speedup", "1.2", "--finalist-steps", "-1"],
            "--finalist-steps -1: must be at least 0",
        ),
    ],
)
def test_images_without_what_they_are_for_are_refused(
    folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str], model: str | None, more: list[str], message: str
) -> None:
    tables = ["--time-path", str(folder / "time.csv"), "--imp-path", str(folder / "imp.csv")]
    verify = [] if model is None else ["--verify", model]
    assert main(["solve", *tables, *verify, *more, "--data", f"images:{pictures}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--speedup", "1.2", "--importance-images", "9"], "--importance-images 9: are of --data"),
        (["--knee"], "give one --latency and one --budget or --speedup"),
        (["--speedup", "1.2", "--risk", "0.05"], "--risk 0.05: speaks of predictions"),
        (["--speedup", "1.2", "--budget-of", "segments"], "--budget-of segments: --verify measures end to end"),
        (["--speedup", "1.2", "--margin", "90"], "--margin 90"),
    ],
)
def test_what_does_not_go_with_measuring_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert solve(folder, *more) == 2
    assert message in capsys.readouterr().err
