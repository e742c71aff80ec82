"""Files of earlier versions load, and give the answers that they gave (tests/data/README.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import layerfold as lf
from layerfold.cli import main
from layerfold.merge import load_form
from layerfold.profiler import get_backend

DATA = Path(__file__).resolve().parents[1] / "data"
VERSIONS = sorted(path for path in DATA.iterdir() if path.is_dir())
MODEL = ["network.py:build", "--input", "3x12x12", "--data", "network.py:images", "--batch-size", "16"]


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in which a command runs as its user ran it."""
    copy: Path = shutil.copytree(request.param, tmp_path / "files")
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def expected(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return found


def test_tables_give_the_same_frontier(folder: Path, expected: dict[str, Any]) -> None:
    latency = lf.LatencyTable.read(folder / "latency.csv")
    frontier = lf.solve_frontier(latency, lf.ImportanceTable.read(folder / "importance.csv"))
    assert latency.original_ms == expected["original_ms"]
    assert [
        {name: getattr(solution, name) for name in ("act_pos", "merge_pos", "predicted_ms", "importance")}
        for solution in frontier
    ] == [{**each, **{n: tuple(each[n]) for n in ("act_pos", "merge_pos")}} for each in expected["frontier"]]


def test_solution_is_the_same_to_the_byte(folder: Path) -> None:
    stored = (folder / "solution.json").read_bytes()
    lf.Solution.read(folder / "solution.json").write(folder / "again.json")
    assert (folder / "again.json").read_bytes() == stored
    tables = ["--time-path", "latency.csv", "--imp-path", "importance.csv", "--speedup", "1.25"]
    assert main(["solve", *tables, "-o", "solved.json"]) == 0
    assert json.loads((folder / "solved.json").read_text()) == json.loads(stored)


@pytest.mark.parametrize("form", ["finetuned", "merged"])
def test_forms_compute_the_same(folder: Path, expected: dict[str, Any], form: str) -> None:
    images = torch.linspace(-1, 1, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12)
    with torch.no_grad():
        found = load_form(folder / f"{form}.safetensors").module(images)
    torch.testing.assert_close(found, torch.tensor(expected[form]), rtol=1e-4, atol=1e-5)


def test_finished_run_goes_on_and_does_no_step_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_file = folder / "run" / "run.json"
    manifest = json.loads(run_file.read_text())
    # A run belongs to the machine that it measured on, and the noise of its images to that machine's processor.
    manifest["config"]["device"] = get_backend("onnxruntime").provenance()["device"]
    manifest["config"]["data"]["fingerprint"] = lf.open_data("network.py:images", input_shape=(3, 12, 12)).fingerprint
    run_file.write_text(json.dumps(manifest))
    how = ["--fastest", "--no-finetune", "--importance", "recalibrate", "--whole-plans", "0", "--formats", "onnx"]
    assert main(["compress", *MODEL, *how, "-o", "run"]) == 0
    steps = json.loads(run_file.read_text())["steps"]
    assert {name: step["date"] for name, step in steps.items()} == {
        name: step["date"] for name, step in manifest["steps"].items()
    }
    assert capsys.readouterr().err.count("done before") == len(steps)
    assert (folder / "run" / "report.html").is_file()
