"""A float32 ONNX graph as one graph with QuantizeLinear and DequantizeLinear nodes (QDQ)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from layerfold.errors import UsageError
from layerfold.options.quantise import QuantiseOptions
from layerfold.quantise.placement import Placement, place, weight_sources
from layerfold.quantise.prepare import prepared
from layerfold.quantise.scales import Scale, activation_scale, quantised_bias, quantised_weight, weight_scales

Ranges = Mapping[str, tuple[float, float]]
_USUAL = 4.0  # the size of feature maps of which nothing is known


def quantise_graph(
    onnx_bytes: bytes,
    ranges: Ranges | None = None,
    options: QuantiseOptions | None = None,
    *,
    ends: Collection[str] = (),
) -> bytes:
    """Return a float32 graph in QDQ form: weights in int8 per output channel, feature maps in eight bits per tensor.

    The same graph and ranges give the same bytes.

    Args:
        onnx_bytes: a float32 model with fixed shapes.
        ranges: least and greatest value by name of feature map, from :func:`layerfold.quantise.calibrate`; None for
            constant ones that are plausible, which is enough where only latency is asked; weights that are all
            zero are then replaced.
        options: ``symmetric`` and ``weight_bits`` count here.
        ends: inputs and outputs that are quantised whatever reads or makes them: of a part of a network, beside which
            others are quantised too.

    Raises:
        UsageError: the graph is no float32 model, is quantised already, or holds nothing to quantise; a range is
            missing or not finite.
    """
    model = prepared(onnx_bytes)
    return quantised_model(model, ranges, options or QuantiseOptions(), ends)


def quantised_model(model: Any, ranges: Ranges | None, options: QuantiseOptions, ends: Collection[str] = ()) -> bytes:
    """Return a prepared model in QDQ form; see :func:`quantise_graph`."""
    placement = place(model, ends)
    if not placement.quantised:
        raise UsageError(
            "this network holds nothing to quantise: no conv, matrix product, addition or pooling in float32"
        )
    writer = _Writer(model, placement, ranges, options)
    return writer.written()


def plausible_ranges(model: Any) -> dict[str, tuple[float, float]]:
    """Return a range for each feature map by the kind of node that makes it."""
    constants = {each.name: each for each in model.graph.initializer}
    found = {put.name: (-_USUAL, _USUAL) for put in model.graph.input}
    for node in model.graph.node:
        low, high = cut_bounds(node, constants)
        if node.op_type in ("Sigmoid", "HardSigmoid", "Softmax"):
            low, high = 0.0, 1.0
        elif node.op_type == "HardSwish":
            low = -0.375
        elif node.op_type in _KEEPS_RANGE:
            low, high = found.get(node.input[0], (low, high))
        for name in node.output:
            found[name] = (max(low, -_USUAL), min(high, _USUAL) if high == np.inf else high)
    return found


_KEEPS_RANGE = frozenset(
    {"AveragePool", "Flatten", "GlobalAveragePool", "MaxPool", "Reshape", "Resize", "Squeeze", "Transpose", "Unsqueeze"}
)


def cut_bounds(node: Any, constants: Mapping[str, Any]) -> tuple[float, float]:
    """Return where an activation cuts off, (-inf, inf) for any other node."""
    from onnx import numpy_helper

    if node.op_type == "Relu":
        return 0.0, np.inf
    bounds = [-np.inf, np.inf]
    if node.op_type == "Clip":
        for place_, name in enumerate(node.input[1:3]):
            if name in constants:
                bounds[place_] = float(numpy_helper.to_array(constants[name]).reshape(()))
            elif name:
                bounds[place_] = np.nan  # computed by the graph: unknown
    return bounds[0], bounds[1]


class _Writer:
    """Writes the quantised form of one model."""

    def __init__(self, model: Any, placement: Placement, ranges: Ranges | None, options: QuantiseOptions) -> None:
        self._model, self._placement, self._options = model, placement, options
        self._is_for_latency = ranges is None
        self._ranges = plausible_ranges(model) if ranges is None else ranges
        self._graph = model.graph
        self._constants = {each.name: each for each in self._graph.initializer}
        self._sources = weight_sources(self._graph)
        self._repeats = {node.output[0]: node for node in self._graph.node if node.op_type == "Expand"}
        self._scales = {name: self._scale_of(name) for name in placement.quantised}
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._weights: dict[tuple[str, str], str] = {}

    def written(self) -> bytes:
        """Return the serialised model."""
        from onnx import helper

        weighted = set(self._placement.weighted)
        left_out = {node.output[0]: node for node in self._placement.cut_by.values() if self._is_left_out(node)}
        made_for = {node.input[0]: name for name, node in left_out.items()}  # what a node makes -> what is quantised
        outputs = {put.name for put in self._graph.output}
        for put in self._graph.input:
            if put.name in self._scales:
                self._quantise(put.name, put.name, put.name)
        for index, node in enumerate(self._graph.node):
            if node.output and node.output[0] in left_out:
                continue
            copy = type(node)()
            copy.CopyFrom(node)
            for place_, name in enumerate(node.input):
                if name in self._scales:
                    copy.input[place_] = _dequantised(name, outputs)
            if index in weighted:
                self._quantise_weight(copy, node.input[0])
            later = []
            for place_, name in enumerate(node.output):
                value = made_for.get(name, name)
                if value in self._scales:
                    copy.output[place_] = f"{value}.float" if value in outputs else name
                    later.append((value, copy.output[place_]))
            self._nodes.append(copy)
            for value, made in later:
                self._quantise(value, made, value)
        read = {name for node in self._nodes for name in node.input} | outputs
        self._nodes = [node for node in self._nodes if node.op_type != "Expand" or node.output[0] in read]
        read = {name for node in self._nodes for name in node.input}
        kept = [each for each in self._graph.initializer if each.name in read]
        graph = helper.make_graph(
            self._nodes,
            self._graph.name or "layerfold",
            self._graph.input,
            self._graph.output,
            [*kept, *self._initializers],
        )
        model = helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version, producer_name="layerfold"
        )
        return bytes(model.SerializeToString(deterministic=True))

    def _scale_of(self, name: str) -> Scale:
        root = self._placement.same_as.get(name, name)
        if root not in self._ranges:
            raise UsageError(f"ranges: has none for {root!r}; calibrate the same network")
        low, high = self._ranges[root]
        return activation_scale(root, float(low), float(high), symmetric=self._options.symmetric)

    def _is_left_out(self, node: Any) -> bool:
        """Say whether the quantisation behind an activation cuts off where it does, or further in."""
        low, high = cut_bounds(node, self._constants)
        scale = self._scales[node.output[0]]
        first, last = (-128, 127) if scale.is_signed else (0, 255)
        slack = 1e-3 * float(scale.scale)
        lowest, highest = (float(scale.scale) * (each - scale.zero_point) for each in (first, last))
        return lowest >= low - slack and highest <= high + slack

    def _quantise(self, value: str, made: str, name: str) -> None:
        """Append the two nodes that quantise ``made``; readers of ``value`` read what comes out."""
        from onnx import helper

        scale = self._scales[value]
        outputs = {put.name for put in self._graph.output}
        pair = [
            self._store(np.asarray(scale.scale, np.float32), f"{name}.scale"),
            self._store(np.asarray(scale.zero_point, scale.dtype), f"{name}.zero_point"),
        ]
        eight_bits, after = f"{name}.int8", _dequantised(value, outputs)
        self._nodes.append(helper.make_node("QuantizeLinear", [made, *pair], [eight_bits], name=f"{name}.quantize"))
        self._nodes.append(
            helper.make_node("DequantizeLinear", [eight_bits, *pair], [after], name=f"{name}.dequantize")
        )

    def _quantise_weight(self, node: Any, value: str) -> None:
        from onnx import helper, numpy_helper

        name = node.input[1]
        source = self._constants[self._sources[name]]
        weight = numpy_helper.to_array(source)
        axis = output_axis(node, weight.ndim)
        has_bias = len(node.input) > 2 and node.input[2] in self._constants
        bias = numpy_helper.to_array(self._constants[node.input[2]]).reshape(-1) if has_bias else None
        if bias is not None and node.op_type == "Gemm":
            bias = bias * next((each.f for each in node.attribute if each.name == "beta"), 1.0)
        scale = self._scales[value]
        bits = self._options.weight_bits
        scales = weight_scales(weight, axis, bits=bits, bias=bias, input_scale=float(scale.scale))
        if bias is not None and bias.size != scales.size:
            has_bias, bias = False, None  # one number for all channels
        stem = f"{node.output[0]}.weight"
        whole_numbers = quantised_weight(weight, scales, axis, bits=bits)
        if self._is_for_latency and not whole_numbers.any():
            # OpenVINO computes such a conv in float32: a last BatchNorm that starts at zero would be timed wrongly.
            whole_numbers = np.ones_like(whole_numbers)
        is_repeated = name in self._repeats
        if is_repeated and self._options.symmetric:  # TensorRT takes a constant and nothing between it and the pair
            sizes = numpy_helper.to_array(self._constants[self._repeats[name].input[1]])
            whole_numbers, is_repeated = np.broadcast_to(whole_numbers, sizes), False
        numbers = self._store(whole_numbers, f"{stem}.int8")
        if is_repeated:
            repeated = f"{stem}.repeated"
            self._nodes.append(
                helper.make_node("Expand", [numbers, self._repeats[name].input[1]], [repeated], name=repeated)
            )
            numbers = repeated
        self._dequantise_constant(numbers, scales, np.int8, axis, stem)
        node.input[1] = stem
        if bias is not None and not self._options.symmetric:  # TensorRT takes no bias in int32
            whole, of_sums = quantised_bias(bias, scales, scale.scale)
            stem = f"{node.output[0]}.bias"
            self._dequantise_constant(self._store(whole, f"{stem}.int32"), of_sums, np.int32, 0, stem)
            node.input[2] = stem
            for each in node.attribute:
                if each.name == "beta":
                    each.f = 1.0

    def _dequantise_constant(self, numbers: str, scales: Any, dtype: Any, axis: int, name: str) -> None:
        from onnx import helper

        pair = [self._store(scales, f"{name}.scale"), self._store(np.zeros(scales.shape, dtype), f"{name}.zero_point")]
        self._nodes.append(
            helper.make_node("DequantizeLinear", [numbers, *pair], [name], name=f"{name}.dequantize", axis=axis)
        )

    def _store(self, values: Any, name: str) -> str:
        from onnx import numpy_helper

        self._initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name


def _dequantised(name: str, outputs: set[str]) -> str:
    return name if name in outputs else f"{name}.dequantized"


def output_axis(node: Any, dims: int) -> int:
    """Return the axis of a weight that its output channels lie along."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        is_transposed = any(each.name == "transB" and each.i for each in node.attribute)
        return 0 if is_transposed else 1
    return dims - 1
