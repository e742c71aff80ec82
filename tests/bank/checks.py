"""What every architecture has to pass: shapes, train form against deploy form, deploy form against ONNX Runtime."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import layerfold as lf
from tests.bank.architectures import Architecture
from tests.bank.weights import randomise, randomise_norms
from tests.quick_onnx import quick_onnx

FLOAT64_TOLERANCE, FLOAT32_TOLERANCE, ONNX_TOLERANCE = 1e-9, 1e-4, 1e-4


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An architecture with random weights.

    Attributes:
        images: [1, 3, size, size] by size; shapes: of the outputs for them; nets: the network traced at that size.
        is_size_bound: its padding depends on the size, so forms hold for the size they were traced at only.
    """

    model: nn.Module
    images: dict[int, torch.Tensor]
    shapes: dict[int, list[tuple[int, ...]]]
    nets: dict[int, lf.Network]
    is_size_bound: bool


@dataclass(kw_only=True)
class Differences:
    """The largest difference seen by each check, relative to the largest absolute value of its output tensor.

    Attributes:
        float64, float32: train form against deploy form.
        onnx: float32 deploy form against ONNX Runtime.
        failures: one line for each check that did not pass.
    """

    float64: float = 0.0
    float32: float = 0.0
    onnx: float = 0.0
    num_checks: int = 0
    failures: list[str] = field(default_factory=list)

    def record_shapes(self, found: list[tuple[int, ...]], expected: list[tuple[int, ...]], where: str) -> None:
        self.num_checks += 1
        if found != expected:
            self.failures.append(f"{where}: outputs of shapes {found}, the original's are {expected}")

    def record(self, kind: str, difference: float, tolerance: float, where: str) -> None:
        self.num_checks += 1
        setattr(self, kind, max(getattr(self, kind), difference))
        if not difference <= tolerance:  # a NaN fails too
            self.failures.append(f"{where}: {kind} differs by {difference:.3g}, allowed {tolerance:g}")


class Flat(nn.Module):
    """A network whose outputs, however nested, are one tuple of tensors: what ONNX can say."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors_of(self.network(images)))


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors of nested dicts, tuples and lists, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [tensor for part in parts for tensor in tensors_of(part)]


def shapes_of(tensors: Sequence[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(each.shape) for each in tensors]


def prepare(architecture: Architecture, *, sizes: Sequence[int] = (), seed: int = 0) -> Prepared:
    """Return the architecture with random weights, traced at each size: both of its own if none are given."""
    torch.manual_seed(seed)
    model = architecture.make()
    images = {size: torch.randn(1, 3, size, size) for size in sizes or architecture.sizes}
    randomise(model, next(iter(images.values())))
    with torch.no_grad():
        shapes = {size: shapes_of(tensors_of(model(each))) for size, each in images.items()}
    return Prepared(
        model=model,
        images=images,
        shapes=shapes,
        nets={size: lf.trace_network(model, each) for size, each in images.items()},
        is_size_bound="same_padding" in architecture.features,
    )


def state_hash(model: nn.Module) -> str:
    """Return a hash over names and values of everything a model holds."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def relative_difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest absolute difference over the largest absolute value, the worst of all tensors.

    NaN where a tensor is not finite, infinity where shapes differ.
    """
    if shapes_of(found) != shapes_of(expected):
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.double(), theirs.double()
        if not bool(torch.isfinite(theirs).all() and torch.isfinite(ours).all()):
            return float("nan")
        worst = max(worst, float((ours - theirs).abs().max()) / max(float(theirs.abs().max()), 1e-30))
    return worst


def check_architecture(
    prepared: Prepared, solutions: Sequence[lf.Solution], *, onnx: Sequence[str | None], progress: bool = False
) -> Differences:
    """Run every check of every solution; a check that could not be run has failed.

    Args:
        onnx: for each solution, as of :func:`check_solution`.
        progress: write a line to stderr for each solution.
    """
    found, before = Differences(), state_hash(prepared.model)
    for number, (solution, exporter) in enumerate(zip(solutions, onnx, strict=True), start=1):
        try:
            check_solution(prepared, solution, number, found, onnx=exporter)
        except Exception as error:
            cause = " ".join(str(error).split())[:300]
            found.failures.append(f"solution {number}: {type(error).__name__}: {cause}")
        if progress:
            print(f"  {type(prepared.model).__name__}: {number} of {len(solutions)} solutions", file=sys.stderr)
    if state_hash(prepared.model) != before:
        found.failures.append("the original model was changed")
    return found


@torch.no_grad()
def check_solution(
    prepared: Prepared, solution: lf.Solution, number: int, found: Differences, *, onnx: str | None = "quick"
) -> None:
    """Run every check of one solution at every size, and note the differences.

    The train form gets random norms of its own, as finetuning would give it. The forms are built once, from the first
    size, and run at both; only a network with "same" padding is traced and merged for each size.
    An exported graph has one size: the solution's number says which, so that both sizes get half of the solutions.

    Args:
        onnx: ``quick`` for :func:`quick_onnx`, ``shipped`` for the one that writes users' files, None for neither.
    """
    sizes = list(prepared.images)
    onnx_size = sizes[number % len(sizes)]
    for together in [[size] for size in sizes] if prepared.is_size_bound else [sizes]:
        first = together[0]
        student = lf.build_train_form(prepared.model, prepared.nets[first], solution)
        randomise_norms(student, prepared.images[first])
        student = student.double()
        merged = lf.merge_network(student)
        for size in together:
            at, images = f"solution {number}, size {size}", prepared.images[size].double()
            outputs, deployed = tensors_of(student(images)), tensors_of(merged(images))
            found.record_shapes(shapes_of(outputs), prepared.shapes[size], at)
            found.record("float64", relative_difference(deployed, outputs), FLOAT64_TOLERANCE, at)
        # The weights came from float32 and are merged in float64 always: this is what merging in float32 gives.
        student, merged = student.float(), merged.float()
        for size in together:
            at, images = f"solution {number}, size {size}", prepared.images[size]
            outputs, deployed = tensors_of(student(images)), tensors_of(merged(images))
            found.record("float32", relative_difference(deployed, outputs), FLOAT32_TOLERANCE, at)
            if onnx is not None and size == onnx_size:
                ran = run_onnx(merged, images, is_quick=onnx == "quick")
                found.record("onnx", relative_difference(ran, deployed), ONNX_TOLERANCE, at)


def run_onnx(merged: nn.Module, images: torch.Tensor, *, is_quick: bool) -> list[torch.Tensor]:
    """Export a network and run the graph in ONNX Runtime, on one thread."""
    import onnxruntime

    from layerfold.export import export_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    graph = quick_onnx(Flat(merged), images) if is_quick else export_onnx(Flat(merged), images)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return [torch.from_numpy(each) for each in session.run(None, {name: images.numpy()})]
