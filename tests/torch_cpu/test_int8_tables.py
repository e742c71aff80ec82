"""Tables in int8: what is timed runs in integers on each backend, and nothing is mixed with floating point."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from layerfold.cli import main
from layerfold.errors import ProvenanceMismatchError, UsageError
from layerfold.export import export_onnx
from layerfold.graph import Network, trace_network
from layerfold.profiler import benchmark_networks, get_backend, profile_network, verify_solution
from layerfold.profiler.backends import compile_to_time, quantisation_digest, to_time
from layerfold.profiler.backends.onnxruntime import OnnxRuntimeBackend
from layerfold.profiler.backends.openvino import OpenVinoBackend
from layerfold.profiler.graphs.segment import segment_onnx
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.environment import environment_of
from layerfold.quantise import quantise_graph
from layerfold.solver import Limits, Solution, solve_frontier
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyTable, merge_tables

INPUT = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
_FAST = {"cap_s": 0.002, "progress": False, "num_plans": 2}
_INTEGERS = {"u8", "i8"}
_FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool")


def normed(*convs: nn.Module) -> nn.Sequential:
    """Return convs with a BatchNorm each, and ReLU6 between them."""
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6()]
    return nn.Sequential(*layers[:-1])


class Inverted(nn.Module):
    """As MobileNetV2: depthwise convs, linear bottlenecks, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.a = normed(nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 8, 1))
        self.b = normed(nn.Conv2d(8, 24, 1), nn.Conv2d(24, 24, 3, 2, 1, groups=24), nn.Conv2d(24, 16, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.b(x + self.a(x))
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """As ResNet: a pooling behind the stem, an identity, a shortcut with a conv."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.shortcut = nn.Conv2d(8, 16, 1, 2)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(x + self.a(x))
        x = torch.relu(self.b(x) + self.shortcut(x))
        return self.head(x)


class Plain(nn.Module):
    """A chain without a residual, with an activation that is no cut, and no classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Hardswish(), nn.Conv2d(8, 8, 1), nn.LeakyReLU(0.1), nn.Conv2d(8, 4, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def traced(make: type[nn.Module]) -> tuple[nn.Module, Network]:
    torch.manual_seed(0)
    model = make().eval()
    return model, trace_network(model, INPUT)


class RecordingRuntime(OnnxRuntimeBackend):
    """The real backend, which keeps the kernels of each graph as ONNX Runtime optimises it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(precision="int8")
        self.folder, self.kernels = folder, []

    def _compile(self, onnx_bytes: bytes):
        import onnxruntime

        path = self.folder / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(path), 3
        onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        count = sum(node.op_type == "Conv" for node in onnx.load_from_string(onnx_bytes).graph.node)
        self.kernels.append((count, Counter(node.op_type for node in onnx.load(path).graph.node)))
        return super()._compile(onnx_bytes)


class RecordingOpenVino(OpenVinoBackend):
    """The real backend, which keeps the kernels of each graph with the precision that they run in."""

    def __init__(self) -> None:
        super().__init__(precision="int8")
        self.kernels = []

    def _compile(self, onnx_bytes: bytes):
        runner = super()._compile(onnx_bytes)
        if has_strided_end(onnx_bytes):
            return runner
        count = sum(node.op_type == "Conv" for node in onnx.load_from_string(onnx_bytes).graph.node)
        facts = [each.get_rt_info() for each in runner._compiled.get_runtime_model().get_ordered_ops()]
        kinds = Counter((each["layerType"].astype(str), each["runtimePrecision"].astype(str)) for each in facts)
        self.kernels.append((count, kinds))
        return runner


def has_strided_end(onnx_bytes: bytes) -> bool:
    """Say whether a strided 1x1 conv reads an input of a part: OpenVINO pools it first, and goes on in float32.

    That is so in a segment alone only, and not between its neighbours (docs/backends.md).
    """
    graph = onnx.load_from_string(onnx_bytes).graph
    ends = {put.name for put in graph.input}
    arrived = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in ends}
    strides = {"strides": [1, 1], "kernel_shape": [0, 0]}
    for node in graph.node:
        if node.op_type == "Conv" and node.input[0] in arrived:
            has = strides | {each.name: helper.get_attribute_value(each) for each in node.attribute}
            if list(has["kernel_shape"]) == [1, 1] and max(has["strides"]) > 1:
                return True
    return False


@pytest.mark.parametrize("make", [Inverted, Residual])
def test_everything_that_a_table_is_made_of_runs_in_integers_on_onnxruntime(make, tmp_path) -> None:
    model, net = traced(make)
    backend = RecordingRuntime(tmp_path)
    table = profile_network(model, net, backend, cache=False, **_FAST)
    assert table.provenance.dtype == "int8"
    verify_solution(model, net, Solution(act_pos=(), merge_pos=(len(net.layers),)), backend, cap_s=0.01)
    whole = [kernels for convs, kernels in backend.kernels if convs >= len(net.layers)]
    assert len(whole) >= 2  # the original, assembled and exported
    for convs, kernels in backend.kernels:
        assert kernels["QLinearConv"] == convs, kernels
        assert not [kind for kind in _FLOAT_KERNELS if kernels[kind]], kernels
    assert sum(convs == 1 for convs, _ in backend.kernels) > len(net.layers) / 2  # segments alone
    assert all(kernels["QuantizeLinear"] == 1 for kernels in whole if kernels["QGemm"])  # the image, and nothing else
    alone = [kernels for convs, kernels in backend.kernels if convs == 1 and kernels.total() <= 4]
    assert alone
    assert not any(kernels["QuantizeLinear"] or kernels["DequantizeLinear"] for kernels in alone)


@pytest.mark.parametrize("make", [Inverted, Residual])
def test_everything_that_a_table_is_made_of_runs_in_integers_on_openvino(make) -> None:
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    model, net = traced(make)
    backend = RecordingOpenVino()
    profile_network(model, net, backend, cache=False, **_FAST)
    verify_solution(model, net, Solution(act_pos=(), merge_pos=(len(net.layers),)), backend, cap_s=0.01)
    for convs, kernels in backend.kernels:
        found = {
            precision: number
            for (kind, precision), number in kernels.items()
            if kind in ("Convolution", "FullyConnected", "MatMul")
        }
        assert set(found) <= _INTEGERS, kernels
        assert sum(number for (kind, _), number in kernels.items() if kind == "Convolution") == convs
        assert all(precision in _INTEGERS for kind, precision in kernels if kind in ("Pooling", "Reduce")), kernels
    assert max(convs for convs, _ in backend.kernels) >= len(net.layers)


def made_up(net: Network, table: LatencyTable) -> ImportanceTable:
    """Return importances by which each activation that goes costs one."""
    entries = []
    for entry in table.entries:
        is_start = any(chain.start == entry.start for chain in net.chains)
        removed = sum(net.has_activation(m) for m in range(entry.start + 1, entry.end))
        entries.append(
            ImportanceEntry(
                start=entry.start,
                end=entry.end,
                start_act=1 if is_start else int(net.has_activation(entry.start)),
                end_act=int(net.has_activation(entry.end)),
                importance=-float(removed),
            )
        )
    return ImportanceTable(entries)


@pytest.mark.parametrize("make", [Inverted, Residual, Plain])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_table_leads_to_plans_that_are_measured_in_int8(make, name) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    model, net = traced(make)
    table = profile_network(model, net, name, dtype="int8", cache=False, **_FAST)
    facts = table.provenance
    assert (facts.dtype, facts.backend_options["precision"]) == ("int8", "int8")
    assert facts.backend_options["quantisation"] == quantisation_digest()
    assert all(entry.latency_ms > 0 for entry in table.entries)
    frontier = solve_frontier(table, made_up(net, table), limits=Limits())
    for solution in (frontier[0], frontier[-1]):
        found = verify_solution(model, net, solution, get_backend(name, precision="int8"), cap_s=0.01)
        assert found.measured_ms > 0
        assert found.provenance["options"]["precision"] == "int8"


def test_segments_alone_take_and_give_whole_numbers() -> None:
    _, net = traced(Residual)
    for segment in (net.segment(0, 1), net.segment(1, 2), net.segment(2, 3)):  # the last adds what it is given
        graph = onnx.load_from_string(to_time.quantised_to_time(segment_onnx(segment), is_part=True)).graph
        kinds = {put.name: put.type.tensor_type.elem_type for put in (*graph.input, *graph.output)}
        assert set(kinds.values()) == {TensorProto.UINT8}, kinds
        symmetric = onnx.load_from_string(
            to_time.quantised_to_time(segment_onnx(segment), symmetric=True, is_part=True)
        ).graph
        assert {put.type.tensor_type.elem_type for put in symmetric.input} == {TensorProto.INT8}


def test_other_placement_does_not_find_the_measurements_of_the_first(monkeypatch, tmp_path) -> None:
    model, net = traced(Plain)
    arguments = {"cache": tmp_path / "c.sqlite", "method": "isolated", **_FAST}
    backend = get_backend("onnxruntime", precision="int8")
    before = environment_of(backend, batch=1, dtype="int8")
    first = profile_network(model, net, backend, **arguments).provenance.measurement
    assert profile_network(model, net, backend, **arguments).provenance.measurement["measured"] == 0
    assert "quantisation" not in environment_of(get_backend("onnxruntime"), batch=1, dtype="float32")
    from layerfold.quantise import graph

    monkeypatch.setattr(graph, "_USUAL", 5.0)  # other constant ranges, as a change of the placement would be
    quantisation_digest.cache_clear()
    try:
        assert environment_of(backend, batch=1, dtype="int8") != before
        again = profile_network(model, net, backend, **arguments).provenance.measurement
        assert again["measured"] == first["measured"] > 0
    finally:
        monkeypatch.undo()
        quantisation_digest.cache_clear()
    assert environment_of(backend, batch=1, dtype="int8") == before


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """Return a folder with a table in int8, one in float32, a solution and the model's file."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "model.py").write_text(
        "from torch import nn\ndef make():\n"
        "    body = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3)]\n"
        "    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "    net.num_classes = 4\n    return net\n"
    )
    Solution(act_pos=(), merge_pos=(3,)).write(folder / "solution.json")
    for precision in ("int8", "float32"):
        assert main([*profile_of(folder), "--precision", precision, "-o", str(folder / f"{precision}.csv")]) == 0
    return folder


def profile_of(folder: Path) -> list[str]:
    settings = ["--input", "3x16x16", "--cap-s", "0.01", "--quiet", "--method", "isolated"]
    return ["profile", f"{folder}/model.py:make", "--cache", f"{folder}/cache.sqlite", *settings]


def verify_of(folder: Path, *more: str) -> list[str]:
    settings = ["--input", "3x16x16", "--cap-s", "0.01", "--quiet", "--solution", f"{folder}/solution.json"]
    return ["verify", f"{folder}/model.py:make", *settings, *more]


def test_sidecar_says_int8_and_verify_measures_both_networks_in_it(tables: Path, capsys) -> None:
    assert json.loads((tables / "int8.csv.json").read_text())["dtype"] == "int8"
    arguments = verify_of(tables, "--latency", f"{tables}/int8.csv", "--precision", "int8", "--speedup", "0.01")
    assert main(arguments) == 0
    assert "int8, original and merged, with constant scales" in capsys.readouterr().out


def test_int8_is_never_mixed_with_float(tables: Path, capsys) -> None:
    int8, float32 = f"{tables}/int8.csv", f"{tables}/float32.csv"
    assert main(["tables", "merge", int8, float32, "-o", f"{tables}/both.csv"]) == 2
    assert f"{int8} and {float32}: dtype differs (int8 and float32)" in capsys.readouterr().err
    assert main(verify_of(tables, "--latency", int8)) == 2
    assert f"{int8}: was measured in int8, and onnxruntime is to measure in float32" in capsys.readouterr().err
    assert main(verify_of(tables, "--latency", float32, "--precision", "int8")) == 2
    assert "was measured in float32, and onnxruntime is to measure in int8" in capsys.readouterr().err
    latencies = [LatencyTable.read(path) for path in (int8, float32)]
    importance = ImportanceTable(
        [
            ImportanceEntry(start=e.start, end=e.end, start_act=1, end_act=int(e.end < 3), importance=0.0)
            for e in latencies[0].entries
        ]
    )
    words = r"int8\.csv and .*float32\.csv: dtype differs \(int8 and float32\) on one device"
    with pytest.raises(ProvenanceMismatchError, match=words):
        solve_frontier(latencies, importance, limits=Limits())
    elsewhere = LatencyTable(
        latencies[1].entries, provenance=replace(latencies[1].provenance, device="another"), source="elsewhere.csv"
    )
    assert len(solve_frontier([latencies[0], elsewhere], importance, limits=Limits()))
    facts = latencies[0].provenance
    others = replace(facts, backend_options={**facts.backend_options, "quantisation": "another"})
    with pytest.raises(ProvenanceMismatchError, match="quantisation differs"):
        merge_tables([latencies[0], LatencyTable(latencies[0].entries, provenance=others)])


def test_bench_quantises_float_networks_and_takes_quantised_ones(tmp_path, capsys) -> None:
    model, _ = traced(Plain)
    (tmp_path / "float.onnx").write_bytes(export_onnx(model, INPUT))
    (tmp_path / "int8.onnx").write_bytes(quantise_graph(export_onnx(model, INPUT)))
    arguments = ["bench", f"{tmp_path}/float.onnx", f"{tmp_path}/int8.onnx", "--cap-s", "0.01", "--quiet"]
    assert main([*arguments, "--precision", "int8", "--json"]) == 0
    shown = capsys.readouterr()
    assert "note: float: quantised here with constant scales, for the time alone" in shown.err
    assert json.loads(shown.out)["provenance"]["options"]["precision"] == "int8"
    assert main(arguments) == 0  # one in float32, one in int8, in the same turns
    assert "quantised here" not in capsys.readouterr().err


def one_node(kind: str) -> bytes:
    puts = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 3, 8, 8)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], name="the_node")], "g", puts[:1], puts[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def test_network_with_nothing_to_quantise_is_one_line() -> None:
    with pytest.raises(UsageError, match="nothing to quantise") as caught:
        benchmark_networks({"sine": one_node("Sin")}, None, get_backend("onnxruntime", precision="int8"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_scales_that_are_no_scales_are_refused_by_node(value) -> None:
    model, _ = traced(Plain)
    quantised = onnx.load_from_string(to_time.quantised_to_time(export_onnx(model, INPUT)))
    name = next(node.input[1] for node in quantised.graph.node if node.op_type == "QuantizeLinear")
    scale = next(each for each in quantised.graph.initializer if each.name == name)
    scale.CopyFrom(numpy_helper.from_array(np.float32(value), name))
    with pytest.raises(UsageError, match=r"\(QuantizeLinear\): its scale .* must be finite and above 0"):
        compile_to_time(get_backend("onnxruntime", precision="int8"), quantised.SerializeToString())


def test_precision_that_a_backend_or_its_opening_lacks_is_one_line(tables: Path, capsys) -> None:
    for name, precision, words in (
        ("onnxruntime", "bf16", "lacks it; choose from float32, float16, int8"),
        ("torch", "int8", "precision='int8': device 'cpu' of backend 'torch' lacks it; choose from float32, float16"),
    ):
        assert main([*profile_of(tables), "--backend", name, "--precision", precision, "-o", f"{tables}/no.csv"]) == 2
        assert words in capsys.readouterr().err
    model, net = traced(Plain)
    with pytest.raises(UsageError, match="dtype='int8': the backend was opened for float32; open it with precision="):
        profile_network(model, net, get_backend("onnxruntime"), dtype="int8", cache=False)
    with MeasurementCache(False, {}) as cache, pytest.raises(UsageError, match="precision='int9' is not known"):
        profile_network(model, net, dtype="int9", cache=cache)
