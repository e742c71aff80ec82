"""ONNX graphs written node by node compute what torch computes, and hold what the exporter would write."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from onnx import numpy_helper
from torch import nn

from layerfold.errors import ExportError, UsageError
from layerfold.graph import trace_network
from layerfold.graph.description import Residual, Segment
from layerfold.graph.specs import ActivationSpec, ConvSpec
from layerfold.graph.vocabulary import make_activation
from layerfold.merge import build_train_form, merge_network
from layerfold.profiler import get_backend
from layerfold.profiler.graphs.assemble import assemble_network
from layerfold.profiler.graphs.outside import outside_graph
from layerfold.profiler.graphs.segment import overhead_onnx, segment_onnx
from layerfold.profiler.graphs.writer import ACTIVATION_KINDS, OnnxWriter
from layerfold.solver import Solution
from tests.oracles.random_plans import random_solutions
from tests.quick_onnx import quick_onnx

PARAMS = {
    "leaky_relu": (("negative_slope", 0.2),),
    "elu": (("alpha", 0.7),),
    "celu": (("alpha", 0.7),),
    "softplus": (("beta", 2.0), ("threshold", 20.0)),
    "hardtanh": (("max_val", 2.0), ("min_val", -1.5)),
}


def infer(onnx_bytes: bytes, **inputs: torch.Tensor) -> list[np.ndarray]:
    runner = get_backend("onnxruntime").compile(onnx_bytes)
    found = runner.infer({name: value.numpy() for name, value in inputs.items()})
    runner.close()
    return found


@pytest.mark.parametrize("kind", ACTIVATION_KINDS)
def test_activation_nodes_compute_what_torch_computes(kind):
    spec = ActivationSpec(kind=kind, params=PARAMS.get(kind, ()))
    writer = OnnxWriter()
    shape = (3, 4, 5)
    output = writer.activation(writer.add_input("x", shape), spec, 3)
    writer.add_output(output, shape)
    x = torch.linspace(-7, 7, 60).reshape(1, *shape)
    (found,) = infer(writer.model_bytes(), x=x)
    expected = make_activation(spec)(x).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_unknown_activation_is_named_with_its_segment():
    conv = ConvSpec(in_channels=2, out_channels=2, kernel_size=(1, 1))
    segment = Segment(
        start=3,
        end=4,
        conv=conv,
        input_shape=(2, 4, 4),
        output_shape=(2, 4, 4),
        activation=ActivationSpec(kind="snake"),
    )
    with pytest.raises(ExportError, match=r"'snake' of segment \(3, 4\)"):
        segment_onnx(segment)


def test_segment_graph_computes_its_conv_residual_shortcut_and_activation():
    conv = ConvSpec(
        in_channels=4,
        out_channels=6,
        kernel_size=(3, 5),
        stride=(2, 1),
        dilation=(1, 2),
        padding=((0, 1), (3, 2)),
        groups=2,
    )
    shortcut = ConvSpec(in_channels=3, out_channels=6, kernel_size=(1, 1), stride=(2, 1))
    shape = (4, 8, 9)
    output = conv.output_shape(shape)
    segment = Segment(
        start=2,
        end=4,
        conv=conv,
        input_shape=shape,
        output_shape=output,
        activation=ActivationSpec(kind="relu"),
        open_residuals=(
            Residual(src=0, dst=4, source_shape=output),
            Residual(src=1, dst=4, shortcut=(shortcut,), source_shape=(3, 2 * output[1], output[2])),
        ),
    )
    onnx_bytes = segment_onnx(segment, batch=2)
    weights = [
        torch.from_numpy(numpy_helper.to_array(each).copy())
        for each in onnx.load_from_string(onnx_bytes).graph.initializer
    ]
    x, identity = torch.randn(2, *shape), torch.randn(2, *output)
    source = torch.randn(2, 3, 2 * output[1], output[2])
    (found,) = infer(onnx_bytes, x=x, source_0=identity, source_1=source)
    main = F.conv2d(F.pad(x, (3, 2, 0, 1)), weights[0], weights[1], (2, 1), 0, (1, 2), 2)
    expected = F.relu(main + identity + F.conv2d(source, weights[2], weights[3], (2, 1)))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_half_precision_segments_run():
    conv = ConvSpec(in_channels=4, out_channels=4, kernel_size=(3, 3))
    segment = Segment(start=0, end=1, conv=conv, input_shape=(4, 6, 6), output_shape=(4, 4, 4))
    (found,) = infer(segment_onnx(segment, dtype="float16"), x=torch.randn(1, 4, 6, 6).half())
    assert found.dtype == np.float16
    with pytest.raises(UsageError, match="dtype='int8'"):
        segment_onnx(segment, dtype="int8")


def test_overhead_graph_takes_the_same_number_of_inputs_and_runs():
    runner = get_backend("onnxruntime").compile(overhead_onnx(((4, 6, 6), (4, 6, 6))))
    runner.run()
    runner.close()


class TwoChains(nn.Module):
    """Two chains around a pooling, a gate that is a barrier, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        y = self.body(x)
        gated = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        return self.head(torch.cat([gated.mean((2, 3)), x.mean((2, 3))], dim=1))


def test_what_lies_outside_completes_the_chains_to_the_whole_network():
    model = TwoChains().eval()
    x = torch.randn(1, 3, 16, 16)
    net = trace_network(model, x)
    outside = outside_graph(model, net, batch=2)
    assert len(net.chains) == 2
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        stem = model.stem(x)
        inputs = dict(zip(outside.chain_outputs, [stem, model.body(model.pool(stem))], strict=True))
        expected = {outside.chain_inputs[1]: model.pool(stem), outside.outputs[0]: model(x)}
    found = infer(outside.onnx_bytes, **inputs)
    names = [put.name for put in onnx.load_from_string(outside.onnx_bytes).graph.output]
    assert set(names) == set(expected)
    for name, value in zip(names, found, strict=True):
        np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-5)


def conv_multiset(onnx_bytes: bytes) -> Counter:
    """Return each conv's (weight shape, strides, pads, dilations, groups) with the pads of a Pad node before it."""
    graph = onnx.load_from_string(onnx_bytes).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    values = {each.name: each for each in graph.initializer}
    for node in graph.node:  # a large weight is one number per row, repeated
        if node.op_type == "Expand" and node.input[1] in values:
            shapes[node.output[0]] = tuple(int(size) for size in onnx.numpy_helper.to_array(values[node.input[1]]))
    convs: Counter = Counter()
    for node in graph.node:
        if node.op_type == "Conv":
            facts = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            convs[
                shapes[node.input[1]],
                tuple(facts["strides"]),
                tuple(facts["pads"]),
                tuple(facts["dilations"]),
                facts["group"],
            ] += 1
    return convs


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("mobilenetv2_050", num_classes=10),
        lambda: torchvision.models.resnet18(num_classes=10),
    ],
    ids=["mobilenetv2_050", "resnet18"],
)
def test_assembled_plan_has_the_convs_of_the_merged_and_exported_network(build):
    model = build().eval()
    x = torch.randn(1, 3, 32, 32)
    net = trace_network(model, x)
    outside = outside_graph(model, net)
    plans = random_solutions(net, net.candidates(max_kernel=7), 2, seed=2)
    for act_pos, merge_pos in plans:
        assembled = assemble_network(net, outside, act_pos, merge_pos)
        merged = merge_network(
            build_train_form(model, net, Solution(act_pos=act_pos, merge_pos=merge_pos)), tolerance=None
        )
        exported = quick_onnx(merged, x)
        assert conv_multiset(assembled) == conv_multiset(exported)
        kinds = Counter(node.op_type for node in onnx.load_from_string(assembled).graph.node)
        expected = Counter(node.op_type for node in onnx.load_from_string(exported).graph.node)
        for kind in ("Conv", "Clip", "Relu", "Add", "Gemm", "MaxPool"):
            assert kinds[kind] == expected[kind], kind
        (output,) = infer(assembled, network_input0=x)
        assert output.shape == (1, 10)
        assert np.isfinite(output).all()
