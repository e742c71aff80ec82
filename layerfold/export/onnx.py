"""Export a module to ONNX, and check the file against the module."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree

from layerfold.errors import ExportError, OptionalDependencyError, UsageError
from layerfold.files import write_bytes
from layerfold.graph.examples import varied
from layerfold.modules import inputs_like

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto

Inputs = torch.Tensor | tuple[torch.Tensor, ...]


class _Names(TypedDict):
    """Names in the graph, as torch's exporters take them."""

    input_names: list[str]
    output_names: list[str]


def export_onnx(
    module: nn.Module,
    example_input: Inputs,
    path: str | os.PathLike[str] | None = None,
    *,
    input_names: Sequence[str] = ("input",),
    output_names: Sequence[str] = ("output",),
) -> bytes:
    """Export a module, in eval mode and with static shapes, as one ONNX file without external data.

    Args:
        module: left untouched, training flag included.
        example_input: [N, C, H, W], or a tuple of the module's inputs; fixes every shape, N included.
        path: where to write it too; None returns the bytes only.
        input_names, output_names: names in the graph, as many as there are inputs and outputs.

    Returns:
        The serialised model.

    Raises:
        ExportError: the exporter refuses the module; names the node.
        OptionalDependencyError: onnx or onnxscript is not installed.
    """
    given = example_input if isinstance(example_input, tuple) else (example_input,)
    inputs = tuple(varied(value) for value in inputs_like(module, given))  # the exporter runs the module on them
    names: _Names = {"input_names": list(input_names), "output_names": list(output_names)}
    with _eval_mode(module):
        onnx_bytes = _export_dynamo(module, inputs, names)
    if path is not None:
        write_bytes(Path(path), onnx_bytes)
    return onnx_bytes


def _export_dynamo(module: nn.Module, inputs: tuple[torch.Tensor, ...], names: _Names) -> bytes:
    missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if missing:
        raise OptionalDependencyError(f"ONNX export needs {' and '.join(missing)}; run: pip install onnx onnxscript")
    try:
        with _quiet():
            program = torch.onnx.export(module, inputs, dynamo=True, verbose=False, **names)
            if program is None:
                raise ExportError("torch.onnx.export returned no program; report this with the version of torch")
            model = program.model_proto
            _remove_stack_traces([model.graph, *model.functions])
            return bytes(model.SerializeToString())
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{type(module).__name__} cannot be exported to ONNX: {_export_cause(error)}") from error


def _remove_stack_traces(graphs: Iterable[GraphProto | FunctionProto]) -> None:
    """Remove where in whose files each node was written: a shipped file must not tell paths of this machine."""
    for graph in graphs:
        for node in graph.node:
            for index in reversed(range(len(node.metadata_props))):
                if node.metadata_props[index].key.endswith("stack_trace"):
                    del node.metadata_props[index]
            _remove_stack_traces([*(each.g for each in node.attribute if each.HasField("g"))])
            _remove_stack_traces([graph for each in node.attribute for graph in each.graphs])


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch to eval mode and back, part by part: a frozen BatchNorm in a training module stays as it was."""
    was_training = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in was_training:
            part.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress, warnings and logs off the terminal; errors still come as exceptions."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _export_cause(error: BaseException) -> str:
    """Return the innermost cause and the node named on the way, on one line."""
    node, cause = "", error
    step: BaseException | None = error
    while step is not None:
        found = re.search(r"node %(\w+)", str(step))
        node = node or (f"node {found.group(1)}: " if found else "")
        cause, step = step, step.__cause__
    lines = [line for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    raised_at = re.search(r'File "([^"]+)", line (\d+), in \w+', str(cause))
    where = f" (at {Path(raised_at[1]).name}:{raised_at[2]})" if raised_at else ""
    return f"{node}{lines[0].strip()[:300]}{where}"


def _run_onnx(onnx_bytes: bytes, values: list[np.ndarray[Any, np.dtype[Any]]]) -> list[Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise OptionalDependencyError("checking ONNX needs onnxruntime; run: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
        names = [put.name for put in session.get_inputs()]
        return list(session.run(None, dict(zip(names, values, strict=True))))
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        cause = " ".join(str(error).split())[:300]
        raise ExportError(
            f"ONNX Runtime cannot run the exported graph: {cause}; if the forward casts by itself "
            "(autocast, half), leave that out"
        ) from error


@dataclass(frozen=True, kw_only=True)
class OnnxCheck:
    """The largest difference between an ONNX graph's outputs and the module's.

    Attributes:
        max_abs: in the outputs' unit.
        max_rel: relative to the largest absolute value of the module's output.
    """

    max_abs: float
    max_rel: float


def check_onnx(onnx_bytes: bytes, module: nn.Module, inputs: Inputs, tolerance: float = 1e-4) -> OnnxCheck:
    """Run a graph in ONNX Runtime (CPU) and compare its outputs with the module's.

    Args:
        onnx_bytes: the serialised model.
        module: in the dtype of the graph.
        inputs: [N, C, H, W] as exported, or a tuple of inputs.
        tolerance: largest difference allowed, relative to the largest absolute output.

    Raises:
        ExportError: the difference is larger, not a number, or the shapes differ.
    """
    if tolerance <= 0:
        raise UsageError(f"tolerance={tolerance} must be above 0")
    values = inputs if isinstance(inputs, tuple) else (inputs,)
    found = _run_onnx(onnx_bytes, [value.detach().numpy() for value in values])
    with _eval_mode(module), torch.no_grad():
        result = module(*values)
    # Of dictionaries and nested answers too, in the order in which the exporter writes them.
    expected = [value.numpy() for value in _pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
    if [value.shape for value in found] != [value.shape for value in expected]:
        raise ExportError(
            f"the ONNX graph gives outputs of shapes {[value.shape for value in found]}, "
            f"the module {[value.shape for value in expected]}; export it again with this input"
        )
    max_abs = max_rel = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        difference = float(np.max(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)), initial=0.0))
        scale = float(np.max(np.abs(theirs), initial=0.0))
        max_abs = max(max_abs, difference) if not np.isnan(difference) else float("nan")
        max_rel = max(max_rel, difference / max(scale, 1e-12)) if not np.isnan(difference) else float("nan")
        if not max_rel <= tolerance:
            raise ExportError(
                f"the ONNX graph differs from the module by {max_rel:.2g} of the largest output, above "
                f"tolerance={tolerance:g}; the module must be in eval mode, of the same dtype, and depend on its input "
                "alone (no counter, no random numbers, no gradient mode)"
            )
    return OnnxCheck(max_abs=max_abs, max_rel=max_rel)
