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

from layerfold.export.precision import has_products, has_quantised_nodes
from layerfold.profiler.backends.protocol import Backend, Runner


def compile_to_time(
    backend: Backend, onnx_bytes: bytes, *, has_integer_ends: bool = False, float_ends: Collection[str] = ()
) -> Runner:
    """Compile a graph to be timed, whose answers do not matter.

    Args:
        backend: compiles; in int8 a graph that is not quantised yet is quantised with constant scales.
        onnx_bytes: a float32 graph (in float16, one of either kind), or one that is quantised already.
        has_integer_ends: the graph is a part of a network, in which its inputs arrive and its outputs leave in int8.
        float_ends: names of inputs and outputs that do not: those of the network itself.

    Raises:
        UsageError, ProfilerError: as of :meth:`Backend.compile`.
    """
    if backend.precision == "int8":
        onnx_bytes = quantised_to_time(onnx_bytes, has_integer_ends=has_integer_ends, float_ends=tuple(float_ends))
    return backend.compile(onnx_bytes)


def quantised_to_time(
    onnx_bytes: bytes, *, has_integer_ends: bool = False, float_ends: Collection[str] = ()
) -> bytes:
    """Return the graph that :func:`compile_to_time` compiles in int8; one without convs or products stays as it is."""
    if has_quantised_nodes(onnx_bytes) or not has_products(onnx_bytes):
        return onnx_bytes
    from layerfold.quantise import quantise_graph

    made = quantise_graph(onnx_bytes)
    return _with_integer_ends(made, frozenset(float_ends)) if has_integer_ends else made


@functools.cache
def quantisation_digest() -> str:
    """Return what tells one way of quantising from another: a digest of what becomes of a small reference graph.

    It holds an example of everything that the profiler writes. So a change of the placement, of types or of constant
    scales gives another digest, and no latency is looked up that was measured before it.
    """
    return hashlib.sha256(quantised_to_time(_reference_graph(), has_integer_ends=True)).hexdigest()[:16]


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
    pooled = node("Concat", node("MaxPool", gated, kernel_shape=[2, 2]), node("AveragePool", gated, kernel_shape=[2, 2]), axis=1)
    flat = node("Flatten", node("GlobalAveragePool", node("LeakyRelu", pooled)))
    output = node("MatMul", node("Gemm", flat, stored(4, 8), stored(4), transB=1), stored(4, 2))
    puts = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 3, 16, 16)), (output, (1, 2)))
    ]
    graph = helper.make_graph(nodes, "reference", puts[:1], puts[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def _with_integer_ends(onnx_bytes: bytes, float_ends: frozenset[str]) -> bytes:
    """Return a quantised graph that takes and gives whole numbers: without the conversions at its ends.

    An input stays float32 where something reads it that is not quantised, and so does an output that does not come
    from a DequantizeLinear.
    """
    import onnx

    model = onnx.load_from_string(onnx_bytes)
    graph = model.graph
    kinds = {each.name: each.data_type for each in graph.initializer}
    results = {put.name for put in graph.output}
    gone: list[int] = []
    renamed: dict[str, str] = {}
    for put in graph.input:
        readers = [i for i, node in enumerate(graph.node) if put.name in node.input]
        is_converted = readers and all(graph.node[i].op_type == "QuantizeLinear" for i in readers)
        same = len({tuple(graph.node[i].input[1:]) for i in readers}) == 1
        if not is_converted or not same or put.name in float_ends or put.name in results:
            continue
        gone += readers
        renamed |= {graph.node[i].output[0]: put.name for i in readers}
        put.type.tensor_type.elem_type = kinds[graph.node[readers[0]].input[2]]
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    for put in graph.output:
        maker = makers.get(put.name)
        if maker is None or graph.node[maker].op_type != "DequantizeLinear" or put.name in float_ends:
            continue
        node = graph.node[maker]
        if any(put.name in each.input for each in graph.node) or node.input[0] not in makers:
            continue
        gone.append(maker)
        put.type.tensor_type.elem_type = kinds[node.input[2]]
        put.name = node.input[0]
    kept = [node for i, node in enumerate(graph.node) if i not in gone]
    for node in kept:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
    return bytes(model.SerializeToString())
