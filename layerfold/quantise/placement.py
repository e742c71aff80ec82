"""Which values of a graph are quantised, and which nodes the quantised form needs no longer.

A conv, a matrix product, an addition or a pooling runs in integers where each of its inputs and its output is
quantised (ONNX Runtime asks for both; OpenVINO and TensorRT take it). An activation that only cuts off, ReLU and
its bounded forms, is done by the quantisation behind it, which cuts off at the ends of its range.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from layerfold.quantise.prepare import count_readers

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_COMPUTES = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"})
_CUTS = frozenset({"Clip", "Relu"})
_KEEPS_VALUES = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass
class Placement:
    """What is quantised in a graph.

    Attributes:
        quantised: names of values, in the graph's order.
        same_as: value -> the value whose scale and zero point it has: a reshaping changes no number.
        cut_by: value -> node that cuts its values off and is left out where the range does the same.
        weighted: nodes with a constant weight, by index.
    """

    quantised: dict[str, None] = field(default_factory=dict)
    same_as: dict[str, str] = field(default_factory=dict)
    cut_by: dict[str, Any] = field(default_factory=dict)
    weighted: list[int] = field(default_factory=list)


def place(model: Any, ends: Collection[str] = ()) -> Placement:
    """Return what is quantised in a prepared model; ``ends`` are, whatever makes or reads them."""
    graph = model.graph
    weights = weight_sources(graph)
    floats = _float_values(model)
    readers, found = count_readers(graph), Placement()
    found.quantised |= dict.fromkeys(name for name in ends if name in floats)
    only_reader: dict[str, Any] = {}
    for node in graph.node:
        for name in node.input:
            if readers[name] == 1:
                only_reader[name] = node
    swish = {
        node.output[0]
        for node in graph.node
        if node.op_type == "Sigmoid" and _is_swish(node, only_reader.get(node.output[0]))
    }
    for index, node in enumerate(graph.node):
        kind = node.op_type
        if kind in WEIGHTED and len(node.input) > 1 and node.input[1] in weights:
            found.weighted.append(index)
            found.quantised[node.input[0]] = None
            is_last = readers[node.output[0]] == 1 and node.output[0] not in only_reader
            if kind == "Conv" or not is_last:  # logits stay in float32
                _mark_output(node.output[0], only_reader, found)
        elif kind in _COMPUTES and not swish & {*node.input, *node.output} and not _counts_beyond_padding(node):
            if any(name not in floats for name in node.input):
                continue  # a constant or a number of another type: left as it is
            for name in node.input:
                found.quantised[name] = None
            _mark_output(node.output[0], only_reader, found)
        elif kind in _KEEPS_VALUES and node.input[0] in found.quantised and node.output[0] in floats:
            found.quantised[node.output[0]] = None
            found.same_as[node.output[0]] = found.same_as.get(node.input[0], node.input[0])
    return found


def weight_sources(graph: Any) -> dict[str, str]:
    """Return weight -> initializer that holds it: itself, or the rows that an Expand node repeats."""
    constants = {each.name for each in graph.initializer}
    sources = {name: name for name in constants}
    for node in graph.node:
        if node.op_type == "Expand" and all(name in constants for name in node.input):
            sources[node.output[0]] = node.input[0]
    return sources


def _mark_output(name: str, only_reader: dict[str, Any], found: Placement) -> None:
    """Quantise a node's output, or, where an activation that cuts off alone reads it, that one's output."""
    reader = only_reader.get(name)
    if reader is not None and reader.op_type in _CUTS and reader.input[0] == name:
        found.cut_by[reader.output[0]] = reader
        name = reader.output[0]
    found.quantised[name] = None


def _counts_beyond_padding(node: Any) -> bool:
    """Say whether windows of an average pooling reach beyond counted padding.

    ONNX Runtime's integer kernel divides by what lies beyond too, its float kernel does not: it stays in float32.
    """
    found = {each.name: each.i for each in node.attribute if each.name in ("ceil_mode", "count_include_pad")}
    return node.op_type == "AveragePool" and bool(found.get("ceil_mode")) and bool(found.get("count_include_pad"))


def _is_swish(sigmoid: Any, reader: Any) -> bool:
    """Say whether x * sigmoid(x) follows: runtimes have one node for both, if no quantisation stands between."""
    return reader is not None and reader.op_type == "Mul" and sigmoid.input[0] in reader.input


def _float_values(model: Any) -> frozenset[str]:
    """Return the names of float32 feature maps."""
    from onnx import TensorProto

    graph = model.graph
    constants = {each.name for each in graph.initializer}
    return frozenset(
        info.name
        for info in (*graph.input, *graph.value_info, *graph.output)
        if info.type.tensor_type.elem_type == TensorProto.FLOAT and info.name not in constants
    )
