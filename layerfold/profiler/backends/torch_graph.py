"""An ONNX graph as a torch module, for the operators that CNNs export to.

Written here since the libraries for it (onnx2torch, onnx2pytorch) are untyped and follow neither the current opset nor
the current torch. Tested against ONNX Runtime, operator by operator and on whole networks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from layerfold.errors import ProfilerError
from layerfold.export.precision import read_graph

Value = Any
"""An ``fx.Node``, or a tensor that is known beforehand (a weight, a shape)."""
_Attributes = dict[str, Any]


def torch_module(onnx_bytes: bytes) -> fx.GraphModule:
    """Return a module in eval mode that computes an ONNX graph with static shapes.

    Its positional inputs are the graph's, in order, NCHW; it returns a tuple of the graph's outputs. Weights are
    buffers, in the dtype of the graph.

    Raises:
        UsageError: no ONNX model.
        ProfilerError: an operator, or a use of one, that has no form here; names the node.
    """
    from onnx import numpy_helper

    graph = read_graph(onnx_bytes)
    build = _Build()
    for each in graph.initializer:
        build.values[each.name] = torch.from_numpy(numpy_helper.to_array(each).copy())
    for put in graph.input:
        if put.name not in build.values:
            build.values[put.name] = build.graph.placeholder(f"input_{len(build.inputs)}")
            build.inputs.append(put.name)
    for node in graph.node:
        emit = _OPERATORS.get(node.op_type)
        where = f"node {node.name or node.output[0]} ({node.op_type})"
        if emit is None or node.domain not in ("", "ai.onnx"):
            raise ProfilerError(f"{where} has no form in the torch backend; measure this network with another backend")
        attributes = {each.name: _attribute(each) for each in node.attribute}
        args = [build.values[name] if name else None for name in node.input]
        try:
            found = emit(build, args, attributes)
        except _UnsupportedError as error:
            raise ProfilerError(
                f"{where}: {error} has no form in the torch backend; measure this network with another backend"
            ) from None
        results = found if isinstance(found, list) else [found]
        build.values.update(zip(node.output, results, strict=False))
    build.graph.output(tuple(build.node_of(build.values[put.name]) for put in graph.output))
    return fx.GraphModule(build.root, build.graph).eval()


def in_bfloat16(module: fx.GraphModule) -> nn.Module:
    """Return such a module with weights and feature maps in bfloat16; inputs and outputs stay float32.

    By ``.to(torch.bfloat16)``, as a network is deployed: autocast would convert the weights in every pass. The module
    itself is changed.
    """
    for node in module.graph.nodes:
        if node.kwargs.get("dtype") == torch.float32:  # a cast of the graph's own
            node.kwargs = {**node.kwargs, "dtype": torch.bfloat16}
    module.recompile()
    return _InBfloat16(module.to(torch.bfloat16)).eval()


class _InBfloat16(nn.Module):
    """Converts what goes into a module and what comes out of it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = (each.to(torch.bfloat16) if each.is_floating_point() else each for each in values)
        return tuple(each.float() if each.is_floating_point() else each for each in self.inner(*given))


class _UnsupportedError(Exception):
    """A use of an operator that has no form here; the message is what it is."""


class _Build:
    """The graph under construction: ONNX value name -> node or constant."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.values: dict[str, Value] = {}
        self.inputs: list[str] = []
        self._stored: dict[int, tuple[torch.Tensor, fx.Node]] = {}

    def node_of(self, value: Value) -> Any:
        """Return a value as a node; a constant becomes a buffer, stored once."""
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._stored:
            name = f"weight_{len(self._stored)}"
            self.root.register_buffer(name, value)
            self._stored[id(value)] = (value, self.graph.get_attr(name))
        return self._stored[id(value)][1]

    def call(self, function: Callable[..., Any], *args: Value, **kwargs: Any) -> Any:
        """Append a call, or compute it now where every tensor in it is known."""
        if args and not any(isinstance(part, fx.Node) for each in args for part in _parts(each)):
            return function(*args, **kwargs)
        nodes = [
            [self.node_of(part) for part in each] if isinstance(each, list) else self.node_of(each) for each in args
        ]
        return self.graph.call_function(function, tuple(nodes), kwargs)


_Emit = Callable[[_Build, list[Value], _Attributes], Any]


def _parts(value: Value) -> list[Value]:
    return value if isinstance(value, list) else [value]


def _attribute(attribute: Any) -> Any:
    from onnx import helper, numpy_helper

    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if hasattr(value, "data_type"):
        return torch.from_numpy(numpy_helper.to_array(value).copy())
    return list(value) if isinstance(value, (list, tuple)) or hasattr(value, "append") else value


def _ints(value: Value, what: str) -> list[int]:
    if not isinstance(value, torch.Tensor):
        raise _UnsupportedError(f"{what} that is computed while running")
    return [int(each) for each in value.reshape(-1)]


def _scalar(value: Value, default: float | None = None) -> float | None:
    if value is None:
        return default
    if not isinstance(value, torch.Tensor):
        raise _UnsupportedError("a bound that is computed while running")
    return float(value)


def _padding(attributes: _Attributes) -> tuple[tuple[int, int], list[int] | None]:
    """Return symmetric (height, width) padding, or zeros and the argument of ``F.pad`` where it is not symmetric."""
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise _UnsupportedError(f"auto_pad={attributes['auto_pad']}")
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    if (top, left) == (bottom, right):
        return (top, left), None
    return (0, 0), [left, right, top, bottom]


def _conv(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    x, weight, *bias = args
    if weight.ndim != 4 if isinstance(weight, torch.Tensor) else False:
        raise _UnsupportedError("a conv that is not two-dimensional")
    padding, around = _padding(attributes)
    if around is not None:
        x = build.call(F.pad, x, around)
    return build.call(
        F.conv2d,
        x,
        weight,
        bias[0] if bias else None,
        attributes.get("strides", [1, 1]),
        list(padding),
        attributes.get("dilations", [1, 1]),
        attributes.get("group", 1),
    )


def _pool(kind: str) -> _Emit:
    def emit(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
        kernel = attributes["kernel_shape"]
        stride = attributes.get("strides", [1, 1])
        padding, around = _padding(attributes)
        is_ceil = bool(attributes.get("ceil_mode", 0))
        dilation = attributes.get("dilations", [1, 1])
        x = args[0]
        if kind == "max":
            if around is not None:
                x = build.call(F.pad, x, around, value=float("-inf"))
            return build.call(F.max_pool2d, x, kernel, stride, list(padding), dilation, ceil_mode=is_ceil)
        counts = bool(attributes.get("count_include_pad", 0))
        if dilation != [1, 1] or (around is not None and not counts):
            raise _UnsupportedError("average pooling with dilation or one-sided padding")
        if around is not None:
            x = build.call(F.pad, x, around)
        return build.call(F.avg_pool2d, x, kernel, stride, list(padding), is_ceil, counts)

    return emit


def _clip(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    low = _scalar(args[1] if len(args) > 1 else None, attributes.get("min"))
    high = _scalar(args[2] if len(args) > 2 else None, attributes.get("max"))
    if low is not None and high is not None:
        return build.call(F.hardtanh, args[0], low, high)
    return build.call(torch.clamp, args[0], min=low, max=high)


def _mul(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    for x, gate in (args, args[::-1]):
        is_silu = isinstance(gate, fx.Node) and gate.target is torch.sigmoid and gate.args[0] is x
        if is_silu:  # what the exporter took apart; one kernel in torch
            return build.call(F.silu, x)
    return build.call(operator.mul, *args)


def _gemm(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    x, weight, *bias = args
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        raise _UnsupportedError("a product with transA, alpha or beta")
    if not attributes.get("transB", 0):
        weight = build.call(torch.transpose, weight, 0, 1)
    return build.call(F.linear, x, weight, bias[0] if bias else None)


def _reduce(function: Callable[..., Any]) -> _Emit:
    def emit(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
        axes = _ints(args[1], "axes") if len(args) > 1 and args[1] is not None else attributes.get("axes")
        if axes is None:
            raise _UnsupportedError("a reduction over all axes")
        return build.call(function, args[0], axes, keepdim=bool(attributes.get("keepdims", 1)))

    return emit


def _reshape(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    shape = _ints(args[1], "a shape")
    if 0 in shape:  # ONNX: keep that size
        if 0 in shape[1:]:
            raise _UnsupportedError(f"the shape {shape}")
        return build.call(torch.flatten, args[0], 1) if shape == [0, -1] else _raise(f"the shape {shape}")
    return build.call(torch.reshape, args[0], shape)


def _raise(what: str) -> Any:
    raise _UnsupportedError(what)


def _flatten(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    axis = attributes.get("axis", 1)
    return build.call(torch.flatten, args[0], 1) if axis == 1 else _raise(f"axis={axis}")


def _concat(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    return build.call(torch.cat, list(args), attributes["axis"])


def _gather(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    x, index = args
    if not isinstance(index, torch.Tensor) or index.ndim != 1:
        raise _UnsupportedError("gathering by other than one known list of places")
    axis = attributes.get("axis", 0)
    if isinstance(x, torch.Tensor):  # a part of a shape
        return x.index_select(axis, index % x.shape[axis])
    if bool((index < 0).any()):  # from the back, of a size that is not known here
        raise _UnsupportedError("a negative place")
    return build.call(torch.index_select, x, axis, index)


def _scatter(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    if attributes.get("reduction", "none") != "none":
        raise _UnsupportedError(f"scattering with reduction={attributes['reduction']}")
    x, index, updates = args
    if not isinstance(index, torch.Tensor) or bool((index < 0).any()):  # torch knows no places from the back
        raise _UnsupportedError("scattering to places that are negative or not known")
    return build.call(torch.scatter, x, attributes.get("axis", 0), index, updates)


def _slice(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    starts, ends = _ints(args[1], "a slice's start"), _ints(args[2], "a slice's end")
    axes = _ints(args[3], "axes") if len(args) > 3 and args[3] is not None else list(range(len(starts)))
    steps = _ints(args[4], "steps") if len(args) > 4 and args[4] is not None else [1] * len(starts)
    if any(axis < 0 for axis in axes) or any(step < 1 for step in steps):
        raise _UnsupportedError("a slice from the back")
    index = [slice(None)] * (max(axes) + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return build.call(operator.getitem, args[0], tuple(index))


def _pad(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    mode = attributes.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge") or (len(args) > 3 and args[3] is not None):
        raise _UnsupportedError(f"padding by mode {mode}")
    pads = _ints(args[1], "padding")
    rank = len(pads) // 2
    around = [size for axis in reversed(range(rank)) for size in (pads[axis], pads[rank + axis])]
    value = _scalar(args[2] if len(args) > 2 else None, 0.0)
    if mode == "constant":
        return build.call(F.pad, args[0], around, value=value)
    if any(around[4:]):
        raise _UnsupportedError(f"padding of the batch or the channels by mode {mode}")
    return build.call(F.pad, args[0], around[:4], mode={"edge": "replicate"}.get(mode, mode))


def _split(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    axis = attributes.get("axis", 0)
    if len(args) < 2 or args[1] is None:
        raise _UnsupportedError("a split into equal parts by number")
    sizes = _ints(args[1], "sizes")
    parts = build.call(torch.split, args[0], sizes, dim=axis)
    return [build.call(operator.getitem, parts, index) for index in range(len(sizes))]


def _batch_norm(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    x, weight, bias, mean, var = args
    return build.call(F.batch_norm, x, mean, var, weight, bias, False, 0.0, attributes.get("epsilon", 1e-5))


def _layer_norm(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    x, weight, *bias = args
    if attributes.get("axis", -1) != -1 and attributes["axis"] < 0:
        raise _UnsupportedError(f"axis={attributes['axis']}")
    return build.call(
        F.layer_norm, x, list(weight.shape), weight, bias[0] if bias else None, attributes.get("epsilon", 1e-5)
    )


def _resize(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    mode = {"nearest": "nearest", "linear": "bilinear"}.get(attributes.get("mode", "nearest"))
    how = attributes.get("coordinate_transformation_mode", "half_pixel")
    is_aligned = how == "align_corners"
    if (
        mode is None
        or (mode == "nearest" and how != "asymmetric")
        or (mode == "bilinear" and how not in ("half_pixel", "pytorch_half_pixel", "align_corners"))
    ):
        raise _UnsupportedError(f"resizing by {attributes.get('mode')}, {how}")
    kwargs: dict[str, str | bool] = {"mode": mode} | ({"align_corners": is_aligned} if mode == "bilinear" else {})
    if len(args) > 3 and args[3] is not None:
        return build.call(F.interpolate, args[0], size=tuple(_ints(args[3], "sizes")[2:]), **kwargs)
    if not isinstance(args[2], torch.Tensor):
        raise _UnsupportedError("a scale that is computed while running")
    return build.call(F.interpolate, args[0], scale_factor=tuple(float(each) for each in args[2][2:]), **kwargs)


def _cast(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
    from onnx import TensorProto

    known = {
        TensorProto.FLOAT: torch.float32,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.DOUBLE: torch.float64,
        TensorProto.INT64: torch.int64,
        TensorProto.INT32: torch.int32,
        TensorProto.BOOL: torch.bool,
    }
    kind = known.get(attributes["to"])
    return build.call(torch.Tensor.to, args[0], dtype=kind) if kind else _raise(f"the type {attributes['to']}")


def _function(function: Callable[..., Any], **defaults: Any) -> _Emit:
    """Return what emits ``function(*inputs, **defaults)``, with the node's own value of each default."""

    def emit(build: _Build, args: list[Value], attributes: _Attributes) -> Any:
        kwargs = {ours: attributes.get(theirs, value) for ours, (theirs, value) in defaults.items()}
        return build.call(function, *args, **kwargs)

    return emit


def _hard_sigmoid(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    return F.hardsigmoid(x) if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5 else torch.clamp(alpha * x + beta, 0, 1)


_OPERATORS: dict[str, _Emit] = {
    "Add": _function(operator.add),
    "AveragePool": _pool("average"),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Celu": _function(F.celu, alpha=("alpha", 1.0)),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": lambda build, args, attributes: (
        attributes["value"] if "value" in attributes else torch.tensor(next(iter(attributes.values())))
    ),
    "Conv": _conv,
    "Div": _function(operator.truediv),
    "Elu": _function(F.elu, alpha=("alpha", 1.0)),
    "Erf": _function(torch.erf),
    "Expand": lambda build, args, attributes: build.call(torch.broadcast_to, args[0], _ints(args[1], "a shape")),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _function(F.gelu, approximate=("approximate", "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda build, args, attributes: build.call(F.adaptive_avg_pool2d, args[0], 1),
    "GlobalMaxPool": lambda build, args, attributes: build.call(F.adaptive_max_pool2d, args[0], 1),
    "HardSigmoid": _function(_hard_sigmoid, alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "HardSwish": _function(F.hardswish),
    "Identity": lambda build, args, attributes: args[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _function(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "MatMul": _function(torch.matmul),
    "MaxPool": _pool("max"),
    "Mish": _function(F.mish),
    "Mul": _mul,
    "Neg": _function(operator.neg),
    "PRelu": lambda build, args, attributes: build.call(F.prelu, args[0], args[1].reshape(-1)),
    "Pad": _pad,
    "Pow": _function(operator.pow),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _function(F.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "Selu": _function(F.selu),
    "Sigmoid": _function(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _function(torch.softmax, dim=("axis", -1)),
    "Softplus": _function(F.softplus),
    "Softsign": _function(F.softsign),
    "Split": _split,
    "Sqrt": _function(torch.sqrt),
    "Squeeze": lambda build, args, attributes: build.call(torch.squeeze, args[0], tuple(_ints(args[1], "axes"))),
    "Sub": _function(operator.sub),
    "Tanh": _function(torch.tanh),
    "Transpose": lambda build, args, attributes: build.call(torch.permute, args[0], attributes["perm"]),
    "Unsqueeze": lambda build, args, attributes: build.call(torch.unsqueeze, args[0], _ints(args[1], "axes")[0]),
}
"""ONNX operator -> what appends it to the torch graph."""

OPERATORS = tuple(sorted(_OPERATORS))
