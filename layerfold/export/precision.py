"""Precisions by name, and ONNX graphs in them."""

from __future__ import annotations

from typing import Any

from layerfold.errors import OptionalDependencyError, UsageError, nearest_names

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
_SHORT = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}

_PRODUCTS = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")
)


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
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in read_graph(onnx_bytes).node)


def check_quantised(onnx_bytes: bytes) -> None:
    """Refuse a graph that int8 would run in float32: one of convs or matrix products that is not quantised.

    Raises:
        UsageError: says how to quantise it.
    """
    if has_quantised_nodes(onnx_bytes) or not has_products(onnx_bytes):
        return
    raise UsageError(
        "precision='int8' needs a graph with QuantizeLinear and DequantizeLinear nodes, and this one has none; "
        "quantise it first, for example with onnxruntime.quantization"
    )


def has_products(onnx_bytes: bytes) -> bool:
    """Say whether a graph holds what int8 makes faster: convs or matrix products."""
    return any(node.op_type in _PRODUCTS for node in read_graph(onnx_bytes).node)


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
