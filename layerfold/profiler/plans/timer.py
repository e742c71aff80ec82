"""Time whole networks under plans, each relative to the original that runs in turns with it.

The machine's clock and its neighbours change within minutes by more than a merge gains. So no plan is timed by
itself: a few of them and the unmerged network take turns, and what counts is the ratio within each round.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from layerfold.export.precision import graph_dtype
from layerfold.graph.network import Network
from layerfold.profiler.backends import Backend, Runner, compile_to_time
from layerfold.profiler.graphs.assemble import assemble_network
from layerfold.profiler.graphs.outside import OutsideGraph
from layerfold.profiler.plans.plan import MeasuredPlan, Plan, pooled
from layerfold.profiler.store.cache import MeasurementCache
from layerfold.profiler.store.claims import fill
from layerfold.profiler.store.kinds import Kind
from layerfold.profiler.timing.measure import measure_runners
from layerfold.profiler.timing.measurement import MeasurePolicy
from layerfold.profiler.timing.ratio import MeasuredRatio
from layerfold.profiler.timing.turns import time_in_turns

PLAN_POLICY = MeasurePolicy(target=0.006, cap_s=0.5, block_ms=1.0, warmup_cap_s=0.15)
"""Of one plan among many: a fit averages over them."""
_CHUNK = 4
_UNSURE = 4.0
_AGAIN = " again"
"""What stands behind a plan's signature where a second reading is stored."""


class PlanTimer:
    """Times plans of one network on one backend.

    Args:
        net, outside: the network and what lies outside its chains.
        backend: compiles and runs.
        cache: where finished plans are stored and looked up, or None.
        policy: of one plan.
        dtype: precision that every graph is run in.
    """

    def __init__(
        self,
        net: Network,
        outside: OutsideGraph,
        backend: Backend,
        cache: MeasurementCache | None = None,
        policy: MeasurePolicy = PLAN_POLICY,
        *,
        dtype: str = "float32",
    ) -> None:
        self._net, self._outside, self._backend = net, outside, backend
        self._cache = cache or MeasurementCache(False, {})
        self._policy, self._dtype = policy, dtype
        self.original = Plan(net.original_act_pos, tuple(range(1, len(net.layers) + 1)))

    def original_ms(self) -> float:
        """Return the latency of the unmerged network, measured by itself."""
        signature = f"whole network:{self._net.hash}"

        def measure(_: list[str]) -> None:
            runner = compile_to_time(self._backend, self._original_bytes)
            try:
                found = measure_runners([runner.run], self._policy)[0]
                self._cache.put(signature, found, kind=Kind.NETWORK, network=self._net.hash)
            finally:
                runner.close()

        fill(self._cache, [signature], measure, 1)
        known = self._cache.get(signature)
        assert known is not None
        return known.median_ms

    def measure(
        self,
        plans: Iterable[Plan],
        *,
        advance: Callable[[], None] = lambda: None,
        on_unsure: Callable[[int], None] = lambda _: None,
    ) -> list[MeasuredPlan]:
        """Time each plan next to the original; what the cache holds is not timed again.

        Args:
            plans: what to time.
            advance: called once for each that is finished.
            on_unsure: called before some are timed a second time, with their number.
        """
        wanted = list(plans)
        distinct = list(dict.fromkeys(wanted))
        self._fill(distinct, "", advance)
        # The machine was at its worst for some of them; minutes later it is in another mood.
        unsure = [plan for plan in distinct if self._is_unsure(self._known(plan, ""))]
        if unsure:
            on_unsure(len(unsure))
        self._fill(unsure, _AGAIN)
        found = {plan: self._known(plan, "") for plan in distinct}
        for plan in unsure:
            readings = [found[plan], self._known(plan, _AGAIN)]
            found[plan] = pooled([each for each in readings if not each.is_slowed] or readings)
        return [found[plan] for plan in wanted]

    def measure_now(self, plan: Plan) -> MeasuredPlan:
        """Time a plan next to the original, whatever is known of it."""
        return MeasuredPlan.of(plan, self._time_chunk([plan], seed=0)[0])

    def _fill(self, plans: Sequence[Plan], suffix: str, advance: Callable[[], None] = lambda: None) -> None:
        """Have a few plans at a time measured, by this process or by others that fill the same cache."""
        numbers = {self._signature(plan) + suffix: number for number, plan in enumerate(plans)}

        def measure(keys: list[str]) -> None:
            first = numbers[keys[0]]
            measured = self._time_chunk([plans[numbers[key]] for key in keys], seed=-1 - first if suffix else first)
            for key, each in zip(keys, measured, strict=True):
                self._cache.put(key, each, kind=Kind.PLAN_AGAIN if suffix else Kind.PLAN, network=self._net.hash)

        fill(self._cache, list(numbers), measure, _CHUNK, lambda key: advance())

    def _known(self, plan: Plan, suffix: str) -> MeasuredPlan:
        stored = self._cache.get_ratio(self._signature(plan) + suffix)
        assert stored is not None
        return MeasuredPlan.of(plan, stored)

    def _is_unsure(self, measured: MeasuredPlan) -> bool:
        return measured.is_slowed or measured.deviation * 1.96 > _UNSURE * self._policy.target

    @cached_property
    def _original_bytes(self) -> bytes:
        return self._assemble(self.original)

    def _time_chunk(self, plans: Sequence[Plan], *, seed: int) -> list[MeasuredRatio]:
        runners: dict[int, Runner] = {}
        try:
            # The original is compiled again each time, and not always first: where a session's memory lies changes its
            # latency by a percent, and one that lives for long would put that percent on every plan.
            order = list(range(len(plans) + 1))
            random.Random(seed).shuffle(order)
            for index in order:
                graph = self._original_bytes if index == 0 else self._assemble(plans[index - 1])
                runners[index] = compile_to_time(self._backend, graph)
            turns = time_in_turns([runners[index].run for index in range(len(order))], self._policy, seed=seed)
        finally:
            for runner in runners.values():
                runner.close()
        return [turns.measured_ratio(index, is_settled=not turns.is_slowed) for index in range(1, len(order))]

    def _assemble(self, plan: Plan) -> bytes:
        net = self._net.changed(plan.changes)
        return assemble_network(net, self._outside, *plan[:3], dtype=graph_dtype(self._dtype))

    def _signature(self, plan: Plan) -> str:
        # As before layers could be dropped, and otherwise changed: caches stay good.
        parts = plan if plan.changes else plan[:3] if plan.dropped else plan[:2]
        digest = hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()[:24]
        return f"plan {digest} of network:{self._net.hash}"
