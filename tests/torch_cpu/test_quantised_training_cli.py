"""`layerfold finetune --precision int8`, what follows from it, and several processes that train for int8 together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import layerfold as lf
from layerfold.cli import main
from layerfold.merge import ACTIVATION_RANGES, load_form
from tests.torch_cpu.test_finetune_cli import FACTORY
from tests.torch_cpu.test_finetune_processes import launch


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    factory = tmp_path / "factory.py"
    factory.write_text(FACTORY)
    lf.Solution(act_pos=(2,), merge_pos=(2,)).write(tmp_path / "solution.json")
    made = ["finetune", f"{factory}:network", "--input", "3x8x8", "--data", f"{factory}:data"]
    made += ["--solution", str(tmp_path / "solution.json"), "--batch-size", "16", "--steps", "6", "--quiet"]
    return [*made, "--learning-rate", "0.02", "-o", str(tmp_path / "out.safetensors")]


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_network_trained_for_int8_is_exported_with_its_ranges(
    command: list[str], form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--precision", "int8", "--int8-form", form, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["finetune"]["steps"] == 6
    assert not list(tmp_path.glob("*.checkpoint*"))
    out = tmp_path / "out.safetensors"
    kept = load_form(out)
    assert kept.kind == form
    merged = tmp_path / "merged.safetensors"
    if form == "train":
        assert main(["merge", str(out), "-o", str(merged), "--onnx", str(tmp_path / "float.onnx")]) == 0
        assert "is in float32, and the network was trained for int8" in capsys.readouterr().err
    else:
        assert main(["merge", str(out), "-o", str(merged)]) == 2
        assert "is merged already" in capsys.readouterr().err
        merged = out
    assert main(["export", str(merged), "-o", str(tmp_path / "files"), "--precision", "int8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["check"]["max_rel"] < 0.1
    graph = onnx.load(report["onnx_path"]).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("QuantizeLinear") >= 3
    ranges = kept.module.meta[ACTIVATION_RANGES]
    (stored,) = [each for each in graph.initializer if each.name == "input.scale"]
    low, high = ranges["input_1"]
    assert onnx.numpy_helper.to_array(stored) == np.float32((high - low) / 255)


def test_network_that_was_not_trained_for_int8_still_needs_images(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    assert main(["merge", str(tmp_path / "out.safetensors"), "-o", str(tmp_path / "merged.safetensors")]) == 0
    capsys.readouterr()
    target = str(tmp_path / "files")
    assert main(["export", str(tmp_path / "merged.safetensors"), "-o", target, "--precision", "int8"]) == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--int8-share", "0.3"], "--int8-share: goes with --precision int8"),
        (["--int8-form", "deploy"], "--int8-form: goes with --precision int8"),
        (["--precision", "int8", "--save-both"], "--save-both: for --precision int8 one set of weights"),
        (["--precision", "int8", "--mixed-precision", "bf16"], "mixed_precision='bf16': must be no with"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(
    command: list[str], given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *given]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


_TRAINING = """
import json, sys
import torch
import layerfold as lf
from layerfold.finetune import ending_together
from layerfold.merge import ACTIVATION_RANGES
from tests.torch_cpu.small_training import images
from tests.torch_cpu.test_quantised_training import original, train_form
import torch.distributed as dist

with ending_together():
    model = original()
    form = train_form(model)
    report = lf.finetune_network(form, images(), teacher=model, precision="int8", steps=8, batch_size=16,
                                 learning_rate=0.01, progress=False)
    rank = dist.get_rank() if dist.is_initialized() else 0
    found = {"losses": [row.train_loss for row in report.history], "ranges": form.meta[ACTIVATION_RANGES],
             "sum": sum(float(each.double().sum()) for each in form.state_dict().values())}
    json.dump(found, open(sys.argv[1] + f".{rank}.json", "w"))
"""


def test_two_processes_train_for_int8_as_one_does(tmp_path: Path) -> None:
    script = tmp_path / "training.py"
    script.write_text(_TRAINING)
    for name, processes in (("one", 1), ("two", 2)):
        done = launch(str(script), str(tmp_path / name), processes=processes)
        assert done.returncode == 0, done.stderr
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one.0", "two.0", "two.1"))
    assert first["sum"] == second["sum"]
    assert first["ranges"] == second["ranges"]
    # A value between two levels may go either way, so that the runs are not equal to rounding.
    assert first["losses"] == pytest.approx(one["losses"], abs=0.01)
    for name, ends in one["ranges"].items():
        assert first["ranges"][name] == pytest.approx(ends, abs=0.05), name


def test_statistics_are_measured_where_no_step_is_in_float32(tmp_path: Path) -> None:
    """A form whose batch norm statistics are the original's has them measured where no step is in float32."""
    factory = tmp_path / "factory.py"
    factory.write_text(FACTORY)
    lf.Solution(act_pos=(2,), merge_pos=(2,)).write(tmp_path / "solution.json")
    command = ["finetune", f"{factory}:network", "--input", "3x8x8", "--data", f"{factory}:data", "--quiet"]
    command += ["--solution", str(tmp_path / "solution.json"), "--batch-size", "16", "--steps", "1", "--no-test"]
    command += ["--precision", "int8", "--int8-share", "1", "-o", str(tmp_path / "out.safetensors")]
    assert main(command) == 0
    module = load_form(tmp_path / "out.safetensors").module
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert all(bool((norm.running_mean != 0).all()) for norm in norms if norm.running_mean is not None)
