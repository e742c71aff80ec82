"""What the budget loop measures with: plans are timed and verified on a backend."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property

from torch import nn

from layerfold.budget import Budget
from layerfold.export.precision import graph_dtype
from layerfold.graph import Network
from layerfold.options import VerifyOptions
from layerfold.profiler import MeasurePolicy, Verification, verify_solution
from layerfold.profiler.backends import Backend
from layerfold.profiler.graphs.outside import outside_graph
from layerfold.profiler.plans.plan import MeasuredPlan, Plan
from layerfold.profiler.plans.timer import PlanTimer
from layerfold.solver import Solution
from layerfold.tables import LatencyTable

_POLICY = MeasurePolicy(target=0.004, cap_s=1.5, block_ms=1.0, warmup_cap_s=0.3)


class BackendMeter:
    """Times and verifies plans of one network on one backend: a :class:`layerfold.pipeline.budget_loop.PlanMeter`.

    Args:
        model: the module that ``net`` was traced from.
        net: the traced network.
        latency: its latency table, which says in what precision plans are timed.
        backend: compiles and runs.
        batch: images in one forward pass.
        original_onnx: the original as exported before, to save that time in each verification.
    """

    def __init__(
        self,
        model: nn.Module,
        net: Network,
        latency: LatencyTable,
        backend: Backend,
        *,
        batch: int = 1,
        original_onnx: bytes | None = None,
    ) -> None:
        self._model, self._net, self._backend = model, net, backend
        self._dtype, self._batch, self._original_onnx = latency.provenance.dtype or "float32", batch, original_onnx

    @cached_property
    def _timer(self) -> PlanTimer:
        outside = outside_graph(self._model, self._net, batch=self._batch, dtype=graph_dtype(self._dtype))
        return PlanTimer(self._net, outside, self._backend, None, _POLICY, dtype=self._dtype)

    def time(self, plan: Plan) -> MeasuredPlan:
        """Time a plan with random weights next to the original."""
        return self._timer.measure_now(plan)

    def verify(self, solution: Solution, budget: Budget, *, predicted_ms: float, cap_s: float) -> Verification:
        """Build a plan as it will be shipped, and measure it next to the original for ``cap_s`` seconds at most."""
        options = VerifyOptions(batch=self._batch, **asdict(budget), predicted_ms=predicted_ms, cap_s=cap_s)
        return verify_solution(
            self._model, self._net, solution, self._backend, options=options, original_onnx=self._original_onnx
        )
