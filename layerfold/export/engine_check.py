"""Check an engine: by running it where a GPU is, by what can be read of it elsewhere.

Without a driver TensorRT refuses to deserialise (``cudaError 35``), and asked for the engine's validity it says
``INVALID`` with no reason. What is left is the plan's header, which holds its length and the version of the builder,
and the names of inputs and outputs, which stand in the plan as text. Tried with tensorrt_rtx 1.7.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from layerfold.errors import ExportError

_MAGIC = b"vtrt"
_LENGTH_AT, _VERSION_AT, _READ_BYTES = 16, 24, 28
_TOLERANCES = {"float32": 1e-3, "float16": 5e-2}


class PutFacts(TypedDict):
    """One input or output of an engine: its shape, and its dtype, for example ``float32``."""

    shape: list[int]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class EngineCheck:
    """How an engine was checked.

    Attributes:
        method: ``run``: loaded back, run and compared with the ONNX graph; ``header``: length, version and the names
            of inputs and outputs, which equal the ONNX graph's.
        max_rel: ``run``: largest difference from ONNX Runtime, relative to the largest output; else None.
        reason: ``header``: why it was not run.
    """

    method: str
    max_rel: float | None = None
    reason: str = ""


def check_engine(
    content: bytes,
    trt: Any,
    onnx_bytes: bytes,
    inputs: Mapping[str, PutFacts],
    outputs: Mapping[str, PutFacts],
    precision: str,
    compute_capabilities: Sequence[str],
) -> EngineCheck:
    """Check a serialised engine against the graph that it was built from.

    Args:
        content: the engine.
        trt: the package that built it.
        onnx_bytes: the graph, before any conversion of its precision.
        inputs, outputs: name -> shape and dtype, as TensorRT read them.
        precision: of the engine; int8 is not compared with the graph's own numbers.
        compute_capabilities: that it was built for; empty for the builder's own choice.

    Raises:
        ExportError: names or shapes differ from the graph's, the plan is not whole, or its outputs differ.
    """
    _check_names(onnx_bytes, inputs, outputs)
    check_header(content, trt, (*inputs, *outputs))
    reason = _why_not_run(compute_capabilities)
    if reason:
        return EngineCheck(method="header", reason=reason)
    return EngineCheck(method="run", max_rel=_difference(content, trt, onnx_bytes, precision))


def check_header(content: bytes, trt: Any, names: Sequence[str] = ()) -> None:
    """Refuse a plan that is cut short, of another version than the package's, or that lacks one of its names.

    Raises:
        ExportError: says which.
    """
    if len(content) < _READ_BYTES:
        raise ExportError(f"the engine has {len(content)} bytes, less than its header; build it again")
    if content[:4] == _MAGIC:
        (length,) = struct.unpack_from("<Q", content, _LENGTH_AT)
        if length != len(content):
            raise ExportError(
                f"the engine has {len(content)} bytes, its header says {length}; it is not whole, build it again"
            )
        built = ".".join(str(part) for part in content[_VERSION_AT : _VERSION_AT + 4])
        ours = ".".join(re.findall(r"\d+", trt.__version__)[:4])
        if built != ours:
            raise ExportError(
                f"the engine was built by version {built}, this is {trt.__name__} {ours}; engines run "
                "only with the version that built them: build it again"
            )
    missing = [name for name in names if name.encode() not in content]
    if missing:
        raise ExportError(f"the engine does not name {', '.join(missing)}; build it again")


def _check_names(onnx_bytes: bytes, inputs: Mapping[str, PutFacts], outputs: Mapping[str, PutFacts]) -> None:
    """Compare names and shapes of what TensorRT parsed with the graph's own."""
    import onnx

    graph = onnx.load_from_string(onnx_bytes).graph
    weights = {each.name for each in graph.initializer}
    for what, puts, found in (("input", graph.input, inputs), ("output", graph.output, outputs)):
        expected = {
            put.name: [size.dim_value for size in put.type.tensor_type.shape.dim]
            for put in puts
            if put.name not in weights
        }
        got = {name: list(facts["shape"]) for name, facts in found.items()}
        if got != expected:
            raise ExportError(
                f"the engine's {what}s are {got}, those of the ONNX graph {expected}; report this network"
            )


def _why_not_run(compute_capabilities: Sequence[str]) -> str:
    """Return why an engine cannot be run here, or an empty text."""
    import torch

    if not torch.cuda.is_available():
        return "no NVIDIA GPU or driver on this machine"
    here = "{}.{}".format(*torch.cuda.get_device_capability())
    if compute_capabilities and here not in compute_capabilities:
        return f"the GPU here has compute capability {here}, not one of {', '.join(compute_capabilities)}"
    return ""


def _difference(content: bytes, trt: Any, onnx_bytes: bytes, precision: str) -> float:
    """Run an engine and its ONNX graph on the same random inputs; return the largest relative difference."""
    from layerfold.export.loaded_engine import LoadedEngine
    from layerfold.export.onnx import _run_onnx

    engine = LoadedEngine(content, trt)
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal(shape).astype(dtype) for name, (shape, dtype) in engine.inputs.items()}
    found = dict(zip(engine.outputs, engine.infer(inputs), strict=True))
    engine.close()
    import onnx

    names = [put.name for put in onnx.load_from_string(onnx_bytes).graph.output]
    worst = 0.0
    for name, expected in zip(names, _run_onnx(onnx_bytes, list(inputs.values())), strict=True):
        scale = max(float(np.max(np.abs(expected), initial=0.0)), 1e-12)
        worst = max(worst, float(np.max(np.abs(found[name].astype(np.float64) - expected))) / scale)
    tolerance = _TOLERANCES.get(precision)
    if tolerance is not None and not worst <= tolerance:
        raise ExportError(
            f"the engine differs from the ONNX graph by {worst:.2g} of the largest output, above "
            f"{tolerance:g} for {precision}; choose a higher precision"
        )
    return worst
