"""``layerfold compress --precision int8``: every latency and every score is of networks in int8."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import layerfold as lf
from layerfold.cli import main
from layerfold.export import export_onnx
from layerfold.export.precision import has_quantised_nodes
from layerfold.quantise import OnnxModule

pytestmark = pytest.mark.usefixtures("measured_in_a_hurry")

MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    widths = (1, 16, 16, 16, 16)
    convs = [part for i, o in zip(widths, widths[1:]) for part in (nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o),
                                                                   nn.ReLU())]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
"""
_NEEDS_OPENVINO = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
BACKENDS = ["onnxruntime", pytest.param("openvino", marks=_NEEDS_OPENVINO)]
FILES = ("original.onnx", "original-int8.onnx", "model.onnx")


def _compress(folder: Path, *arguments: str) -> int:
    (folder / "model.py").write_text(MODEL)
    images = ("--input", "1x28x28", "--mean", "0.5", "--std", "0.5", "--data", "mnist5k", "--holdout", "0.1")
    short = ("--method", "recalibrate", "--importance-images", "32", "--max-kernel", "5", "--no-finetune", "--quiet")
    given = (*images, *short, "--fastest", "--formats", "onnx", "--precision", "int8", *arguments)
    return main(["compress", f"{folder / 'model.py'}:make", *given, "-o", str(folder / "out")])


def _answers(path: Path, data: lf.ImageData) -> NDArray[np.float32]:
    """Return what a file answers to the test images, in a session of its own."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: images.numpy()})[0] for images, _ in data.loader("test", 1)])


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_leaves_three_networks_and_compares_them(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _compress(tmp_path, "--backend", backend, "--calibration-images", "64") in (0, 3)
    said = capsys.readouterr().out
    assert "quantised original's" in said
    assert "in float32" in said
    assert _json(out / "latency.csv.json")["dtype"] == "int8"
    bench = _json(out / "bench.json")
    assert [each["name"] for each in bench["networks"]] == ["original-int8", "original", "compressed"]
    assert bench["networks"][0]["ratio"] == 1.0
    assert isinstance(bench["is_within_budget"], bool)
    run = _json(out / "run.json")["steps"]
    exported = run["export"]["result"]
    assert exported["quantised"]["num_images"] == exported["quantised_original"]["num_images"] == 64
    assert set(run["export"]["outputs"]) >= {"model.onnx", "original-int8.onnx"}
    page = (out / "report.html").read_text()
    assert "original-int8.onnx" in page
    assert "calibrated on 64 images" in page
    assert "faster than original-int8" in page

    # What scores.json says is what the files answer, in a runtime of its own.
    data = lf.open_data("mnist5k", input_shape=(1, 28, 28), mean=(0.5,), std=(0.5,), progress=False)
    scores = _json(out / "scores.json")
    assert set(scores) == {"original", "compressed", "original_int8", "compressed_float32"}
    labels = torch.cat([each for _, each in data.loader("test", 50)]).numpy()
    answers = {file: _answers(out / file, data) for file in FILES}
    expected = answers["original.onnx"].argmax(1)
    for file, name in zip(FILES, ("original", "original_int8", "compressed"), strict=True):
        assert has_quantised_nodes((out / file).read_bytes()) == (name != "original")
        found = answers[file].argmax(1)
        assert scores[name]["num_images"] == len(found) == 500
        # The original is scored in torch: an image may lie on the border of two classes.
        assert scores[name]["accuracy_pct"] == pytest.approx(100 * (found == labels).mean(), abs=0.2), file
        if name != "original":
            assert scores[name]["agreement_pct"] == pytest.approx(100 * (found == expected).mean(), abs=0.2), file
    difference = answers["original-int8.onnx"] - answers["original.onnx"]
    assert 0 < abs(difference).max() < 0.1 * abs(answers["original.onnx"]).max(), "the same network, rounded"


def test_a_quantised_file_that_is_gone_or_changed_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _compress(tmp_path) in (0, 3)
    before = {name: (out / name).read_bytes() for name in FILES}
    (out / "original-int8.onnx").write_bytes(before["original-int8.onnx"][:-9])
    (out / "model.onnx").unlink()
    capsys.readouterr()
    assert _compress(tmp_path) in (0, 3)
    assert "step 'export' is done again" in capsys.readouterr().err
    assert {name: (out / name).read_bytes() for name in FILES} == before, "quantising gives the same again"


def test_a_run_in_float32_is_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _compress(tmp_path) in (0, 3)
    capsys.readouterr()
    assert _compress(tmp_path, "--precision", "float32") == 2
    assert "precision was 'int8', now 'float32'" in capsys.readouterr().err


def test_more_calibration_images_than_there_are_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _compress(tmp_path, "--calibration-images", "100000") == 2
    said = capsys.readouterr().err.splitlines()
    assert "calibration_images=100000: there are only 4000 images" in said[-1]
    assert not (tmp_path / "out").exists(), "before anything is measured"


def test_batches_of_several_images_are_scored_whole(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    images = torch.randn(7, 1, 8, 8)
    whole = OnnxModule(export_onnx(model, images[:3]))
    torch.testing.assert_close(whole(images), model(images).detach(), rtol=1e-4, atol=1e-5)
