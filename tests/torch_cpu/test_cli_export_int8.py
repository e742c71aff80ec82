"""``layerfold export --precision int8`` from the command line, and what `run` and `bench` do with the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from layerfold.cli import main

_FACTORY = """import torch
from torch import nn


def small(num_classes: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model's file, labelled images, and the model exported in float32."""
    folder = tmp_path_factory.mktemp("int8")
    (folder / "own.py").write_text(_FACTORY)
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (folder / "images" / split / name).mkdir(parents=True)
            for index in range(10):
                pixels = generator.integers(0, 128 + 64 * number, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "images" / split / name / f"{index}.png")
    Image.new("RGB", (24, 24)).save(folder / "black.png")
    assert main(["export", f"{folder}/own.py:small", "--input", "3x24x24", "-o", str(folder / "float")]) == 0
    return folder


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_model_becomes_one_quantised_file_that_run_and_bench_take(place, capsys, tmp_path) -> None:
    given = ["export", f"{place}/own.py:small", "--input", "3x24x24", "-o", tmp_path, "--precision", "int8"]
    code, out, err = call(capsys, *given, "--data", f"folder:{place}/images", "--calibration-images", 12, "--json")
    assert code == 0, err
    found = json.loads(out)["quantised"]
    assert found["num_images"] == 12
    assert found["check"]["num_images"] == 20
    assert found["check"]["agreement_pct"] >= 90
    assert found["check"]["float_accuracy_pct"] is not None
    written = tmp_path / "small.onnx"
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(written).graph.node}
    assert json.loads((tmp_path / "small.onnx.json").read_text())["preprocessing"]["crop_pct"] == 0.875
    image = place / "images" / "val" / "cat" / "1.png"
    code, out, err = call(capsys, "run", written, "--image", image, "--precision", "int8", "--json")
    assert code == 0, err
    code, float_out, _ = call(capsys, "run", place / "float" / "small.onnx", "--image", image, "--json")
    quantised, exact = (json.loads(text)["images"][0]["top"][0] for text in (out, float_out))
    assert abs(quantised["probability"] - exact["probability"]) < 0.05
    networks = [place / "float" / "small.onnx", written]
    code, out, err = call(capsys, "bench", *networks, "--cap-s", "0.05", "--json")
    assert code == 0, err
    code, out, err = call(capsys, "bench", *networks, "--cap-s", "0.05", "--precision", "int8")
    assert code == 0, err
    assert "small: quantised here with constant scales, for the time alone" in err


def test_an_onnx_file_is_quantised_with_images_without_labels(place, capsys, tmp_path) -> None:
    given = ["export", place / "float" / "small.onnx", "-o", tmp_path, "--precision", "int8"]
    code, out, err = call(capsys, *given, "--data", f"images:{place}/images", "--calibration", "minmax")
    assert code == 0, err
    assert "same class as in float32 for" in out
    assert "accuracy" not in out
    facts, stored = (json.loads((each / "small.onnx.json").read_text()) for each in (tmp_path, place / "float"))
    assert facts["preprocessing"]["mean"] == stored["preprocessing"]["mean"]
    # What is quantised already is taken as it is, for an engine.
    code, out, err = call(capsys, "export", tmp_path / "small.onnx", "-o", tmp_path / "again", "--precision", "int8")
    assert code == 2
    assert "is quantised already; give --formats tensorrt" in err


def test_an_engine_is_built_from_what_was_quantised(place, capsys, tmp_path) -> None:
    pytest.importorskip("tensorrt_rtx")
    given = ["export", place / "float" / "small.onnx", "-o", tmp_path, "--precision", "int8", "--json"]
    given += ["--formats", "onnx,tensorrt", "--compute-capability", "8.6,8.9,12.0"]
    code, out, err = call(capsys, *given, "--data", f"images:{place}/images")
    assert code == 0, err
    assert json.loads(out)["engine"]["precision"] == "int8"
    assert (tmp_path / "small.engine").stat().st_size > 0


def test_a_normalisation_that_nobody_said_is_named_and_one_that_flags_say_is_kept(place, capsys, tmp_path) -> None:
    given = ["export", f"{place}/own.py:small", "--input", "3x24x24", "-o"]
    code, _, err = call(capsys, *given, tmp_path / "guessed", "--precision", "int8", "--data", f"images:{place}/images")
    assert code == 0, err
    assert "does not say how its images are prepared; mean 0.485,0.456,0.406 and std 0.229,0.224,0.225" in err
    flags = ["--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.2"]
    code, _, err = call(capsys, *given, tmp_path / "said", *flags)
    assert code == 0, err
    assert "does not say" not in err
    facts = json.loads((tmp_path / "said" / "small.onnx.json").read_text())["preprocessing"]
    assert facts["mean"] == [0.5, 0.4, 0.3]
    assert facts["std"] == [0.2, 0.2, 0.2]


def test_bad_input_is_one_line_and_exit_code_2(place, capsys, tmp_path) -> None:
    float_file = place / "float" / "small.onnx"
    no_facts = tmp_path / "bare.onnx"
    no_facts.write_bytes(float_file.read_bytes())
    images, model = f"images:{place}/images", f"{place}/own.py:small"
    (tmp_path / "black").mkdir()
    for number in range(12):
        Image.new("RGB", (24, 24)).save(tmp_path / "black" / f"{number}.png")
    for arguments, words in (
        ([float_file, "--precision", "int8"], "--precision int8: needs images"),
        ([f"{place}/own.py:small", "--precision", "int8", "--input", "3x24x24"], "--precision int8: needs images"),
        ([float_file, "--precision", "int8", "--data", images, "--calibration-images", 99], "there are only 32 images"),
        ([float_file, "--precision", "int8", "--data", f"images:{tmp_path}/black"], "one colour"),
        ([float_file, "--precision", "int8", "--data", f"images:{tmp_path}/none"], "none"),
        ([no_facts, "--precision", "int8", "--data", images], "give --mean and --std"),
        ([float_file, "--formats", "tensorrt", "--data", images], "images are for --precision int8"),
        ([place / "own.py", "--precision", "int8", "--data", images], "own.py"),
        ([float_file, "--precision", "int8", "--data", images, "--batch", 4], "--batch 4: "),
        ([float_file, "--precision", "int8", "--data", images, "--num-classes", 3], "--num-classes: is for a model"),
        ([model, "--input", "3x24x24", "--calibration", "mse"], "--calibration: says how a float32 network"),
        ([model, "--input", "3x24x24", "--calibration-images", 5], "--precision float32 quantises nothing"),
        ([model, "--input", "3x24x24", "--weight-bits", 7], "--weight-bits: says"),
        ([model, "--input", "3x24x24", "--no-equalisation"], "--no-equalisation: says"),
    ):
        code, _, err = call(capsys, "export", *arguments, "-o", tmp_path / "out")
        assert code == 2, err
        assert words in err
        assert len([line for line in err.splitlines() if line.startswith("layerfold: error")]) == 1
    assert not (tmp_path / "out").exists()
