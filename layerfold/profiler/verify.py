"""Build the merged network of a solution, measure it, and say whether it keeps the budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from layerfold.budget import Budget
from layerfold.export.onnx import export_onnx
from layerfold.files import JsonObject
from layerfold.finetune import NO_BATCH_NORM, ORIGINAL, has_batch_norm
from layerfold.graph.network import Network
from layerfold.graph.same_model import network_call
from layerfold.options import VerifyOptions
from layerfold.profiler.backends import Backend
from layerfold.profiler.benchmark import BenchmarkReport, MeasuredOn, benchmark_networks
from layerfold.settings import takes_settings

if TYPE_CHECKING:
    from layerfold.solver import Solution


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A solution's measured latency against the original's, the prediction and the budget.

    Attributes:
        measured_ms, low_ms, high_ms: the merged network's median and its 95 % interval.
        original_ms, original_low_ms, original_high_ms: the original's, measured interleaved with it.
        ratio, ratio_low, ratio_high: merged / original, paired round by round, with its 95 % interval.
        predicted_ms: what the table said; None if unknown.
        predicted_low_ms, predicted_high_ms: 95 % interval of that; None if unknown.
        budget_ms: the end-to-end budget; of a speed-up, the original's median divided by it; None without a budget.
        speedup: the speed-up asked for, or None.
        is_within_budget: with a budget, ``high_ms <= budget_ms``; with a speed-up also ``ratio_high <= 1 / speedup``;
            None without either.
        is_settled: whether both intervals reached their target.
        provenance: what it was measured on.
        contended: rounds set aside because something else slowed the whole machine meanwhile.
        batch_norm: where the merged network's BatchNorm statistics come from (``original``, or ``none`` where it has
            none); None where that is not known. Latency does not depend on them, answers do.
    """

    measured_ms: float
    low_ms: float
    high_ms: float
    original_ms: float
    original_low_ms: float
    original_high_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    predicted_ms: float | None
    budget_ms: float | None
    speedup: float | None
    is_within_budget: bool | None
    is_settled: bool
    provenance: MeasuredOn
    predicted_low_ms: float | None = None
    predicted_high_ms: float | None = None
    contended: int = 0
    batch_norm: str | None = None

    @property
    def prediction_error(self) -> float | None:
        """(predicted - measured) / measured, or None."""
        return None if self.predicted_ms is None else (self.predicted_ms - self.measured_ms) / self.measured_ms

    def to_json(self) -> JsonObject:
        """Return what a JSON file would hold."""
        return {**asdict(self), "prediction_error": self.prediction_error}


@takes_settings(options=VerifyOptions)
@network_call
def verify_solution(
    model: nn.Module,
    net: Network,
    solution: Solution,
    backend: str | Backend = "onnxruntime",
    *,
    options: VerifyOptions | None = None,
    original_onnx: bytes | None = None,
    **settings: Any,
) -> Verification:
    """Merge a network by a solution with the weights at hand and measure it, interleaved with the original.

    Args:
        model: the module that ``net`` was traced from; left untouched.
        net: the traced network.
        solution: what to merge; its ``budget_ms`` and ``predicted_ms`` are used unless given here.
        backend: a backend's name, or one made with :func:`layerfold.profiler.get_backend` (then ``device`` and
            ``threads`` are its own).
        options, settings: see :class:`VerifyOptions`; a setting given by name takes the place of that of ``options``.
        original_onnx: the original as exported before, to save that time when several solutions are verified.

    Raises:
        UsageError: a budget or speed-up that is not above 0.
        SolutionError: the solution does not fit the network.

    Example:
        >>> found = lf.verify_solution(model, net, solution, budget_ms=3.5)
        >>> f"{found.measured_ms:.3f} ms"
        '... ms'
        >>> found.predicted_ms, found.is_within_budget
        (3.2, True)
    """
    from layerfold.merge import build_train_form, merge_network

    options = options or VerifyOptions()
    budget_ms = solution.budget_ms if options.budget_ms is None else options.budget_ms
    # Only the structure counts for latency: no need to compare each merged conv with its segment here.
    student = build_train_form(model, net, solution).eval()
    merged = merge_network(student, tolerance=None)
    example = example_input_of(net, options.batch)
    if original_onnx is None:
        original_onnx = export_onnx(model, example)
    # Exported as it will be shipped: the quick exporter's graph pools otherwise, and runs up to 3 % faster.
    networks = {"original": original_onnx, "merged": export_onnx(merged, example)}
    report = benchmark_networks(networks, example, backend, options)
    predicted_ms = solution.predicted_ms if options.predicted_ms is None else options.predicted_ms
    speedup, interval_ms = options.speedup, options.predicted_interval_ms
    budget = Budget(budget_ms=budget_ms) if speedup is None else Budget(speedup=speedup)
    found = replace(
        judge(report, budget, predicted_ms), batch_norm=ORIGINAL if has_batch_norm(student) else NO_BATCH_NORM
    )
    if interval_ms is None:
        return found
    return replace(found, predicted_low_ms=interval_ms[0], predicted_high_ms=interval_ms[1])


def judge(report: BenchmarkReport, budget: Budget, predicted_ms: float | None = None) -> Verification:
    """Turn a benchmark, whose first network is the original and whose last the merged one, into a verdict."""
    original, merged = report.networks[0], report.networks[-1]
    found = Verification(
        measured_ms=merged.median_ms,
        low_ms=merged.low_ms,
        high_ms=merged.high_ms,
        original_ms=original.median_ms,
        original_low_ms=original.low_ms,
        original_high_ms=original.high_ms,
        ratio=merged.ratio,
        ratio_low=merged.ratio_low,
        ratio_high=merged.ratio_high,
        predicted_ms=predicted_ms,
        budget_ms=None,
        speedup=budget.speedup,
        is_within_budget=None,
        is_settled=original.is_settled and merged.is_settled,
        provenance=report.provenance,
        contended=merged.contended,
    )
    if budget.is_fastest:
        return found
    return replace(found, budget_ms=budget.in_ms(original.median_ms), is_within_budget=budget.is_kept_by(found))


def example_input_of(net: Network, batch: int = 1) -> tuple[torch.Tensor, ...]:
    """Return random inputs of the traced shapes with ``batch`` images."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn((batch, *shape[1:]), generator=generator) for shape in net.input_shapes)
