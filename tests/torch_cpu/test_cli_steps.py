"""Every step as a command, on a real network and real images, each reading the files of the one before."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layerfold.cli import main
from layerfold.merge import load_form
from layerfold.solver import Solution
from layerfold.tables import ImportanceTable, LatencyTable

_MODEL = ["timm:mobilenetv2_035", "--input", "1x32x32", "--num-classes", "10"]
# Fewer chains make the tests quick; every command that traces must be told the same.
_TRACED = [*_MODEL, *(part for number in (3, 4, 5, 6) for part in ("--exclude", f"blocks.{number}"))]


@dataclass(frozen=True)
class Result:
    """What one command ended with and printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Line:
    """Runs commands and keeps the files of the steps in one folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, *arguments: object) -> Result:
        self._capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of all steps, each made by its command."""
    made = tmp_path_factory.mktemp("steps")
    steps: list[list[object]] = [
        [
            "profile",
            *_TRACED,
            "--max-kernel",
            "5",
            "--method",
            "isolated",
            "--cap-s",
            "0.02",
            "--cache",
            made / "cache.sqlite",
            "-o",
            made / "latency.csv",
        ],
        [
            "importance",
            *_TRACED,
            "--data",
            "mnist5k",
            "--latency",
            made / "latency.csv",
            "--calibration-images",
            "32",
            "--holdout-images",
            "32",
            "-o",
            made / "importance.csv",
        ],
        [
            "solve",
            "--time-path",
            made / "latency.csv",
            "--imp-path",
            made / "importance.csv",
            "--speedup",
            "1.05",
            "-o",
            made / "solution.json",
        ],
        [
            "finetune",
            *_TRACED,
            "--data",
            "mnist5k",
            "--steps",
            "2",
            "--batch-size",
            "32",
            "--no-test",
            "--solution",
            made / "solution.json",
            "-o",
            made / "finetuned.safetensors",
        ],
        ["merge", made / "finetuned.safetensors", "-o", made / "merged.safetensors", "--onnx", made / "merged.onnx"],
    ]
    for step in steps:
        assert main([*map(str, step), "--json"] + ([] if step[0] in ("solve", "merge") else ["--quiet"])) == 0, step[0]
    return made


@pytest.fixture
def line(folder: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    return Line(folder, capsys)


def test_tables_go_together_and_say_where_they_come_from(line: Line) -> None:
    latency, importance = LatencyTable.read(line / "latency.csv"), ImportanceTable.read(line / "importance.csv")
    assert latency.provenance.network_hash == importance.provenance.network_hash != ""
    assert latency.provenance.model == importance.provenance.model == _MODEL[0]
    covered = {(entry.start, entry.end) for entry in importance.entries}
    assert covered == set(latency.useful_segments())


def test_finished_steps_leave_no_state_behind(line: Line) -> None:
    assert not (line / "importance.csv.journal").exists()
    assert not (line / "finetuned.safetensors.checkpoint").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["profile", *_TRACED, "-o", "latency.csv"],
        ["importance", *_TRACED, "--data", "mnist5k", "-o", "importance.csv"],
        ["finetune", *_TRACED, "--data", "mnist5k", "--solution", "solution.json", "-o", "finetuned.safetensors"],
        ["merge", "finetuned.safetensors", "-o", "merged.safetensors"],
        ["merge", "finetuned.safetensors", "-o", "new.safetensors", "--onnx", "merged.onnx"],
        ["export", "merged.safetensors", "-o", "."],
    ],
    ids=lambda arguments: f"{arguments[0]}-{arguments[-1]}",
)
def test_existing_output_is_refused_and_kept(line: Line, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(line.folder)
    before = {path.name: path.stat().st_mtime_ns for path in line.folder.iterdir()}
    result = line(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "is there already; name another file, or add --overwrite" in result.err
    assert {path.name: path.stat().st_mtime_ns for path in line.folder.iterdir()} == before


def test_dry_run_says_what_would_be_measured_and_writes_nothing(line: Line) -> None:
    before = sorted(path.name for path in line.folder.iterdir())
    result = line("profile", *_TRACED, "--dry-run", "--json")
    found = result.json()
    assert result.code == 0
    assert found["segments"] > found["distinct_shapes"] > found["layers"] / 2
    assert sorted(path.name for path in line.folder.iterdir()) == before


def test_profile_without_output_says_so(line: Line) -> None:
    result = line("profile", *_MODEL)
    assert result.code == 2
    assert "-o: name the table to write" in result.err


def test_verify_measures_against_prediction_and_speedup(line: Line) -> None:
    result = line(
        "verify",
        *_TRACED,
        "--solution",
        line / "solution.json",
        "--cap-s",
        "0.3",
        "--quiet",
        "--speedup",
        "0.1",
        "--latency",
        line / "latency.csv",
        "--json",
    )
    found = result.json()
    assert result.code == 0
    assert found["is_within_budget"] is True
    predicted_ms = LatencyTable.read(line / "latency.csv").predict_ms(Solution.read(line / "solution.json"))
    assert found["predicted_ms"] == pytest.approx(predicted_ms)


def test_table_of_another_input_is_refused(line: Line) -> None:
    model = ["timm:mobilenetv2_035", "--input", "1x64x64", "--num-classes", "10"]
    result = line("importance", *model, "--data", "mnist5k", "--latency", line / "latency.csv", "-o", line / "no.csv")
    assert result.code == 2
    assert "latency.csv: was measured for a network of hash" in result.err


def test_finetuned_form_remembers_what_was_done(line: Line) -> None:
    form = load_form(line / "finetuned.safetensors")
    assert form.kind == "train"
    assert form.recipe.model == _MODEL[0]
    assert (form.recipe.in_channels, form.recipe.num_classes, form.recipe.input_shape) == (1, 10, (1, 32, 32))
    assert form.facts["finetune"]["steps"] == 2
    assert form.facts["data"]["name"] == "mnist5k"


def test_merged_network_and_its_onnx_answer_as_the_finetuned_one(line: Line) -> None:
    import onnxruntime

    train, merged = load_form(line / "finetuned.safetensors"), load_form(line / "merged.safetensors")
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, got = train.module(x), merged.module(x)
    scale = float(expected.abs().max())
    assert float((expected - got).abs().max()) < 1e-4 * scale
    session = onnxruntime.InferenceSession(str(line / "merged.onnx"), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert float(np.abs(answer - expected.numpy()).max()) < 1e-4 * scale
    convs = len(train.net.segments_of(train.recipe.solution.merge_pos))
    assert convs < len(train.net.layers)
    assert merged.facts["merge"]["layers_after"] == convs


def test_merge_of_a_model_needs_no_finetuning(line: Line, tmp_path: Path) -> None:
    out = tmp_path / "plain.safetensors"
    result = line("merge", "--model", *_TRACED, "--solution", line / "solution.json", "-o", out, "--json")
    assert result.code == 0, result.err
    assert result.json()["difference"] < 1e-4
    assert load_form(out).kind == "deploy"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["merge"], "give a checkpoint of `layerfold finetune`, or --model and --solution"),
        (["merge", "--model", "timm:mobilenetv2_035"], "say what to merge with --solution"),
        (["merge", "finetuned.safetensors", "--solution", "s.json"], "--solution: goes with --model only"),
        (["merge", "merged.safetensors"], "merged.safetensors: is merged already"),
        (["merge", "latency.csv"], r"latency.csv: expected a .safetensors file"),
        (["export", "finetuned.safetensors"], "is in train form; give it to `layerfold merge` first"),
        (["export", "merged.safetensors", "--formats", "onxn"], "format 'onxn' is not known; choose from"),
    ],
)
def test_wrong_form_is_refused(
    line: Line, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(line.folder)
    out = tmp_path / "out" if arguments[0] == "export" else tmp_path / "out.safetensors"
    result = line(*arguments, "-o", out)
    assert result.code == 2
    assert said in result.err
    assert not out.exists()


def test_export_writes_a_checked_file(line: Line, tmp_path: Path) -> None:
    result = line("export", line / "merged.safetensors", "-o", tmp_path / "out", "--batch", "2", "--json")
    assert result.code == 0, result.err
    found = result.json()
    assert Path(found["onnx_path"]) == tmp_path / "out" / "merged.onnx"
    assert Path(found["onnx_path"]).is_file()
    assert found["check"]["max_rel"] <= 1e-4


def test_bench_takes_models_forms_and_onnx_files(line: Line) -> None:
    networks = [_MODEL[0], line / "merged.safetensors", line / "merged.onnx"]
    result = line("bench", *networks, *_MODEL[1:], "--cap-s", "0.2", "--target", "0.2", "--quiet", "--json")
    assert result.code == 0, result.err
    found = result.json()["networks"]
    assert [each["name"] for each in found] == [_MODEL[0], "merged", "merged (2)"]
    assert found[0]["ratio"] == 1
    assert all(each["low_ms"] <= each["median_ms"] <= each["high_ms"] for each in found)
    # A busy machine is said even with --quiet, and nothing else.
    assert all(each.startswith("layerfold: warning: ") for each in result.err.splitlines())


def test_bench_says_when_inputs_differ(line: Line) -> None:
    asked = ["bench", line / "merged.onnx", _MODEL[0], "--input", "1x64x64", "--cap-s", "0.1", "--target", "0.5"]
    result = line(*asked)
    assert result.code == 0
    assert "timm:mobilenetv2_035 takes 1x1x64x64 and merged 1x1x32x32" in result.err
    assert result.out.splitlines()[0].startswith("network")


def test_bench_of_what_is_no_network_is_refused(line: Line, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_text("this is no model")
    for network, said in (
        ("nothing.onnx", "no such file"),
        ("resnet18", "give a .onnx file"),
        (tmp_path / "broken.onnx", "is no ONNX model"),
    ):
        result = line("bench", network)
        assert result.code == 2
        assert said in result.err


def test_inspect_draws_and_lists_what_a_solution_merges(line: Line, tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "net.svg"
    result = line("inspect", *_TRACED, "--solution", line / "solution.json", "--svg", picture)
    assert result.code == 0, result.err
    assert "merged by the solution" in result.out
    assert "blocks.1.0.conv_dw" in result.out
    assert picture.read_text().startswith("<svg")
    assert line("inspect", *_TRACED, "--svg", picture).code == 2
