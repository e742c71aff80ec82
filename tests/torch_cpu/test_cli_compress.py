"""``layerfold compress``: its options reach the run, and it prints what became of it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import layerfold as lf
from layerfold.cli import build_parser, main
from layerfold.importance import WholeScores
from layerfold.pipeline import CompressOptions, plan_scores, preflight, steps

pytestmark = pytest.mark.usefixtures("measured_in_a_hurry")

MODEL = """
from torch import nn

def make():
    widths = (1, 16, 16, 16, 16, 16)
    convs = [part for i, o in zip(widths, widths[1:]) for part in (nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o),
                                                                   nn.ReLU())]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
"""


@pytest.mark.parametrize("wholes", [0, 5])
def test_options_of_the_command_line_are_those_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wholes: int
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    source, weights = f"{tmp_path / 'model.py'}:make", tmp_path / "weights.safetensors"
    save_file(lf.load_model(source).module.state_dict(), weights)
    given = [
        "--whole-plans",
        str(wholes),
        "--finalist-steps",
        "0",
        "--margin",
        "3",
        "--max-kernel",
        "5",
        "--max-growth",
        "6",
        "--score",
        "kl",
        "--importance",
        "recalibrate",
        "--importance-images",
        "32",
        "--alpha",
        "0.5",
        "--no-finetune",
        "--seed",
        "3",
        "--formats",
        "onnx",
    ]
    code = main(
        [
            "compress",
            source,
            "--weights",
            str(weights),
            "--input",
            "1x28x28",
            "--mean",
            "0.5",
            "--std",
            "0.5",
            "--data",
            "mnist5k",
            "--speedup",
            "1.001",
            *given,
            "--json",
            "--quiet",
            "-o",
            str(tmp_path / "out"),
        ]
    )
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["is_budget_met"] else 3)
    config = json.loads((tmp_path / "out/run.json").read_text())["config"]
    expected = CompressOptions(
        speedup=1.001,
        whole_plans=wholes,
        finalist_steps=0,
        margin=0.03,
        max_kernel=5,
        max_growth=6.0,
        importance_score="kl",
        importance_method="recalibrate",
        importance_images=32,
        alpha=0.5,
        finetune_epochs=0,
        seed=3,
        formats=("onnx",),
    ).as_config()
    assert {name: config[name] for name in expected} == json.loads(json.dumps(expected))
    looked_at = json.loads((tmp_path / "out/verification.json").read_text())["wholes"]
    assert looked_at["score"] == ("loss" if wholes else None)
    assert min(wholes, 1) <= len(looked_at["taken"]) <= wholes, "with 0 the solver's plan is taken as it is"
    if wholes:
        model = lf.load_model(source, weights=weights).module.eval()
        data = lf.open_data("mnist5k", input_shape=(1, 28, 28), mean=(0.5,), std=(0.5,), num_classes=10)
        score = WholeScores(model, lf.trace_network(model, torch.zeros(1, 1, 28, 28)), data, holdout_images=32, seed=3)
        expected = score(lf.Solution.read(tmp_path / "out/solution.json"))
        assert looked_at["taken"][-1] == pytest.approx(expected, abs=1e-6), "by the images and the seed asked for"


def test_defaults_of_the_command_line_are_those_of_the_options() -> None:
    options = CompressOptions(speedup=1.5)
    labelled = lf.open_data("mnist5k", input_shape=(1, 28, 28), num_classes=10)
    settled = options.settled(labelled)
    assert (settled.importance_score, settled.whole_plans) == ("loss", 24), "what docs/importance.md judges"
    assert settled.finetune_epochs == 3
    unlabelled = options.settled(replace(labelled, is_labelled=False))
    assert (unlabelled.importance_score, unlabelled.finetune_epochs) == ("kl", 3)
    given = vars(build_parser().parse_args(["compress", "m", "--data", "d", "--speedup", "1.5", "-o", "x"]))
    alike = (
        "whole_plans",
        "finalist_steps",
        "max_kernel",
        "max_growth",
        "batch",
        "alpha",
        "batch_size",
        "optimizer",
        "seed",
        "drop_layers",
        "merge_pooling",
        "backend",
        "importance_images",
        "importance_steps",
        "learning_rate",
    )
    assert {name: given[name] for name in alike} == {name: getattr(options, name) for name in alike}
    assert (given["score"], given["method"], given["epochs"]) == (
        options.importance_score,
        options.importance_method,
        options.finetune_epochs,
    )
    assert float(given["margin"]) == pytest.approx(100 * options.margin)


def test_everything_trained_and_scored_is_on_the_device_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def spied(module: object, name: str) -> None:
        real = getattr(module, name)

        def spy(*args: Any, **given: Any) -> Any:
            if "options" in given:
                seen[name] = given["options"].executor.devices
                given["options"] = replace(given["options"], executor="local")
            elif "run" in given:
                seen[name] = given["run"].device
                given["run"] = replace(given["run"], device="cpu")
            else:
                seen[name] = given.pop("device")
            return real(*args, **given)  # here, on the CPU

        monkeypatch.setattr(module, name, spy)

    spied(steps, "estimate_importance")
    spied(steps, "finetune_network")
    spied(plan_scores, "WholeScores")
    spied(plan_scores, "FinalistScores")
    monkeypatch.setattr(preflight, "check_device", seen.setdefault)
    moved: list[object] = []
    move = nn.Module.to

    def moving(module: nn.Module, *to: Any, **how: Any) -> nn.Module:
        moved.extend(to[:1])
        return move(module, *to, **how)

    monkeypatch.setattr(nn.Module, "to", moving)
    (tmp_path / "model.py").write_text(MODEL)
    loaded = lf.load_model(f"{tmp_path / 'model.py'}:make")
    data = lf.open_data("mnist5k", input_shape=(1, 28, 28), mean=(0.5,), std=(0.5,), num_classes=10)
    options = CompressOptions(
        speedup=1.001,
        importance_method="recalibrate",
        importance_images=32,
        max_kernel=5,
        finetune_epochs=1,
        batch_size=2000,
        formats=("onnx",),
        train_device="cpu:0",
        finalist_steps=1,
    )
    lf.compress_network(loaded, data, out=tmp_path / "out", options=options, progress=False)
    assert moved.count("cpu:0") == 2, "both networks, to be scored"
    assert moved[-1] == "cpu", "and back"
    assert seen == {
        "cpu:0": None,
        "estimate_importance": ("cpu:0",),
        "finetune_network": "cpu:0",
        "WholeScores": "cpu:0",
        "FinalistScores": "cpu:0",
    }
    moved.clear()
    lf.compress_network(
        loaded,
        data,
        out=tmp_path / "untrained",
        options=replace(options, finetune_epochs=0, finalist_steps=None),
        progress=False,
    )
    assert moved.count("cpu:0") == 3, "and the one whose statistics are measured again"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_missing_shows_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    code = main(
        [
            "compress",
            f"{tmp_path / 'model.py'}:make",
            "--input",
            "1x28x28",
            "--data",
            "mnist5k",
            "--mean",
            "0.5",
            "--std",
            "0.5",
            "--speedup",
            "1.2",
            "--train-device",
            "cuda",
            "-o",
            str(tmp_path / "out"),
        ]
    )
    said = capsys.readouterr().err
    assert "device='cuda': torch finds no CUDA device" in said
    assert code == 4
    assert not (tmp_path / "out").exists()


def _compress(folder: Path, *arguments: str) -> int:
    (folder / "model.py").write_text(MODEL)
    images = ("--input", "1x28x28", "--mean", "0.5", "--std", "0.5", "--data", "mnist5k")
    short = ("--importance", "taylor", "--importance-images", "32", "--max-kernel", "5", "--no-finetune", "--quiet")
    given = (*images, *short, "--fastest", "--formats", "onnx", *arguments)
    return main(["compress", f"{folder / 'model.py'}:make", *given, "-o", str(folder / "out")])


def test_a_backend_is_opened_as_it_was_asked_for_and_a_run_stays_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = ("--backend", "torch", "--backend-option", "compile_mode=none")
    chosen = (*backend, "--device", "cpu", "--layout", "channels_last", "--precision", "float32")
    assert _compress(tmp_path, *chosen) in (0, 3)
    config = json.loads((tmp_path / "out/run.json").read_text())["config"]
    assert config["layout"] == "channels_last"
    assert (config["backend_device"], config["precision"]) == ("cpu", "float32")
    assert config["backend_options"] == {"compile_mode": "none"}
    measured = json.loads((tmp_path / "out/latency.csv.json").read_text())
    assert measured["backend_options"]["layout"] == "channels_last"
    assert measured["dtype"] == "float32"
    page = (tmp_path / "out/report.html").read_text()
    assert ", torch, 1 thread, channels_last" in page
    assert "compile_mode none" in page
    capsys.readouterr()
    assert _compress(tmp_path, *backend, "--layout", "channels_last") in (0, 3), "the same run"
    assert _compress(tmp_path, *backend, "--device", "cpu", "--precision", "float32") == 2
    assert "layout was 'channels_last'" in capsys.readouterr().err


def test_halves_are_measured_as_halves(tmp_path: Path) -> None:
    assert _compress(tmp_path, "--precision", "float16") in (0, 3)
    measured = json.loads((tmp_path / "out/latency.csv.json").read_text())
    assert (measured["dtype"], measured["backend_options"]["precision"]) == ("float16", "float16")


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT is not installed")
def test_an_engine_has_the_precision_that_was_measured(tmp_path: Path) -> None:
    assert _compress(tmp_path, "--precision", "float16", "--formats", "onnx,tensorrt") in (0, 3)
    assert json.loads((tmp_path / "out/model.engine.json").read_text())["precision"] == "float16"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["--precision", "int8", "--backend", "torch"],
            2,
            "precision='int8': device 'cpu' of backend 'torch' lacks it",
        ),
        (["--calibration-images", "9"], 2, "calibration_images=9: calibrate a network in int8; give precision='int8'"),
        (["--precision", "bf16", "--formats", "onnx,tensorrt"], 2, "engines are not built in bfloat16"),
        (["--precision", "flaot16"], 2, "nearest: float16"),
        (["--device", "tpu"], 2, "device='tpu' is not one of backend 'onnxruntime'"),
        (["--layout", "channels_last"], 2, "lacks it; choose from nchw"),
        (["--backend-option", "compile_mode"], 2, "--backend-option compile_mode: give NAME=VALUE"),
        (["--backend-option", "speed=9"], 2, "speed"),
        (["--backend-option", "device=cpu"], 2, "--backend-option device=cpu: device has an argument of its own"),
        (["--backend-option", "precision=int8"], 2, "give --precision int8"),
        (["--backend-option", "name=torch"], 2, "give --backend torch"),
        (["--threads", "4000"], 2, "threads"),
    ],
)
def test_what_a_backend_lacks_shows_before_any_work(
    arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _compress(tmp_path, *arguments) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limits", [["--max-kernel", "3"], ["--max-growth", "0.01"], ["--max-kernel", "1"]])
def test_limits_that_leave_nothing_to_merge_are_named_before_any_work(
    limits: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _compress(tmp_path, *limits) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"{limits[0][2:].replace('-', '_')}={limits[1]}" in said
    assert "no two layers of this network may be merged within these limits; raise them" in said
    assert not (tmp_path / "out").exists()


def test_a_table_of_a_network_with_nothing_to_merge_holds_its_layers(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    table = tmp_path / "latency.csv"
    source = f"{tmp_path / 'model.py'}:make"
    assert main(["profile", source, "--input", "1x28x28", "--max-kernel", "3", "-o", str(table), "--quiet"]) == 0
    found = lf.LatencyTable.read(table)
    assert [(entry.start, entry.end) for entry in found.entries] == [(m, m + 1) for m in range(5)]
    assert found.original_ms == pytest.approx(
        found.provenance.fixed_ms + sum(entry.latency_ms for entry in found.entries)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cpu"}, "'device' has an argument of its own"),
        ({"threads": 2}, "'threads' has an argument of its own"),
        ({"cache": Path("x")}, "give texts, numbers, booleans or None"),
        ({1: 2}, "give texts, numbers, booleans or None"),
        ("compile_mode=none", "backend_options"),
    ],
)
def test_options_of_a_backend_that_no_run_could_keep_are_refused(options: Any, said: str) -> None:
    with pytest.raises(lf.UsageError, match=said):
        CompressOptions(speedup=1.5, backend_options=options)


def test_the_usual_said_outright_is_the_usual() -> None:
    usual = CompressOptions(speedup=1.5).as_config()
    for said in ({"device": "cpu"}, {"precision": "float32"}, {"layout": "nchw"}, {"backend_options": {}}):
        assert CompressOptions(speedup=1.5, **said).as_config() == usual
    assert CompressOptions(speedup=1.5, precision="fp16").as_config()["precision"] == "float16"


def test_what_a_backend_does_anyway_is_written_down() -> None:
    known = CompressOptions(speedup=1.5).as_config()
    expected = {"backend_device": "cpu", "precision": "float32", "layout": "nchw", "backend_options": {}}
    assert expected.items() <= known.items()
    assert "device" not in known, "that is what the machine calls it"
