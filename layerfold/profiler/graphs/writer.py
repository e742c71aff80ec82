"""Write ONNX graphs of convs, activations and additions directly, node by node, with random weights.

``torch.onnx.export`` costs seconds per graph; a table has hundreds of segments. Latency does not depend on the
weights (their values are scaled so that feature maps keep their size and no denormal numbers arise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from layerfold.errors import ExportError, UsageError
from layerfold.graph.specs import ActivationSpec, ConvSpec, Shape
from layerfold.profiler.graphs.light_weights import LIGHT_BYTES, repeated_weight

OPSET = 18
IR_VERSION = 10
_NUMPY_TYPES: dict[str, type[np.generic]] = {"float32": np.float32, "float16": np.float16}
_RANDOM_VALUES = 1 << 16


class OnnxWriter:
    """Collects nodes and weights of one ONNX graph.

    Args:
        dtype: ``float32`` or ``float16``, of every feature map and weight.
        batch: images in one forward pass.
        seed: of the random weights.
        prefix: put before every name made here, so that the nodes can join another graph.
        is_light: write large weights as a rule (:mod:`layerfold.profiler.graphs.light_weights`).
    """

    def __init__(
        self, *, dtype: str = "float32", batch: int = 1, seed: int = 0, prefix: str = "", is_light: bool = False
    ) -> None:
        if dtype not in _NUMPY_TYPES:
            raise UsageError(f"dtype={dtype!r} is not supported; choose from {', '.join(_NUMPY_TYPES)}")
        if batch < 1:
            raise UsageError(f"batch={batch} must be at least 1")
        self.dtype, self.batch, self.prefix, self._is_light = dtype, batch, prefix, is_light
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._random = np.random.default_rng(seed).standard_normal(_RANDOM_VALUES).astype(np.float32)
        self._count = 0

    def add_input(self, name: str, shape: Shape) -> str:
        """Declare a graph input of ``shape`` (channels, height, width) and return its name."""
        self.inputs.append(self.value_info(name, (self.batch, *shape)))
        return name

    def add_output(self, value: str, shape: Shape) -> None:
        """Declare ``value`` a graph output of ``shape`` (channels, height, width)."""
        self.outputs.append(self.value_info(value, (self.batch, *shape)))

    def conv(self, value: str, spec: ConvSpec) -> str:
        """Append a conv with bias and random weights; return the name of its output."""
        shape = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel_size)
        weight = self._weight(shape, math.sqrt(2 / math.prod(shape[1:])))
        bias = self._weight((spec.out_channels,), 0.1)
        (top, bottom), (left, right) = spec.padding
        return self.node(
            "Conv",
            [value, weight, bias],
            kernel_shape=list(spec.kernel_size),
            strides=list(spec.stride),
            dilations=list(spec.dilation),
            pads=[top, left, bottom, right],
            group=spec.groups,
        )

    def linear(self, value: str, spec: ConvSpec) -> str:
        """Append a linear operation as what it is where it stands alone; return the name of its output."""
        if spec.kind == "norm":
            numbers = [self._weight((spec.out_channels,), 0.1) for _ in range(3)]
            variance = self.constant(np.ones(spec.out_channels))
            return self.node("BatchNormalization", [value, *numbers, variance])
        if spec.kind == "scale":
            return self.node("Mul", [value, self._weight((spec.out_channels, 1, 1), 1.0)])
        if spec.kind == "pool":
            (top, bottom), (left, right) = spec.padding
            return self.node(
                "AveragePool",
                [value],
                kernel_shape=list(spec.kernel_size),
                strides=list(spec.stride),
                pads=[top, left, bottom, right],
                count_include_pad=1,
            )
        if spec.kind == "slice":
            return self._slice(value, spec)
        # A lone addition does nothing by itself: the addition is that of its residual.
        return value if spec.kind in ("add", "identity") else self.conv(value, spec)

    def _slice(self, value: str, spec: ConvSpec) -> str:
        far = np.iinfo(np.int64).max
        bounds = [self.integers([0, 0]), self.integers([far, far]), self.integers([2, 3])]
        value = self.node("Slice", [value, *bounds, self.integers(list(spec.stride))])
        added = spec.out_channels - spec.in_channels
        if not added:
            return value
        return self.node("Pad", [value, self.integers([0, added // 2, 0, 0, 0, added - added // 2, 0, 0])])

    def add(self, left: str, right: str) -> str:
        """Append an elementwise sum; return the name of its output."""
        return self.node("Add", [left, right])

    def activation(self, value: str, spec: ActivationSpec | None, channels: int, where: str = "a segment") -> str:
        """Append an activation (nothing for None); return the name of its output.

        Raises:
            ExportError: the kind is not in the table below.
        """
        if spec is None:
            return value
        emit = _ACTIVATIONS.get(spec.kind)
        if emit is None:
            known = ", ".join(sorted(_ACTIVATIONS))
            raise ExportError(f"activation {spec.kind!r} of {where} has no ONNX form here; known: {known}")
        return emit(self, value, dict(spec.params), channels)

    def constant(self, values: Any) -> str:
        """Store a constant in the graph's dtype; return its name."""
        return self._store(np.asarray(values, dtype=_NUMPY_TYPES[self.dtype]))

    def integers(self, values: list[int]) -> str:
        """Store a list of whole numbers (axes, sizes); return its name."""
        return self._store(np.asarray(values, dtype=np.int64))

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Append one node of the standard domain; return the name of its only output."""
        from onnx import helper

        output = self._name(kind.lower())
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def rename_last_output(self, name: str) -> None:
        """Give the output of the node added last the name ``name``; nothing may read it yet."""
        self.nodes[-1].output[0] = name

    def model_bytes(self) -> bytes:
        """Return the serialised model."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, "layerfold", self.inputs, self.outputs, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        return bytes(model.SerializeToString())

    def _weight(self, shape: tuple[int, ...], scale: float) -> str:
        dtype = np.dtype(_NUMPY_TYPES[self.dtype])
        if self._is_light and math.prod(shape) * dtype.itemsize >= LIGHT_BYTES:
            name = self._name("w")
            node, initializers = repeated_weight(name, shape, dtype, self._random)
            self.nodes.append(node)
            self.initializers += initializers
            return name
        values = np.resize(self._random * np.float32(scale), shape)
        return self._store(values.astype(_NUMPY_TYPES[self.dtype]))

    def _store(self, values: np.ndarray[Any, np.dtype[Any]]) -> str:
        from onnx import numpy_helper

        name = self._name("w")
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{self.prefix}{stem}_{self._count}"

    def value_info(self, name: str, shape: tuple[int, ...]) -> Any:
        """Return the declaration of a value of ``shape``, batch included."""
        from onnx import TensorProto, helper

        kind = TensorProto.FLOAT if self.dtype == "float32" else TensorProto.FLOAT16
        return helper.make_tensor_value_info(name, kind, list(shape))


_Emit = Callable[[OnnxWriter, str, dict[str, float], int], str]


def _one_node(kind: str, **fixed: float) -> _Emit:
    def emit(writer: OnnxWriter, value: str, params: dict[str, float], channels: int) -> str:
        return writer.node(kind, [value], **fixed)

    return emit


def _alpha_node(kind: str, parameter: str, default: float) -> _Emit:
    def emit(writer: OnnxWriter, value: str, params: dict[str, float], channels: int) -> str:
        return writer.node(kind, [value], alpha=float(params.get(parameter, default)))

    return emit


def _clip(low: float, high: float) -> _Emit:
    def emit(writer: OnnxWriter, value: str, params: dict[str, float], channels: int) -> str:
        least, most = params.get("min_val", low), params.get("max_val", high)
        return writer.node("Clip", [value, writer.constant(least), writer.constant(most)])

    return emit


def _silu(writer: OnnxWriter, value: str, params: dict[str, float], channels: int) -> str:
    return writer.node("Mul", [value, writer.node("Sigmoid", [value])])


def _gelu(writer: OnnxWriter, value: str, params: dict[str, float], channels: int) -> str:
    erf = writer.node("Erf", [writer.node("Div", [value, writer.constant(math.sqrt(2))])])
    shifted = writer.node("Add", [erf, writer.constant(1)])
    return writer.node("Mul", [writer.node("Mul", [value, shifted]), writer.constant(0.5)])


def _gelu_tanh(writer: OnnxWriter, value: str, params: dict[str, float], channels: int) -> str:
    cube = writer.node("Mul", [writer.node("Mul", [value, value]), value])
    inner = writer.node("Add", [value, writer.node("Mul", [cube, writer.constant(0.044715)])])
    tanh = writer.node("Tanh", [writer.node("Mul", [inner, writer.constant(math.sqrt(2 / math.pi))])])
    shifted = writer.node("Add", [tanh, writer.constant(1)])
    return writer.node("Mul", [writer.node("Mul", [value, shifted]), writer.constant(0.5)])


def _mish(writer: OnnxWriter, value: str, params: dict[str, float], channels: int) -> str:
    return writer.node("Mul", [value, writer.node("Tanh", [writer.node("Softplus", [value])])])


def _softplus(writer: OnnxWriter, value: str, params: dict[str, float], channels: int) -> str:
    beta = params.get("beta", 1.0)
    if beta == 1.0:
        return writer.node("Softplus", [value])
    inner = writer.node("Softplus", [writer.node("Mul", [value, writer.constant(beta)])])
    return writer.node("Div", [inner, writer.constant(beta)])


def _prelu(writer: OnnxWriter, value: str, params: dict[str, float], channels: int) -> str:
    return writer.node("PRelu", [value, writer.constant(np.full((channels, 1, 1), 0.25))])


_ACTIVATIONS: dict[str, _Emit] = {
    "relu": _one_node("Relu"),
    "relu6": _clip(0.0, 6.0),
    "hardtanh": _clip(-1.0, 1.0),
    "silu": _silu,
    "hardswish": _one_node("HardSwish"),
    "hardsigmoid": _one_node("HardSigmoid", alpha=1 / 6, beta=0.5),
    "sigmoid": _one_node("Sigmoid"),
    "tanh": _one_node("Tanh"),
    "softsign": _one_node("Softsign"),
    "selu": _one_node("Selu"),
    "leaky_relu": _alpha_node("LeakyRelu", "negative_slope", 0.01),
    "elu": _alpha_node("Elu", "alpha", 1.0),
    "celu": _alpha_node("Celu", "alpha", 1.0),
    "prelu": _prelu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "mish": _mish,
    "softplus": _softplus,
}
"""Activation kind -> the ONNX nodes that compute it; the kinds are those of ``layerfold.graph``."""

ACTIVATION_KINDS = tuple(sorted(_ACTIVATIONS))
