"""TensorRT engines are built without a GPU; only running them needs one."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from layerfold.errors import ExportError, OptionalDependencyError, UsageError
from layerfold.export import build_engine, export_network, export_onnx

INPUT = torch.randn(1, 3, 16, 16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 4, 3, stride=2)).eval()


@pytest.fixture(scope="module")
def onnx_bytes(model):
    return export_onnx(model, INPUT, fast=True)


@pytest.fixture
def tensorrt():
    return pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt` is not installed")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engine_is_built_for_three_compute_capabilities_with_its_json(tensorrt, onnx_bytes, precision, tmp_path):
    path = tmp_path / "deep" / "m.engine"
    report = build_engine(onnx_bytes, path, precision=precision, compute_capabilities=("8.6", "8.9", "12.0"))
    assert path.stat().st_size == report.engine_bytes > 1000
    facts = json.loads((tmp_path / "deep" / "m.engine.json").read_text())
    assert facts["precision"] == precision
    assert facts["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert facts["inputs"] == {"input": [1, 3, 16, 16]}
    assert facts["outputs"] == {"output": [1, 4, 7, 7]}
    assert facts["tensorrt_rtx"] == tensorrt.__version__
    assert facts["engine_path"] == "m.engine"


def test_half_precision_engine_holds_smaller_weights(tensorrt, tmp_path):
    wide = nn.Conv2d(64, 256, 3).eval()
    onnx_bytes = export_onnx(wide, torch.randn(1, 64, 8, 8), fast=True)
    full = build_engine(onnx_bytes, tmp_path / "full.engine")
    half = build_engine(onnx_bytes, tmp_path / "half.engine", precision="fp16")
    assert half.engine_bytes < 0.8 * full.engine_bytes


def test_export_network_adds_an_engine(tensorrt, model, tmp_path):
    report = export_network(model, tmp_path, ("onnx", "tensorrt"), example_input=INPUT, name="small")
    assert report.engine is not None
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "small.engine", "small.engine.json"}


def test_bad_arguments_and_graphs_are_named(tensorrt, onnx_bytes, tmp_path):
    with pytest.raises(UsageError, match=r"precision='int3' is not one of fp32, fp16"):
        build_engine(onnx_bytes, tmp_path / "m.engine", precision="int3")
    with pytest.raises(UsageError, match=r"compute_capability='8.7'.*choose from 7.5"):
        build_engine(onnx_bytes, tmp_path / "m.engine", compute_capabilities=("8.7",))
    with pytest.raises(ExportError, match="cannot read the ONNX graph"):
        build_engine(b"junk", tmp_path / "m.engine")
    assert not list(tmp_path.iterdir())


def test_without_the_package_the_extra_is_named(monkeypatch, model, onnx_bytes, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(OptionalDependencyError, match=r"layerfold\[tensorrt\]"):
        build_engine(onnx_bytes, tmp_path / "m.engine")
    report = export_network(model, tmp_path, ("tensorrt",), example_input=INPUT, skip_missing=True)
    assert "layerfold[tensorrt]" in report.skipped["tensorrt"]
    assert report.engine is None
