"""Compile graphs of which the latency alone is asked: in int8 they are quantised here, and nowhere else.

Segments, whole networks under a plan, originals and merged networks are all written in float32. Latency hardly depends
on scales, as it does not depend on weights: so all of them get constant scales, in the placement that the deployed
network will have (:mod:`layerfold.quantise`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection
from typing import Any

from layerfold.export.precision import has_quantised_nodes, read_graph
from layerfold.profiler.backends.protocol import Backend, BackendOptions, Runner


def compile_to_time(
    backend: Backend, onnx_bytes: bytes, *, is_part: bool = False, float_ends: Collection[str] = ()
) -> Runner:
    """Compile a graph to be timed, whose answers do not matter.

    Args:
        backend: compiles; in int8 a graph that is not quantised yet is quantised with constant scales.
        onnx_bytes: a float32 graph (in float16, one of either kind), or one that is quantised already.
        is_part: the graph is a part of a network, in which its inputs arrive and its outputs leave in int8.
        float_ends: names of inputs and outputs that do not: those of the network itself.

    Raises:
        UsageError, ProfilerError: as of :meth:`Backend.compile`.
    """
    if backend.precision == "int8" and not has_quantised_nodes(onnx_bytes):
        symmetric = is_symmetric(backend.name, backend.options)
        onnx_bytes = quantised_to_time(onnx_bytes, symmetric=symmetric, is_part=is_part, float_ends=float_ends)
    return backend.compile(onnx_bytes)


def is_symmetric(backend_name: str, options: BackendOptions) -> bool:
    """Say whether a backend wants feature maps in int8 around zero: TensorRT knows no zero point."""
    return "tensorrt" in (backend_name, options.get("device"))


def quantised_to_time(
    onnx_bytes: bytes, *, symmetric: bool = False, is_part: bool = False, float_ends: Collection[str] = ()
) -> bytes:
    """Return the graph that :func:`compile_to_time` compiles in int8."""
    from layerfold.options import QuantiseOptions
    from layerfold.quantise import quantise_graph

    options = QuantiseOptions(symmetric=symmetric)
    if not is_part:
        return quantise_graph(onnx_bytes, options=options)
    graph = read_graph(onnx_bytes)
    ends = {put.name for put in (*graph.input, *graph.output)} - set(float_ends)
    return _with_integer_ends(quantise_graph(onnx_bytes, options=options, ends=sorted(ends)), ends)


@functools.cache
def quantisation_digest(symmetric: bool = False) -> str:
    """Return what tells one way of quantising from another: a digest of what becomes of a small reference graph.

    It holds an example of everything that the profiler writes. So a change of the placement, of types or of constant
    scales gives another digest, and no latency is looked up that was measured before it.
    """
    graph = _reference_graph()
    made = [quantised_to_time(graph, symmetric=symmetric, is_part=is_part) for is_part in (False, True)]
    return hashlib.sha256(b"".join(made)).hexdigest()[:16]


def _reference_graph() -> bytes:
    """Return a small float32 graph of the operations that segments and networks are made of."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    weights: list[Any] = []

    def stored(*shape: int) -> str:
        values = np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        weights.append(numpy_helper.from_array(values, f"w{len(weights)}"))
        return str(weights[-1].name)

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"v{len(nodes)}"], f"n{len(nodes)}", **attributes))
        return str(nodes[-1].output[0])

    def conv(value: str, outputs: int, inputs: int, size: int = 1, **attributes: Any) -> str:
        pads = [size // 2] * 4
        return node("Conv", value, stored(outputs, inputs, size, size), stored(outputs), pads=pads, **attributes)

    stem = node("Relu", conv("x", 4, 3, 3, strides=[2, 2]))
    wide = node("Clip", conv(stem, 4, 1, 3, group=4), stored(), stored())
    added = node("Add", node("HardSwish", conv(wide, 4, 4)), stem)
    smooth = node("Mul", added, node("Sigmoid", added))
    gate = node("HardSigmoid", conv(node("GlobalAveragePool", smooth), 4, 4))
    gated = node("Mul", smooth, gate)
    pools = [
        node("MaxPool", gated, kernel_shape=[2, 2]),
        node("AveragePool", gated, kernel_shape=[2, 2]),
        node("AveragePool", gated, kernel_shape=[2, 2], ceil_mode=1, count_include_pad=1),
    ]
    pooled = node("Concat", *pools, axis=1)
    flat = node("Flatten", node("GlobalAveragePool", node("LeakyRelu", pooled)))
    output = node("MatMul", node("Gemm", flat, stored(4, 12), stored(4), transB=1), stored(4, 2))
    puts = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 3, 16, 16)), (output, (1, 2)))
    ]
    graph = helper.make_graph(nodes, "reference", puts[:1], puts[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def _with_integer_ends(onnx_bytes: bytes, ends: Collection[str]) -> bytes:
    """Return a quantised graph that takes and gives whole numbers: without the conversions at these ends."""
    import onnx

    model = onnx.load_from_string(onnx_bytes)
    graph = model.graph
    kinds = {each.name: each.data_type for each in graph.initializer}
    inputs = {put.name: put for put in graph.input if put.name in ends}
    outputs = {put.name: put for put in graph.output if put.name in ends and put.name not in inputs}
    read = {name for node in graph.node for name in node.input}
    taken: dict[str, str] = {}
    kept = []
    for node in graph.node:
        put = inputs.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if put is not None:
            put.type.tensor_type.elem_type = kinds[node.input[2]]
            taken[node.output[0]] = put.name
            continue
        put = outputs.get(node.output[0]) if node.op_type == "DequantizeLinear" else None
        if put is not None and node.input[0] not in taken:
            put.type.tensor_type.elem_type = kinds[node.input[2]]
            put.name = node.input[0]
            if node.output[0] not in read:
                continue
        kept.append(node)
    for node in kept:
        node.input[:] = [taken.get(name, name) for name in node.input]
    made = type(graph)()
    made.CopyFrom(graph)
    del made.node[:]
    made.node.extend(kept)
    graph.CopyFrom(made)
    return bytes(model.SerializeToString())
