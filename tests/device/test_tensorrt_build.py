"""TensorRT engines are built without a GPU; only running them needs one."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest
import timm
import torch
from torch import nn

from layerfold.errors import DeviceUnavailableError, ExportError, OptionalDependencyError, UsageError
from layerfold.export import build_engine, export_network, export_onnx, load_engine
from layerfold.export.engine import _TimingCache, compile_engine
from layerfold.export.engine_check import check_header
from layerfold.export.trt_library import library_logger
from layerfold.graph import trace_network
from layerfold.merge import build_train_form, merge_network
from layerfold.solver import Solution
from tests.oracles.random_plans import random_solutions
from tests.quick_onnx import quick_onnx

INPUT = torch.randn(1, 3, 16, 16)
without_gpu = pytest.mark.skipif("torch.cuda.is_available()", reason="here the GPU is there")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), nn.Conv2d(8, 4, 3, stride=2)).eval()


@pytest.fixture(scope="module")
def onnx_bytes(model):
    return quick_onnx(model, INPUT)


@pytest.fixture
def tensorrt():
    return pytest.importorskip("tensorrt_rtx", reason="the extra `tensorrt` is not installed")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_engine_is_built_for_three_compute_capabilities_with_its_json(tensorrt, onnx_bytes, precision, tmp_path):
    path = tmp_path / "deep" / "m.engine"
    report = build_engine(
        onnx_bytes,
        path,
        precision=precision,
        compute_capabilities=("8.6", "8.9", "12.0"),
        preprocessing={"mean": [0.5] * 3},
    )
    content = path.read_bytes()
    assert len(content) == report.engine_bytes > 1000
    facts = json.loads((tmp_path / "deep" / "m.engine.json").read_text())
    assert facts["precision"] == {"fp32": "float32", "fp16": "float16"}[precision]
    assert facts["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert facts["inputs"] == {"input": {"shape": [1, 3, 16, 16], "dtype": "float32"}}
    assert facts["outputs"] == {"output": {"shape": [1, 4, 7, 7], "dtype": "float32"}}
    assert (facts["library"], facts["versions"]["tensorrt_rtx"]) == ("tensorrt_rtx", tensorrt.__version__)
    assert facts["options"] == {"tf32": False, "optimization_level": 3, "timing_cache": None}
    assert facts["onnx_sha256"] == hashlib.sha256(onnx_bytes).hexdigest()
    assert facts["engine_sha256"] == hashlib.sha256(content).hexdigest()
    assert facts["engine_path"] == "m.engine"
    assert facts["preprocessing"] == {"mean": [0.5, 0.5, 0.5]}
    assert facts["check"]["method"] in ("header", "run")
    assert facts["build_s"] > 0


def test_merged_mobilenet_is_built_in_both_precisions_for_three_compute_capabilities(tensorrt, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv2_100", pretrained=False).eval()
    example = torch.randn(1, 3, 224, 224)
    net = trace_network(network, example)
    act_pos, merge_pos = random_solutions(net, net.candidates(), 5, seed=1)[2]
    assert len(net.segments_of(merge_pos)) < len(net.layers)
    solution = Solution(act_pos=list(act_pos), merge_pos=list(merge_pos))
    merged_bytes = export_onnx(merge_network(build_train_form(network, net, solution).eval()), example)
    sizes = {}
    for precision in ("fp32", "fp16"):
        report = build_engine(
            merged_bytes,
            tmp_path / f"{precision}.engine",
            precision=precision,
            compute_capabilities=("8.6", "8.9", "12.0"),
        )
        assert report.inputs["input"]["shape"] == [1, 3, 224, 224]
        assert report.outputs["output"]["shape"] == [1, 1000]
        sizes[precision] = report.engine_bytes
    assert sizes["fp16"] < 0.7 * sizes["fp32"]


def test_half_precision_engine_holds_smaller_weights(tensorrt, tmp_path):
    wide = nn.Conv2d(64, 256, 3).eval()
    onnx_bytes = quick_onnx(wide, torch.randn(1, 64, 8, 8))
    full = build_engine(onnx_bytes, tmp_path / "full.engine")
    half = build_engine(onnx_bytes, tmp_path / "half.engine", precision="fp16")
    assert half.engine_bytes < 0.8 * full.engine_bytes


def test_int8_engine_is_built_from_a_quantised_graph_only(tensorrt, onnx_bytes, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        batches = iter([{"input": INPUT.numpy()}])

        def get_next(self):
            return next(self.batches, None)

    (tmp_path / "full.onnx").write_bytes(onnx_bytes)
    quantize_static(
        tmp_path / "full.onnx",
        tmp_path / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    report = build_engine((tmp_path / "int8.onnx").read_bytes(), tmp_path / "m.engine", precision="int8")
    assert report.precision == "int8"
    with pytest.raises(UsageError, match="precision='int8' needs a graph with QuantizeLinear"):
        build_engine(onnx_bytes, tmp_path / "n.engine", precision="int8")


def test_int8_graphs_that_a_table_is_made_of_are_built(tensorrt):
    from layerfold.profiler.backends.to_time import quantised_to_time
    from layerfold.profiler.graphs.assemble import assemble_network
    from layerfold.profiler.graphs.outside import outside_graph
    from layerfold.profiler.graphs.segment import segment_onnx

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=10).eval()
    net = trace_network(model, torch.randn(1, 3, 64, 64))
    outside = outside_graph(model, net)
    ends = {*outside.network_inputs, *outside.outputs}
    whole = assemble_network(net, outside, net.original_act_pos, range(1, len(net.layers) + 1))  # weights as rules
    graphs = {
        "whole": quantised_to_time(whole, symmetric=True),
        "part": quantised_to_time(segment_onnx(net.segment(0, 3)), symmetric=True, is_part=True),
        "outside": quantised_to_time(outside.onnx_bytes, symmetric=True, is_part=True, float_ends=ends),
    }
    built = {
        name: compile_engine(graph, precision="int8", compute_capabilities=("8.6",)) for name, graph in graphs.items()
    }
    dtypes = {
        name: {put["dtype"] for put in (*each.inputs.values(), *each.outputs.values())} for name, each in built.items()
    }
    assert dtypes == {"whole": {"float32"}, "part": {"int8"}, "outside": {"int8", "float32"}}
    with pytest.raises(UsageError, match="precision='bfloat16': engines are built in float32, float16 or int8"):
        compile_engine(whole, precision="bf16")


def test_export_network_adds_an_engine_and_how_images_are_prepared(tensorrt, model, tmp_path):
    report = export_network(
        model, tmp_path, ("onnx", "tensorrt"), example_input=INPUT, name="small", preprocessing={"mean": [0.1] * 3}
    )
    assert report.engine is not None
    assert {path.name for path in tmp_path.iterdir()} == {
        "small.onnx",
        "small.onnx.json",
        "small.engine",
        "small.engine.json",
    }
    for name in ("small.onnx.json", "small.engine.json"):
        assert json.loads((tmp_path / name).read_text())["preprocessing"] == {"mean": [0.1] * 3}


def test_timing_cache_is_kept_in_a_file_and_read_again(tensorrt, tmp_path):
    # tensorrt_rtx has the whole interface of timing caches, but no use for them; tensorrt itself needs a GPU to build.
    logger = library_logger(tensorrt)
    builder = tensorrt.Builder(logger)
    path = tmp_path / "folder" / "timing.cache"
    states = []
    for _ in range(2):
        cache = _TimingCache(path, builder.create_builder_config())
        cache.save()
        states.append(cache.state)
        assert path.stat().st_size > 0
    assert states == ["new", "reused"]
    assert [each.name for each in path.parent.iterdir()] == ["timing.cache"]
    path.unlink()
    path.mkdir()
    with pytest.raises(ExportError, match=r"timing_cache=.* cannot be read: .* is a folder"):
        _TimingCache(path, builder.create_builder_config())


def test_builder_that_times_nothing_says_that_it_used_no_timing_cache(tensorrt, onnx_bytes, tmp_path):
    report = build_engine(onnx_bytes, tmp_path / "m.engine", timing_cache=tmp_path / "timing", library="tensorrt_rtx")
    assert report.options["timing_cache"] == "not used by tensorrt_rtx"
    assert not (tmp_path / "timing").exists()


def test_log_holds_what_tensorrt_says_while_it_builds(tensorrt, onnx_bytes, tmp_path):
    build_engine(onnx_bytes, tmp_path / "m.engine", log=tmp_path / "build.log", compute_capabilities=("8.9",))
    lines = (tmp_path / "build.log").read_text().splitlines()
    assert lines[0].startswith(f"layerfold: m.engine by tensorrt_rtx {tensorrt.__version__}, float32, TF32 off")
    assert any("[V] Parsing node" in line for line in lines)
    assert any("[I] " in line for line in lines)
    size = (tmp_path / "build.log").stat().st_size
    build_engine(onnx_bytes, tmp_path / "n.engine")
    assert (tmp_path / "build.log").stat().st_size == size  # a later build does not write there
    with pytest.raises(ExportError, match=r"log=.*cannot be written"):
        build_engine(onnx_bytes, tmp_path / "m.engine", log=tmp_path / "build.log" / "build.log")


def test_plan_that_is_not_whole_or_of_another_version_is_refused_without_a_gpu(tensorrt, onnx_bytes, tmp_path):
    build_engine(onnx_bytes, tmp_path / "m.engine")
    content = (tmp_path / "m.engine").read_bytes()
    check_header(content, tensorrt, ("input", "output"))
    with pytest.raises(ExportError, match=r"its header says \d+; it is not whole"):
        check_header(content[:-1], tensorrt)
    with pytest.raises(ExportError, match="less than its header"):
        check_header(content[:8], tensorrt)
    with pytest.raises(ExportError, match="does not name no_such_tensor"):
        check_header(content, tensorrt, ("input", "no_such_tensor"))
    other = content[:24] + bytes([1, 0, 0, 1]) + content[28:]
    with pytest.raises(ExportError, match=r"was built by version 1\.0\.0\.1, this is tensorrt_rtx"):
        check_header(other, tensorrt)


@without_gpu
def test_loading_an_engine_without_a_gpu_says_so_after_checking_the_file(tensorrt, onnx_bytes, tmp_path):
    path = tmp_path / "m.engine"
    report = build_engine(onnx_bytes, path)
    assert report.check.method == "header"
    assert "no NVIDIA GPU" in report.check.reason
    with pytest.raises(DeviceUnavailableError, match=r"needs an NVIDIA GPU and its driver.*run the ONNX file instead"):
        load_engine(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"m\.engine: is not the file that m\.engine\.json was written for"):
        load_engine(path)
    (tmp_path / "m.engine.json").unlink()
    with pytest.raises(UsageError, match=r"m\.engine: the engine has \d+ bytes"):
        load_engine(path)


def test_bad_arguments_and_graphs_are_named(tensorrt, onnx_bytes, tmp_path):
    with pytest.raises(
        UsageError, match=r"precision='int3' is not known; choose from float32, float16, bfloat16, int8"
    ):
        build_engine(onnx_bytes, tmp_path / "m.engine", precision="int3")
    with pytest.raises(UsageError, match=r"compute_capability='8.7'.*choose from 7.5"):
        build_engine(onnx_bytes, tmp_path / "m.engine", compute_capabilities=("8.7",))
    with pytest.raises(ExportError, match="cannot read the ONNX graph"):
        build_engine(b"junk", tmp_path / "m.engine")
    with pytest.raises(UsageError, match=r"library='tensorrtx'.*nearest: tensorrt"):
        build_engine(onnx_bytes, tmp_path / "m.engine", library="tensorrtx")
    assert not list(tmp_path.iterdir())


def test_node_that_tensorrt_cannot_take_is_named(tensorrt, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    puts = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in ("x", "y")]
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="the_node")
    graph = helper.make_graph([node], "g", puts[:1], puts[1:])
    content = onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(ExportError, match=r"cannot read the ONNX graph: .*the_node"):
        build_engine(content.SerializeToString(), tmp_path / "m.engine")


def test_without_the_package_the_extra_is_named(monkeypatch, model, onnx_bytes, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(OptionalDependencyError, match=r"layerfold\[tensorrt\]"):
        build_engine(onnx_bytes, tmp_path / "m.engine", library="tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    report = export_network(model, tmp_path, ("tensorrt",), example_input=INPUT, skip_missing=True)
    assert "layerfold[tensorrt]" in report.skipped["tensorrt"]
    assert report.engine is None
