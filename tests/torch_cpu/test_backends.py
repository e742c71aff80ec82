"""Every backend that runs here computes what torch computes, in each layout and precision, and says what it ran on."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from layerfold.errors import ProfilerError, ProvenanceMismatchError, UsageError
from layerfold.export import export_onnx, to_half
from layerfold.graph import trace_network
from layerfold.profiler import get_backend, profile_network, verify_solution
from layerfold.profiler.backends.torch_graph import OPERATORS, in_bfloat16, torch_module
from layerfold.solver import Solution
from layerfold.tables.provenance import check_same_source

INPUT = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
CPU = [
    ("onnxruntime", {}),
    ("onnxruntime", {"threads": 2}),
    ("torch", {}),
    ("torch", {"layout": "channels_last"}),
    ("torch", {"threads": 2}),
    ("openvino", {}),
    ("openvino", {"layout": "channels_last"}),
    ("openvino", {"threads": 2}),
]


class Net(nn.Module):
    """Strides, groups, one-sided padding, a residual, a gate, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.wide = nn.Sequential(nn.Conv2d(8, 16, 1), nn.Hardswish(), nn.Conv2d(16, 8, 3, padding=1, groups=8))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.wide(x)
        x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        return self.head(nn.functional.silu(self.pool(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def onnx_bytes(model: nn.Module) -> bytes:
    return export_onnx(model, INPUT)


def backend_of(name: str, **options: object):
    if name == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    if options.get("threads", 1) > (os.cpu_count() or 1):
        pytest.skip("more threads than processors here")
    return get_backend(name, **options)


@pytest.mark.parametrize(("name", "options"), CPU, ids=lambda value: str(value).strip("{}"))
def test_backend_computes_what_torch_computes(model, onnx_bytes, name, options) -> None:
    runner = backend_of(name, **options).compile(onnx_bytes)
    runner.run()
    with torch.no_grad():
        expected = model(INPUT).numpy()
    for _ in range(2):  # the fixed inputs of `run` and those of `infer` do not disturb each other
        (found,) = runner.infer({"input": INPUT.numpy()})
        np.testing.assert_allclose(found, expected, atol=1e-5)
        runner.run()
    with pytest.raises(UsageError, match="must be exactly the graph's inputs"):
        runner.infer({"x": INPUT.numpy()})
    runner.close()


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_half_precision_is_close_and_is_what_runs(model, onnx_bytes, name) -> None:
    backend = backend_of(name, precision="fp16")
    assert backend.provenance()["options"]["precision"] == "float16"
    runner = backend.compile(onnx_bytes)
    (found,) = runner.infer({"input": INPUT.numpy()})
    assert found.dtype == np.float32  # the ends stay float32
    with torch.no_grad():
        expected = model(INPUT).numpy()
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-6 < difference < 2e-2  # not exactly float32's own answer
    half_bytes = to_half(onnx_bytes)
    assert backend._in_precision(half_bytes) is half_bytes
    runner.close()


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_bfloat16_is_close_and_is_what_runs_where_the_processor_has_it(model, onnx_bytes, name) -> None:
    if name == "openvino" and "ONEDNN_MAX_CPU_ISA" in os.environ:
        pytest.skip("OpenVINO names what the processor has, and its kernels are held to an older one")
    precisions = type(backend_of(name)).precisions("cpu")
    if "bfloat16" not in precisions:
        words = rf"precision='bfloat16': device 'cpu' of backend '{name}' lacks it; choose from float32"
        with pytest.raises(UsageError, match=words):
            backend_of(name, precision="bf16")
        pytest.skip("the processor has no bfloat16")
    backend = backend_of(name, precision="bf16")
    assert backend.provenance()["options"]["precision"] == "bfloat16"
    runner = backend.compile(onnx_bytes)
    runner.run()
    (found,) = runner.infer({"input": INPUT.numpy()})
    assert found.dtype == np.float32  # the ends stay float32
    with torch.no_grad():
        expected = model(INPUT).numpy()
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-4 < difference < 3e-2  # coarser than float16 and than float32's own answer
    if name == "openvino":
        facts = [each.get_rt_info() for each in runner._compiled.get_runtime_model().get_ordered_ops()]
        kinds = {
            each["runtimePrecision"].astype(str) for each in facts if each["layerType"].astype(str) == "Convolution"
        }
        assert kinds == {"bf16"}
    runner.close()


def test_cast_inside_a_graph_stays_in_bfloat16() -> None:
    puts = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, 3, 8, 8)) for name in ("x", "y")]
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Conv", ["cast", "weight"], ["y"]),
    ]
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "weight")
    graph = helper.make_graph(nodes, "g", puts[:1], puts[1:], [weight])
    onnx_bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    module = in_bfloat16(torch_module(onnx_bytes))
    assert module(torch.ones(1, 3, 8, 8))[0].dtype == torch.float32  # and no clash of types on the way


def test_nodes_of_a_graph_in_halves_are_in_order(onnx_bytes) -> None:
    onnx.checker.check_model(onnx.load_from_string(to_half(onnx_bytes)), full_check=True)


@pytest.fixture(scope="module")
def quantised_bytes(onnx_bytes, tmp_path_factory) -> bytes:
    return quantise(onnx_bytes, tmp_path_factory.mktemp("int8"))


def quantise(onnx_bytes: bytes, folder) -> bytes:
    """Return the model calibrated on one batch, with QuantizeLinear and DequantizeLinear nodes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        batches = iter([{"input": INPUT.numpy()}])

        def get_next(self):
            return next(self.batches, None)

    (folder / "full.onnx").write_bytes(onnx_bytes)
    quantize_static(
        folder / "full.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    return (folder / "int8.onnx").read_bytes()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8_takes_a_quantised_graph_and_no_other(model, onnx_bytes, quantised_bytes, name) -> None:
    backend = backend_of(name, precision="int8")
    with pytest.raises(UsageError, match="precision='int8' needs a graph with QuantizeLinear"):
        backend.compile(onnx_bytes)
    runner = backend.compile(quantised_bytes)
    (found,) = runner.infer({"input": INPUT.numpy()})
    with torch.no_grad():
        expected = model(INPUT).numpy()
    assert 1e-4 < np.abs(found - expected).max() / np.abs(expected).max() < 0.2


def test_float16_is_refused_where_the_processor_lacks_it() -> None:
    openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    has = "FP16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if has:
        assert get_backend("openvino", precision="float16").precision == "float16"
    else:
        with pytest.raises(
            UsageError,
            match="precision='float16': device 'cpu' of backend 'openvino' lacks it; choose from float32, ",
        ):
            get_backend("openvino", precision="float16")


_SEVERAL = """
import signal, sys
from pathlib import Path
from layerfold.profiler import get_backend
signal.signal(signal.SIGINT, signal.default_int_handler)
graph = Path(sys.argv[2]).read_bytes()
runners = [get_backend(sys.argv[1]).compile(graph) for _ in range(3)]
for runner in runners:
    runner.run()
while runners:
    runners.pop(0).close()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("name", ["onnxruntime", "torch", "openvino"])
def test_process_survives_ctrl_c_after_several_networks(name, onnx_bytes, tmp_path) -> None:
    backend_of(name)  # skips where it is not installed
    (tmp_path / "net.onnx").write_bytes(onnx_bytes)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", _SEVERAL, name, str(tmp_path / "net.onnx")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


@pytest.mark.parametrize("name", ["onnxruntime", "torch", "openvino"])
def test_graph_that_is_none_is_one_line(name) -> None:
    with pytest.raises((ProfilerError, UsageError)) as caught:
        backend_of(name).compile(b"junk")
    assert "\n" not in str(caught.value)


def test_torch_leaves_the_process_its_threads(onnx_bytes) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runner = get_backend("torch").compile(onnx_bytes)
        runner.run()
        assert torch.get_num_threads() == 2
        runner.close()
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_compiled_torch_computes_the_same(model, onnx_bytes) -> None:
    runner = get_backend("torch", compile_mode="default").compile(onnx_bytes)
    (found,) = runner.infer({"input": INPUT.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(INPUT).numpy(), atol=1e-5)
    runner.close()


def test_table_of_another_backend_option_is_never_mixed(model, tmp_path) -> None:
    net = trace_network(model, INPUT)
    tables = [
        profile_network(
            model,
            net,
            get_backend("torch", layout=layout),
            method="isolated",
            cap_s=0.01,
            progress=False,
            cache=tmp_path / "cache.sqlite",
        )
        for layout in ("nchw", "channels_last")
    ]
    first, second = (table.provenance for table in tables)
    assert (first.backend_options["layout"], second.backend_options["layout"]) == ("nchw", "channels_last")
    check_same_source(first, first, ("a.csv", "b.csv"))
    with pytest.raises(ProvenanceMismatchError, match=r"a\.csv and b\.csv: layout differs \(nchw and channels_last\)"):
        check_same_source(first, second, ("a.csv", "b.csv"))
    # Nor does one find the other's measurements in the cache.
    assert tables[0].entries != tables[1].entries


# -- the torch backend's converter, operator by operator against ONNX Runtime

X = ("x", (2, 4, 8, 10))
OPERATOR_CASES = [
    ("Conv", {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1], "strides": [2, 1], "group": 2}, [X, (6, 2, 3, 3), (6,)]),
    ("Conv", {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2], "dilations": [2, 2]}, [X, (6, 4, 3, 3)]),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}, [X]),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, [X]),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [X]),
    ("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}, [X]),
    ("GlobalAveragePool", {}, [X]),
    ("GlobalMaxPool", {}, [X]),
    ("BatchNormalization", {"epsilon": 1e-3}, [X, (4,), (4,), (4,), np.full(4, 2.0)]),
    ("LayerNormalization", {"epsilon": 1e-3}, [X, (10,), (10,)]),
    ("Clip", {}, [X, np.array(-0.5), np.array(0.7)]),
    ("Clip", {}, [X, np.array(0.1)]),
    ("Gemm", {"transB": 1}, [("x", (3, 4)), (5, 4), (5,)]),
    ("Gemm", {}, [("x", (3, 4)), (4, 5)]),
    ("MatMul", {}, [X, (10, 3)]),
    ("PRelu", {}, [X, (4, 1, 1)]),
    ("Pad", {}, [X, [0, 1, 1, 0, 0, 0, 2, 3], np.array(0.5)]),
    ("Pad", {"mode": "reflect"}, [X, [0, 0, 1, 0, 0, 0, 2, 3]]),
    ("Pad", {"mode": "edge"}, [X, [0, 0, 1, 0, 0, 0, 2, 3]]),
    ("Reshape", {}, [X, [2, -1, 10]]),
    ("Reshape", {}, [X, [0, -1]]),
    ("Flatten", {}, [X]),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [X]),
    ("Concat", {"axis": 1}, [X, (2, 3, 8, 10)]),
    ("Slice", {}, [X, [1, 2], [3, 8], [1, 3], [1, 2]]),
    ("Split", {"axis": 1}, [X, [1, 3]]),
    ("Gather", {"axis": 1}, [X, [3, 0, 0]]),
    ("Gather", {}, [X, [1]]),
    ("Gather", {}, [[5, 6, 7], [-1, 0]]),
    ("ScatterElements", {"axis": 1}, [X, np.arange(8).reshape(2, 4, 1, 1) % 4, (2, 4, 1, 1)]),
    ("Squeeze", {}, [("x", (2, 1, 3)), [1]]),
    ("Unsqueeze", {}, [("x", (2, 3)), [1]]),
    ("Expand", {}, [("x", (2, 1, 3)), [2, 4, 3]]),
    ("ReduceMean", {"keepdims": 0}, [X, [2, 3]]),
    ("ReduceMax", {}, [X, [1]]),
    ("ReduceSum", {}, [X, [-1]]),
    ("Resize", {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}, [X, "", [2, 4, 13, 17]]),
    (
        "Resize",
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        [X, "", [2, 4, 16, 20]],
    ),
    ("Softmax", {"axis": 1}, [X]),
    ("Cast", {"to": onnx.TensorProto.DOUBLE}, [X]),
    ("Identity", {}, [X]),
    ("LeakyRelu", {"alpha": 0.2}, [X]),
    ("Elu", {"alpha": 0.7}, [X]),
    ("Celu", {"alpha": 0.7}, [X]),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, [X]),
    ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, [X]),
    ("Gelu", {}, [X]),
    ("Gelu", {"approximate": "tanh"}, [X]),
    *(
        (kind, {}, [X])
        for kind in ("Erf", "HardSwish", "Mish", "Neg", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh")
    ),
    ("Sqrt", {}, [np.arange(6, dtype=np.float32)]),
    *((kind, {}, [X, (4, 1, 1)]) for kind in ("Add", "Div", "Mul", "Sub")),
    ("Pow", {}, [X, np.array(2.0)]),
]


def one_operator(kind: str, attributes: dict, inputs: list) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return a graph of one node: tuples are random weights, lists whole numbers, named shapes the graph's inputs."""
    rng = np.random.default_rng(0)
    names, weights, puts, values = [], [], [], {}
    for index, each in enumerate(inputs):
        name = f"in{index}"
        if isinstance(each, str):
            names += ["", ""] if kind == "Resize" else [""]
            continue
        names.append(name)
        if isinstance(each, tuple) and isinstance(each[0], str):
            puts.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, each[1]))
            values[name] = rng.standard_normal(each[1]).astype(np.float32)
        elif isinstance(each, tuple):
            weights.append(numpy_helper.from_array(rng.standard_normal(each).astype(np.float32), name))
        else:
            kind_of = np.float32 if isinstance(each, np.ndarray) and each.dtype.kind == "f" else np.int64
            weights.append(numpy_helper.from_array(np.asarray(each, kind_of), name))
    if kind == "Resize":
        names = [names[0], "", "", names[-1]]
    outputs = ["y0", "y1"] if kind == "Split" else ["y0"]
    node = helper.make_node(kind, names, outputs, name="the_node", **attributes)
    graph = helper.make_graph([node], "g", puts, [onnx.ValueInfoProto(name=name) for name in outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model).SerializeToString(), values


@pytest.mark.parametrize(
    ("kind", "attributes", "inputs"),
    OPERATOR_CASES,
    ids=[f"{index}-{case[0]}" for index, case in enumerate(OPERATOR_CASES)],
)
def test_operator_computes_what_onnx_runtime_computes(kind, attributes, inputs) -> None:
    import onnxruntime

    onnx_bytes, values = one_operator(kind, attributes, inputs)
    expected = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"]).run(None, values)
    with torch.no_grad():
        found = torch_module(onnx_bytes)(*(torch.from_numpy(value) for value in values.values()))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-5)


def test_every_operator_of_the_converter_is_compared() -> None:
    assert {case[0] for case in OPERATOR_CASES} | {"Constant"} == set(OPERATORS)


def test_operator_without_a_form_is_named_with_its_node() -> None:
    for kind, attributes, inputs, words in (
        ("NonZero", {}, [X], r"node the_node \(NonZero\) has no form in the torch backend; measure this network"),
        (
            "Conv",
            {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"},
            [X, (6, 4, 3, 3)],
            r"node the_node \(Conv\): auto_pad=SAME_UPPER has no form",
        ),
        ("Gather", {}, [X, [-1]], r"node the_node \(Gather\): a negative place has no form"),
        (
            "ScatterElements",
            {"reduction": "add"},
            [X, np.zeros((1, 1, 1, 1), np.int64), (1, 1, 1, 1)],
            r"node the_node \(ScatterElements\): scattering with reduction=add has no form",
        ),
        (
            "ScatterElements",
            {},
            [X, np.full((1, 1, 1, 1), -1), (1, 1, 1, 1)],
            r"node the_node \(ScatterElements\): scattering to places that are negative or not known has no form",
        ),
    ):
        onnx_bytes, _ = one_operator(kind, attributes, inputs)
        with pytest.raises(ProfilerError, match=words):
            torch_module(onnx_bytes)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torch", {}),
        ("openvino", {}),
        ("onnxruntime", {"precision": "float16"}),
    ],
    ids=lambda value: str(value).strip("{}"),
)
def test_network_is_profiled_and_verified_on_every_backend(model, name, options) -> None:
    backend = backend_of(name, **options)
    net = trace_network(model, INPUT)
    table = profile_network(model, net, backend, dtype=backend.precision, cap_s=0.02, cache=False, progress=False)
    assert table.provenance.backend == name
    assert table.provenance.dtype == backend.precision
    assert table.provenance.backend_options == backend.options
    assert table.original_ms > 0
    solution = Solution(act_pos=[1, 3], merge_pos=[1, 3])
    found = verify_solution(model, net, solution, backend, cap_s=0.1)
    assert found.measured_ms > 0
    assert found.provenance["options"]["precision"] == backend.precision
