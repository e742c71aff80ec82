"""Precisions by name, and ONNX graphs in them."""

from __future__ import annotations

from typing import Any

from layerfold.errors import OptionalDependencyError, UsageError, nearest_names

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
_SHORT = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}

_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_CONVERSIONS = frozenset(("QuantizeLinear", "DequantizeLinear"))


def canonical_precision(name: str) -> str:
    """Return ``float32``, ``float16``, ``bfloat16`` or ``int8`` for a name or its short form (``fp32``, ``bf16``).

    Raises:
        UsageError: no such precision.
    """
    found = _SHORT.get(name, name)
    if found not in PRECISIONS:
        known = (*PRECISIONS, *_SHORT)
        raise UsageError(
            f"precision={name!r} is not known; choose from {', '.join(PRECISIONS)}{nearest_names(name, known)}"
        )
    return found


def graph_dtype(precision: str) -> str:
    """Return the dtype that a graph is written in to be run in a precision.

    Halves are written as such. A graph in int8 is a float32 one until it is quantised, and runtimes turn float32 into
    bfloat16 themselves.
    """
    return "float16" if precision == "float16" else "float32"


def to_half(onnx_bytes: bytes) -> bytes:
    """Return the model with weights and feature maps in float16; inputs and outputs stay float32.

    Raises:
        OptionalDependencyError: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ImportError as error:
        raise OptionalDependencyError(
            "precision='float16' needs onnx and onnxruntime to convert the graph; run: pip install onnx onnxruntime"
        ) from error
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of each weight that rounds to the smallest half
        model = convert_float_to_float16(onnx.load_from_string(onnx_bytes), keep_io_types=True)
    OnnxModel(model).topological_sort()  # the casts at the inputs were appended behind what reads them
    return bytes(model.SerializeToString())


def is_half(onnx_bytes: bytes) -> bool:
    """Say whether a graph is in halves already: an input or a weight of it is float16."""
    import onnx

    graph = read_graph(onnx_bytes)
    kinds = {put.type.tensor_type.elem_type for put in graph.input} | {each.data_type for each in graph.initializer}
    return onnx.TensorProto.FLOAT16 in kinds


def has_quantised_nodes(onnx_bytes: bytes) -> bool:
    """Say whether a graph holds QuantizeLinear or DequantizeLinear nodes, as a calibrated model does."""
    return any(node.op_type in _CONVERSIONS for node in read_graph(onnx_bytes).node)


def check_quantised(onnx_bytes: bytes) -> None:
    """Refuse a graph that int8 would run in float32, or whose scales are no numbers.

    Raises:
        UsageError: convs or matrix products and nothing quantised, or a scale that is not above 0 and finite; says
            what to do.
    """
    import numpy as np
    from onnx import numpy_helper

    graph = read_graph(onnx_bytes)
    kinds = {node.op_type for node in graph.node}
    if kinds & _PRODUCTS and not kinds & _CONVERSIONS:
        raise UsageError(
            "precision='int8' needs a graph with QuantizeLinear and DequantizeLinear nodes, and this one has none; "
            "quantise it first with `layerfold export --precision int8 --data DATA`"
        )
    constants = {each.name: each for each in graph.initializer}
    for node in graph.node:
        scale = constants.get(node.input[1]) if node.op_type in _CONVERSIONS else None
        if scale is None:
            continue
        values = numpy_helper.to_array(scale).astype(np.float64)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise UsageError(
                f"node {node.name or node.output[0]} ({node.op_type}): its scale {scale.name!r} must be finite and "
                "above 0; quantise the network again"
            )


def read_graph(onnx_bytes: bytes) -> Any:
    """Return the graph of a serialised ONNX model.

    Raises:
        UsageError: it is none.
    """
    import onnx

    try:
        return onnx.load_from_string(onnx_bytes).graph
    except Exception as error:  # protobuf's own errors
        raise UsageError("this is no ONNX model; export it again") from error
