"""Backends on an NVIDIA GPU: they compute what the CPU computes, in CUDA graphs, and say what they ran on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from layerfold.export import build_engine, export_onnx, load_engine
from layerfold.graph import trace_network
from layerfold.profiler import get_backend, profile_network
from layerfold.profiler.backends.cuda import input_copies
from layerfold.profiler.backends.registry import backend_class
from layerfold.profiler.timing.measure import measure_runners

pytestmark = [pytest.mark.device, pytest.mark.skipif("not torch.cuda.is_available()", reason="no NVIDIA GPU here")]

INPUT = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
GPU = [
    ("torch", "cuda"),
    ("tensorrt", "cuda"),
    ("torch_tensorrt", "cuda"),
    ("onnxruntime", "cuda"),
    ("onnxruntime", "tensorrt"),
]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


@pytest.fixture(scope="module")
def onnx_bytes(model: nn.Module) -> bytes:
    return export_onnx(model, INPUT)


def backend_of(name: str, device: str, **options: object):
    try:
        if device not in backend_class(name).available_devices():
            pytest.skip(f"{name} has no {device} here")
    except ImportError as error:
        pytest.skip(str(error))
    return get_backend(name, device=device, **options)


@pytest.mark.parametrize(("name", "device"), GPU)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 3e-2)])
def test_backend_computes_what_the_cpu_computes(model, onnx_bytes, name, device, precision, tolerance) -> None:
    backend = backend_of(name, device, precision=precision)
    runner = backend.compile(onnx_bytes)
    with torch.no_grad():
        expected = model(INPUT).numpy()
    for _ in range(2):
        (found,) = runner.infer({"input": INPUT.numpy()})
        assert np.abs(found - expected).max() / np.abs(expected).max() < tolerance
        runner.run()
    runner.close()
    facts = backend.provenance()
    assert facts["device"].startswith(torch.cuda.get_device_name())
    assert facts["driver"]
    assert (facts["options"]["device"], facts["options"]["precision"]) == (device, precision)


def test_table_in_int8_is_filled_by_tensorrt(model) -> None:
    backend = backend_of("tensorrt", "cuda", precision="int8")
    net = trace_network(model, INPUT)
    table = profile_network(model, net, backend, cache=False, progress=False, cap_s=0.02, num_plans=2, batch=2)
    assert table.provenance.dtype == "int8"
    assert all(entry.latency_ms > 0 for entry in table.entries)
    assert not table.provenance.measurement["not_built"]


@pytest.mark.parametrize(("name", "device"), [("torch", "cuda")])
def test_bfloat16_is_close_where_the_gpu_has_it(model, onnx_bytes, name, device) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("the GPU has no bfloat16")
    runner = backend_of(name, device, precision="bf16").compile(onnx_bytes)
    with torch.no_grad():
        expected = model(INPUT).numpy()
    (found,) = runner.infer({"input": INPUT.numpy()})
    assert np.abs(found - expected).max() / np.abs(expected).max() < 5e-2
    runner.close()


@pytest.mark.parametrize(("name", "device"), GPU[:3])
def test_time_of_the_gpus_clock_agrees_with_the_policys(onnx_bytes, name, device) -> None:
    runner = backend_of(name, device).compile(onnx_bytes)
    wall_ms = measure_runners([runner.run])[0].median_ms
    device_ms = min(runner.device_ms(200) for _ in range(5))
    assert 0 < device_ms < 1.2 * wall_ms  # a pass by itself also waits for the GPU to say that it has finished
    runner.close()


def test_inputs_rotate_through_more_than_the_cache() -> None:
    cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
    for num_bytes in (cache_bytes // 20, cache_bytes, 10 * cache_bytes):
        assert input_copies(num_bytes) * num_bytes >= 2 * cache_bytes
    assert input_copies(1) == 64


def test_engine_is_loaded_back_and_equals_its_graph(onnx_bytes, tmp_path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt` is not installed")
    for precision, tolerance in (("float32", 1e-3), ("float16", 5e-2)):
        report = build_engine(onnx_bytes, tmp_path / "m.engine", precision=precision)
        assert report.check.method == "run"
        assert report.check.max_rel is not None
        assert report.check.max_rel <= tolerance
        assert json.loads((tmp_path / "m.engine.json").read_text())["check"]["method"] == "run"
        engine = load_engine(tmp_path / "m.engine")
        (found,) = engine.infer({"input": INPUT.numpy()})
        assert found.shape == (2, 5)
        engine.close()
