"""Float ONNX graphs in QDQ form: where the nodes stand, what the numbers are, and that kernels are integer ones."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from layerfold.errors import UsageError
from layerfold.export import export_onnx
from layerfold.graph.specs import ActivationSpec, ConvSpec
from layerfold.options import QuantiseOptions
from layerfold.profiler.graphs.writer import OnnxWriter
from layerfold.quantise import calibrate, quantise_graph, symmetric_form
from layerfold.quantise.observe import Observed
from layerfold.quantise.ranges import range_of

_SHAPE = (8, 12, 12)


class _Block(nn.Module):
    """An inverted residual, a strided conv, pooling and a classifier: what a QDQ graph must place right."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), activation())
        self.body = nn.Sequential(
            nn.Conv2d(16, 32, 1),
            activation(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32),
            activation(),
            nn.Conv2d(32, 16, 1, bias=False),
        )
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.fc(self.pool(x + self.body(x)).flatten(1))


def block_bytes(activation: type[nn.Module] = nn.ReLU6, batch: int = 1) -> bytes:
    torch.manual_seed(0)
    return export_onnx(_Block(activation).eval(), torch.randn(batch, 3, 24, 24))


@pytest.fixture(scope="module")
def float_bytes() -> bytes:
    return block_bytes()


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.standard_normal((8, 3, 24, 24)).astype(np.float32) for _ in range(4)]


def segment_bytes(*, is_light: bool = False, residual: bool = True) -> bytes:
    writer = OnnxWriter(is_light=is_light)
    value, other = writer.add_input("x", (128, 14, 14)), writer.add_input("source", (256, 14, 14))
    value = writer.conv(
        value, ConvSpec(in_channels=128, out_channels=256, kernel_size=(3, 3), padding=((1, 1), (1, 1)))
    )
    value = writer.add(value, other) if residual else value
    value = writer.activation(value, ActivationSpec(kind="relu6"), 256)
    writer.add_output(value, (256, 14, 14))
    return writer.model_bytes()


def onnxruntime_kinds(onnx_bytes: bytes, folder: Path) -> collections.Counter[str]:
    """Return what ONNX Runtime makes of a graph, by kind of node."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


def openvino_layers(onnx_bytes: bytes) -> list[tuple[str, str]]:
    """Return (kind, precision of its kernel) of each node that OpenVINO runs."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(onnx_bytes), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return [(each["layerType"].astype(str), each["runtimePrecision"].astype(str)) for each in facts]


def run(onnx_bytes: bytes, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_every_kernel_of_onnx_runtime_is_an_integer_one(activation, images, tmp_path) -> None:
    float_bytes = block_bytes(activation)
    assert onnxruntime_kinds(float_bytes, tmp_path)["QLinearConv"] == 0
    for ranges in (None, calibrate(float_bytes, images)):
        kinds = onnxruntime_kinds(quantise_graph(float_bytes, ranges), tmp_path)
        assert kinds["QLinearConv"] == 4
        assert kinds["QLinearAdd"] == 1
        assert kinds["QGemm"] == 1
        assert not {"Conv", "FusedConv", "Add", "Gemm", "Relu", "Clip", "GlobalAveragePool"} & set(kinds)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_every_conv_of_openvino_computes_in_eight_bits(activation, images) -> None:
    float_bytes = block_bytes(activation)
    before = [precision for kind, precision in openvino_layers(float_bytes) if kind == "Convolution"]
    assert set(before) == {"f32"}
    for ranges in (None, calibrate(float_bytes, images)):
        layers = openvino_layers(quantise_graph(float_bytes, ranges))
        heavy = [precision for kind, precision in layers if kind in ("Convolution", "FullyConnected")]
        assert len(heavy) == 5
        assert set(heavy) <= {"i8", "u8"}
        assert not any(kind == "Eltwise" and precision == "f32" for kind, precision in layers)


def test_a_conv_whose_weights_are_all_zero_is_timed_in_eight_bits_all_the_same() -> None:
    """A network with random weights may start with a last BatchNorm of zeros (timm's ResNets)."""
    model = _Block().eval()
    with torch.no_grad():
        model.body[4].weight.zero_()
    quantised = quantise_graph(export_onnx(model, torch.randn(1, 3, 24, 24)))
    convs = [precision for kind, precision in openvino_layers(quantised) if kind == "Convolution"]
    assert len(convs) == 4
    assert set(convs) <= {"i8", "u8"}


@pytest.mark.parametrize("is_light", [False, True])
def test_a_segment_without_images_is_integer_too(is_light, tmp_path) -> None:
    quantised = quantise_graph(segment_bytes(is_light=is_light))
    kinds = onnxruntime_kinds(quantised, tmp_path)
    assert kinds["QLinearConv"] == 1
    assert kinds["QLinearAdd"] == 1
    assert not {"Conv", "Add", "Clip"} & set(kinds)
    assert {precision for kind, precision in openvino_layers(quantised) if kind == "Convolution"} <= {"i8", "u8"}
    assert (len(quantised) < 20_000) == is_light  # weights that are a rule stay one


def test_the_same_graph_gives_the_same_bytes_and_a_legal_model(float_bytes, images) -> None:
    ranges = calibrate(float_bytes, images)
    for given in (None, ranges):
        first = quantise_graph(float_bytes, given)
        assert first == quantise_graph(float_bytes, given)
        onnx.checker.check_model(onnx.load_from_string(first), full_check=True)
    assert ranges == calibrate(float_bytes, images)


def test_weights_are_int8_with_a_scale_per_channel_and_biases_int32(float_bytes) -> None:
    graph = onnx.load_from_string(quantise_graph(float_bytes)).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    convs = [node for node in graph.node if node.op_type == "Conv" and len(node.input) == 3]
    assert len(convs) == 3
    makers = {node.output[0]: node for node in graph.node}
    for conv in convs:
        numbers, scales, zeros = (constants[name] for name in makers[conv.input[1]].input)
        assert numbers.dtype == np.int8
        assert np.abs(numbers.astype(int)).max(axis=(1, 2, 3)).min() == 127
        assert scales.shape == zeros.shape == (len(numbers),)
        assert not zeros.any()
        whole, bias_scales, _ = (constants[name] for name in makers[conv.input[2]].input)
        input_scale = constants[makers[conv.input[0]].input[1]]
        assert whole.dtype == np.int32
        assert np.allclose(bias_scales, scales * input_scale)
    assert constants[makers[convs[0].input[0]].input[2]].dtype == np.uint8
    (gemm,) = (node for node in graph.node if node.op_type == "Gemm")
    assert gemm.output[0] == graph.output[0].name  # logits are not quantised


def test_seven_bits_stay_within_sixty_three(float_bytes) -> None:
    graph = onnx.load_from_string(quantise_graph(float_bytes, options=QuantiseOptions(weight_bits=7))).graph
    weights = [numpy_helper.to_array(each) for each in graph.initializer if each.name.endswith("weight.int8")]
    assert len(weights) == 5
    assert {int(np.abs(each.astype(int)).max()) for each in weights} == {63}


def test_a_calibrated_graph_computes_nearly_what_the_float_one_does(float_bytes, images) -> None:
    expected = run(float_bytes, images[0])
    for method in ("minmax", "percentile", "mse"):
        options = QuantiseOptions(method=method)
        found = run(quantise_graph(float_bytes, calibrate(float_bytes, images, options), options), images[0])
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    far = run(quantise_graph(float_bytes), images[0])  # constant ranges are for latency alone
    assert np.abs(far - expected).max() > np.abs(found - expected).max()


def test_a_pooling_whose_windows_reach_beyond_its_padding_computes_the_same() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)).eval()
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    image = torch.full((1, 1, 8, 8), 3.0)
    float_bytes = export_onnx(network, image)
    quantised = quantise_graph(float_bytes)
    found, expected = (run(each, image.numpy()) for each in (quantised, float_bytes))
    assert np.abs(found - expected).max() < 0.05  # ONNX Runtime's integer kernel: 0.5, at the last row and column


def test_a_dead_channel_keeps_its_bias() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 2, 1, 1)).astype(np.float32)
    weight[1] = 0
    bias = np.array([0.5, 3.0, -1.0, 0.0], np.float32)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"])]
    puts = [helper.make_tensor_value_info(name, 1, [1, c, 4, 4]) for name, c in (("x", 2), ("y", 4))]
    graph = helper.make_graph(
        nodes, "g", puts[:1], puts[1:], [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    )
    onnx_bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()
    found = run(quantise_graph(onnx_bytes, {"x": (-3.0, 3.0), "y": (-4.0, 4.0)}), np.zeros((1, 2, 4, 4), np.float32))
    assert np.abs(found[0, :, 0, 0] - bias).max() < 8 / 255


def test_ranges_of_least_error_are_nearly_the_best_and_others_what_they_say() -> None:
    values = np.random.default_rng(0).standard_t(4, (10, 1, 1, 20_000)).astype(np.float32)
    held = Observed()
    for image in values:
        held.add(image[None])

    def error(low: float, high: float) -> float:
        scale = (high - low) / 255
        return float(np.mean((np.clip(np.rint(values / scale) * scale, low, high) - values) ** 2))

    low, high = range_of(held, QuantiseOptions(method="minmax"))
    assert (low, high) == (float(values.min()), float(values.max()))
    best = min(error(low * left, high * right) for left in np.linspace(0.1, 1, 19) for right in np.linspace(0.1, 1, 19))
    assert error(*range_of(held, QuantiseOptions(method="mse"))) < 1.1 * best < error(low, high)
    low, high = range_of(held, QuantiseOptions(method="percentile", percentile=99))
    assert abs(np.mean((values < low) | (values > high)) - 0.01) < 0.003


def test_the_symmetric_form_has_no_zero_points_and_computes_nearly_the_same(float_bytes, images) -> None:
    quantised = quantise_graph(float_bytes, calibrate(float_bytes, images))
    symmetric = symmetric_form(quantised)
    graph = onnx.load_from_string(symmetric).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
    onnx.checker.check_model(onnx.load_from_string(symmetric), full_check=True)
    before, after = run(quantised, images[0]), run(symmetric, images[0])
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()
    assert symmetric_form(symmetric) == symmetric


def test_the_symmetric_form_of_a_file_of_another_program_computes_nearly_the_same(
    float_bytes, images, tmp_path
) -> None:
    """Weights in uint8 with a zero point each, as `onnxruntime.quantization` can write them."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = iter([{"input": image[None]} for image in images[0]])

        def get_next(self):
            return next(self.left, None)

    quantize_static(
        onnx.load_from_string(float_bytes),
        tmp_path / "theirs.onnx",
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QUInt8,
        extra_options={"WeightSymmetric": False},
    )
    theirs = (tmp_path / "theirs.onnx").read_bytes()
    symmetric = symmetric_form(theirs)
    before, after = run(theirs, images[0]), run(symmetric, images[0])
    assert np.abs(before - after).max() < 0.05 * np.abs(before).max()
    graph = onnx.load_from_string(symmetric).graph
    assert not {TensorProto.UINT8, TensorProto.INT32} & {each.data_type for each in graph.initializer}


@pytest.mark.parametrize("form", ["free", "symmetric"])
def test_tensorrt_builds_an_engine_of_the_quantised_graph(float_bytes, form, tmp_path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from layerfold.export import build_engine

    quantised = quantise_graph(float_bytes, options=QuantiseOptions(symmetric=form == "symmetric"))
    report = build_engine(quantised, tmp_path / "m.engine", precision="int8", compute_capabilities=("8.6",))
    assert report.engine_bytes > 0
    assert report.precision == "int8"


def _with_input(float_bytes: bytes, change: Any) -> bytes:
    model = onnx.load_from_string(float_bytes)
    change(model)
    return model.SerializeToString()


def _open_batch(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"


def _not_a_number(model: Any) -> None:
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def _halves(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("change", "reason"),
    [(_open_batch, "export with fixed sizes, the batch too"), (_not_a_number, "NaN or infinity"), (_halves, "float16")],
)
def test_graphs_that_cannot_be_quantised_are_refused(float_bytes, change, reason) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        quantise_graph(_with_input(float_bytes, change))
    assert "\n" not in str(caught.value)


def test_other_bad_input_is_refused_in_one_line(float_bytes) -> None:
    with pytest.raises(UsageError, match="quantised already"):
        quantise_graph(quantise_graph(float_bytes))
    with pytest.raises(UsageError, match="no ONNX model"):
        quantise_graph(b"nonsense")
    with pytest.raises(UsageError, match=r"ranges: has none for"):
        quantise_graph(float_bytes, {})
    ranges = dict.fromkeys(calibrate(float_bytes, [np.random.default_rng(0).standard_normal((2, 3, 24, 24))]), (0, 1))
    with pytest.raises(UsageError, match="must be two finite numbers"):
        quantise_graph(float_bytes, {**ranges, next(iter(ranges)): (0.0, float("nan"))})
    softmax = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 4])],
    )
    with pytest.raises(UsageError, match="nothing to quantise"):
        quantise_graph(helper.make_model(softmax, ir_version=10).SerializeToString())
