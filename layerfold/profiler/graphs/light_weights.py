"""Weights that are written as a rule instead of as numbers.

A VGG has half a gigabyte of weights; writing and parsing them again for each of a hundred plans would take longer than
timing the plans. Latency does not depend on their values, so a large weight is stored as one number per row and a node
that repeats it; every runtime folds that into a constant when it compiles the graph.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

LIGHT_BYTES = 1 << 18
"""Weights from this size on are written as a rule."""


def repeated_weight(name: str, shape: tuple[int, ...], dtype: Any, seed_values: Any) -> tuple[Any, list[Any]]:
    """Return the node that makes a weight of ``shape`` out of one number per row, and its initialisers.

    The numbers are of the size 1 / (inputs of a row), so that feature maps neither grow nor vanish.

    Args:
        name: of the weight.
        shape: [rows, ...].
        dtype: numpy type.
        seed_values: random numbers to take the rows from.
    """
    from onnx import helper, numpy_helper

    fan_in = math.prod(shape[1:])
    rows = np.resize(np.asarray(seed_values, dtype=np.float32), (shape[0], *(1 for _ in shape[1:])))
    values = ((1 + 0.1 * rows) / fan_in).astype(dtype)
    sizes = np.asarray(shape, dtype=np.int64)
    node = helper.make_node("Expand", [f"{name}.rows", f"{name}.shape"], [name], name=f"{name}.expand")
    return node, [numpy_helper.from_array(values, f"{name}.rows"), numpy_helper.from_array(sizes, f"{name}.shape")]


@lru_cache(maxsize=2)
def lightened(onnx_bytes: bytes) -> bytes:
    """Return a graph with its large float weights written as a rule; its outputs change, its latency does not."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_from_string(onnx_bytes)
    graph = model.graph
    kept, nodes = [], []
    numbers = np.random.default_rng(0).standard_normal(4096)
    for weight in graph.initializer:
        is_float = weight.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        if not is_float or len(weight.dims) < 2 or len(weight.raw_data) < LIGHT_BYTES:
            kept.append(weight)
            continue
        dtype = helper.tensor_dtype_to_np_dtype(weight.data_type)
        node, initializers = repeated_weight(weight.name, tuple(weight.dims), dtype, numbers)
        nodes.append(node)
        kept += initializers
    graph = helper.make_graph(
        [*nodes, *graph.node], graph.name, graph.input, graph.output, kept, value_info=graph.value_info
    )
    light = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return bytes(light.SerializeToString())
