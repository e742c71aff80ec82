"""A QDQ graph with free zero points as one with zero points of zero, as TensorRT takes it.

TensorRT refuses uint8 feature maps with zero points and biases in int32; ONNX Runtime fuses a ReLU into an integer
conv only where the zero point stands for it. So the file is in the form for processors, and this is the step from
there: a feature map of ``[low, high]`` becomes int8 of ``[-m, m]`` with m the larger end, behind a ReLU where the
old range began at zero, and a bias becomes the float32 numbers that it stands for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from layerfold.errors import UsageError
from layerfold.quantise.prepare import replace_nodes


def symmetric_form(onnx_bytes: bytes) -> bytes:
    """Return a QDQ model whose zero points are all zero; as it is where they are already.

    Raises:
        UsageError: a scale that is not finite or not above 0.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(onnx_bytes)
    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    nodes: list[Any] = []
    is_changed = False
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.input[1] not in constants:
            nodes.append(node)
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise UsageError(f"node {node.name!r}: its scale must be finite and above 0; quantise the network again")
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        whole = constants.get(node.input[0])
        if node.op_type == "DequantizeLinear" and whole is not None and whole.data_type == onnx.TensorProto.INT32:
            values = numpy_helper.to_array(whole).astype(np.float64) * scale
            bias = graph.initializer.add()
            bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
            is_changed = True
            continue
        zeros = None if zero is None else numpy_helper.to_array(zero)
        if zeros is None or not (zeros.any() or zeros.dtype == np.uint8):
            nodes.append(node)
            continue
        is_changed = True
        copy = type(node)()
        copy.CopyFrom(node)
        first, last = (0, 255) if zeros.dtype == np.uint8 else (-128, 127)
        middle = zeros.astype(np.float64)
        wide = (np.maximum(middle - first, last - middle) * scale / 127).astype(np.float32)
        pair = f"{node.input[1]}.{node.input[2]}"  # a scale may be shared by maps of different zero points
        copy.input[1], copy.input[2] = f"{pair}.scale", f"{pair}.none"
        _store(graph, constants, copy.input[1], wide)
        _store(graph, constants, copy.input[2], np.zeros(zeros.shape, np.int8))
        if whole is not None and node.op_type == "DequantizeLinear":  # a weight: its numbers change too
            axis = next((each.i for each in node.attribute if each.name == "axis"), 1)
            numbers = numpy_helper.to_array(whole)
            before, after, middle = (_along(each, axis, numbers.ndim) for each in (scale, wide, middle))
            copy.input[0] = f"{node.input[0]}.{pair}.int8"
            rounded = np.rint((numbers - middle) * before / after).clip(-127, 127)
            _store(graph, constants, copy.input[0], rounded.astype(np.int8))
        if node.op_type == "QuantizeLinear" and (middle == first).all():
            cut = f"{node.output[0]}.cut"
            nodes.append(helper.make_node("Relu", [node.input[0]], [cut], name=cut))
            copy.input[0] = cut
        nodes.append(copy)
    if not is_changed:
        return onnx_bytes
    replace_nodes(graph, nodes)
    read = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    copies = [type(each).FromString(each.SerializeToString()) for each in kept]
    del graph.initializer[:]
    graph.initializer.extend(copies)
    return bytes(model.SerializeToString(deterministic=True))


def _store(graph: Any, constants: dict[str, Any], name: str, values: Any) -> None:
    from onnx import numpy_helper

    if name not in constants:
        constants[name] = graph.initializer.add()
        constants[name].CopyFrom(numpy_helper.from_array(np.asarray(values), name))


def _along(values: Any, axis: int, dims: int) -> Any:
    """Return one number per channel so that it meets a tensor along its axis; a single number as it is."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * dims
    shape[axis] = -1
    return values.reshape(shape)
