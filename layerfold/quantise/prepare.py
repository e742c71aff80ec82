"""A float32 graph as the quantiser wants it: checked, constants stored, BatchNorm in its conv, means as poolings."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from layerfold.errors import UsageError

LEAST_OPSET = 13  # the first whose DequantizeLinear has a scale per channel
_OPSET = 18  # what older graphs are converted to
_QUANTISED_KINDS = frozenset(
    {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QuantizeLinear"}
)


def prepared(onnx_bytes: bytes) -> Any:
    """Return a float32 model ready to be quantised, with the shape of each value stored.

    Raises:
        UsageError: no model, another type than float32, quantised already, open shapes, or weights that are not finite.
    """
    import onnx

    try:
        model = onnx.load_from_string(onnx_bytes)
    except Exception as error:  # protobuf's own errors
        raise UsageError("this is no ONNX model; export it again") from error
    _check(model.graph)
    model = _in_opset(model)
    graph = model.graph
    _store_constants(graph)
    _fold_batch_norms(graph)
    _write_means_as_poolings(graph)
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception as error:
        raise UsageError(f"this ONNX model has no consistent shapes: {' '.join(str(error).split())[:200]}") from error


def is_quantised(graph: Any) -> bool:
    """Say whether a graph holds nodes that quantise, dequantise or compute in integers."""
    return any(node.op_type in _QUANTISED_KINDS for node in graph.node)


def _check(graph: Any) -> None:
    from onnx import TensorProto, numpy_helper

    halves = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    if is_quantised(graph):
        raise UsageError(
            "this network is quantised already: use it as it is, or give the float32 network that it was made from"
        )
    weights = {each.name for each in graph.initializer}
    for put in graph.input:
        tensor = put.type.tensor_type
        if put.name in weights:
            continue
        if tensor.elem_type in halves:
            raise UsageError(f"input {put.name!r} is in float16; quantise the float32 network in its place")
        if any(not size.HasField("dim_value") or size.dim_value < 1 for size in tensor.shape.dim):
            sizes = [
                size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in tensor.shape.dim
            ]
            raise UsageError(f"input {put.name!r} has the shape {sizes}; export with fixed sizes, the batch too")
    for each in graph.initializer:
        if each.data_type in halves:
            raise UsageError(f"weight {each.name!r} is in float16; quantise the float32 network in its place")
        if each.data_type == TensorProto.FLOAT and not np.isfinite(numpy_helper.to_array(each)).all():
            raise UsageError(f"weight {each.name!r} holds NaN or infinity; a network must be finite to be quantised")


def _in_opset(model: Any) -> Any:
    from onnx import version_converter

    opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    if opset >= LEAST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, _OPSET)
    except Exception as error:
        raise UsageError(
            f"this model is of opset {opset}; export it with opset {_OPSET}, at least {LEAST_OPSET}"
        ) from error


def _store_constants(graph: Any) -> None:
    """Make initializers of Constant nodes, and leave out Identity nodes between others."""
    kept = []
    for node in graph.node:
        value = next((each.t for each in node.attribute if each.name == "value"), None)
        if node.op_type != "Constant" or value is None:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    replace_nodes(graph, kept)


def _fold_batch_norms(graph: Any) -> None:
    """Put each BatchNormalization behind a conv into that conv."""
    from onnx import numpy_helper

    constants = {each.name: each for each in graph.initializer}
    readers = count_readers(graph)
    makers = {name: node for node in graph.node for name in node.output}
    kept = []
    for node in graph.node:
        conv = makers.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if (
            conv is None
            or conv.op_type != "Conv"
            or readers[conv.output[0]] > 1
            or any(name not in constants for name in (*conv.input[1:], *node.input[1:]))
            or any(readers[name] > 1 for name in conv.input[1:])
        ):
            kept.append(node)
            continue
        gamma, beta, mean, variance = (
            numpy_helper.to_array(constants[name]).astype(np.float64) for name in node.input[1:5]
        )
        epsilon = next((each.f for each in node.attribute if each.name == "epsilon"), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        weight = numpy_helper.to_array(constants[conv.input[1]]).astype(np.float64)
        bias = numpy_helper.to_array(constants[conv.input[2]]).astype(np.float64) if len(conv.input) > 2 else 0.0
        set_array(constants[conv.input[1]], weight * factor.reshape(-1, *(1 for _ in weight.shape[1:])))
        bias_name = conv.input[2] if len(conv.input) > 2 else f"{conv.output[0]}.bias"
        if bias_name not in constants:
            constants[bias_name] = graph.initializer.add()
            constants[bias_name].name = bias_name
            conv.input.append(bias_name)
        set_array(constants[bias_name], (bias - mean) * factor + beta)
        conv.output[0] = node.output[0]
        makers[node.output[0]] = conv
    replace_nodes(graph, kept)


def _write_means_as_poolings(graph: Any) -> None:
    """Write a mean over height and width as a GlobalAveragePool, which runtimes have in integers."""
    from onnx import helper, numpy_helper

    constants = {each.name: each for each in graph.initializer}
    nodes = []
    for node in graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        axes = attributes.get("axes")
        if node.op_type == "ReduceMean" and len(node.input) > 1 and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        if node.op_type != "ReduceMean" or axes is None or sorted(axes) not in ([2, 3], [-2, -1]):
            nodes.append(node)
            continue
        output, keeps = node.output[0], attributes.get("keepdims", 1)
        pooled = output if keeps else f"{output}.pooled"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{output}.pool"))
        if not keeps:
            nodes.append(helper.make_node("Flatten", [pooled], [output], name=f"{output}.flatten", axis=1))
    replace_nodes(graph, nodes)


def count_readers(graph: Any) -> Counter[str]:
    """Return how many nodes and outputs of a graph read each value."""
    readers: Counter[str] = Counter(name for node in graph.node for name in node.input if name)
    readers.update(put.name for put in graph.output)
    return readers


def replace_nodes(graph: Any, nodes: list[Any]) -> None:
    """Make these the nodes of a graph, in their order."""
    if len(nodes) == len(graph.node) and all(new is old for new, old in zip(nodes, graph.node, strict=True)):
        return
    copies = []
    for node in nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def set_array(tensor: Any, values: np.ndarray[Any, Any]) -> None:
    """Give an initializer new float32 values; its name stays."""
    from onnx import numpy_helper

    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), tensor.name))


def image_input_of(model: Any) -> Any:
    """Return the declaration of the one input of a model.

    Raises:
        UsageError: it has none, or several.
    """
    weights = {each.name for each in model.graph.initializer}
    inputs = [put for put in model.graph.input if put.name not in weights]
    if len(inputs) != 1:
        raise UsageError(f"this network has {len(inputs)} inputs; images calibrate a network of one input only")
    return inputs[0]


def input_shape_of(model: Any) -> tuple[int, ...]:
    """Return the shape of the one input of a model, batch included."""
    return tuple(size.dim_value for size in image_input_of(model).type.tensor_type.shape.dim)
