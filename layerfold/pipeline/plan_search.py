"""The next plan to try: the best one that is likely to fit, given all that was measured so far."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from layerfold.errors import InfeasibleBudgetError, MissingEntryError
from layerfold.graph import Network
from layerfold.graph.dropping import dropped_layers
from layerfold.options import SolveOptions
from layerfold.profiler.plans.beliefs import Beliefs, PlanPrediction
from layerfold.profiler.plans.fitted import beliefs_of, fitted_table
from layerfold.profiler.plans.plan import MeasuredPlan, Plan
from layerfold.solver import Frontier, Solution, solve_frontier
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyTable
from layerfold.tables.kernel import SegmentKey

_CAUTION = 0.5
"""Deviations that a plan's prediction must lie below the limit, until something that fits is known."""
_DOUBT = 0.5
"""Deviations by which a merged segment must be faster than its layers to be an option."""
_LEAST_STEP = 0.015
"""Plans closer than this to one that is known to fit are not tried: the machine could not tell them apart."""
_STRIDE = 0.003


class PlanSearch:
    """Keeps what was measured, and solves again when that has changed.

    Args:
        net: the traced network.
        latency: its latency table.
        importance: its importances; None if only the fastest plan is of interest.
        time_plan: times a plan next to the original.
        options: what is solved for.

    Attributes:
        original_ms: the original's latency as measured last.
        trials: every plan timed here, in order.
    """

    def __init__(
        self,
        net: Network,
        latency: LatencyTable,
        importance: ImportanceTable | None,
        time_plan: Callable[[Plan], MeasuredPlan],
        options: SolveOptions | None = None,
    ) -> None:
        self._net, self.latency, self._time_plan = net, latency, time_plan
        self._importance = importance if importance is not None else _no_importance(latency, net)
        self._options = options or SolveOptions()
        self.original_ms = latency.original_ms
        self.trials: list[MeasuredPlan] = []
        self._learnt: list[MeasuredPlan] = []
        self._beliefs: Beliefs | None = None
        self._rejected: set[object] = set()
        self._accepted: Solution | None = None

    @property
    def beliefs(self) -> Beliefs:
        if self._beliefs is None:
            self._beliefs = beliefs_of(self.latency, self._learnt)
        return self._beliefs

    def table(self) -> LatencyTable:
        """Return the latency table with all that was learnt."""
        return fitted_table(self.latency, self.beliefs, original_ms=self.original_ms)

    def frontier(self, left_out: Collection[SegmentKey] = ()) -> Frontier:
        """Solve with all that was learnt; what is not faster than the layers that it replaces is no option.

        Args:
            left_out: merged segments that are no options either.
        """
        table = self.table()
        changes = self.beliefs.changes
        useful = {*table.useful_segments(), *table.useful_changes()}
        entries = [
            entry
            for entry in table.entries
            if entry.key not in left_out
            and (
                (entry.key not in changes and entry.change is None)
                or (entry.key in useful and entry.key in changes and _is_faster(*changes[entry.key]))
            )
        ]
        kept = LatencyTable(entries, provenance=table.provenance, source=table.source)
        return solve_frontier(kept, self._importance, options=self._options)

    def predicted_ms(self, solution: Solution) -> float:
        """Return the expected end-to-end latency of a solution, with the original as measured last."""
        return self.original_ms * self._predict(solution).ratio

    def next_plan(self, limit: float) -> Solution | None:
        """Return the plan of highest importance that is likely to take at most ``limit`` of the original's latency.

        None where nothing better than what was accepted is likely to fit. Before anything was accepted, the fastest
        plan is returned where nothing fits, unless it was rejected.
        """
        frontier = self.frontier()
        ratios = frontier.latencies_ms[:, 0] / self.original_ms
        least, caution = 0.0, _CAUTION
        if self._accepted is not None:
            caution = 0.0
            least = self._predict(self._accepted).ratio * (1 + _LEAST_STEP)
        last = float("inf")
        for index in range(len(frontier) - 1, -1, -1):
            ratio = float(ratios[index])
            if ratio > limit or ratio > last - _STRIDE:
                continue
            if ratio < least or (
                self._accepted is not None and frontier.importances[index] <= (self._accepted.importance or 0.0)
            ):
                return None
            solution = frontier[index]
            if solution.plan in self._rejected:
                continue
            predicted = self._predict(solution)
            if predicted.ratio + caution * predicted.deviation <= limit:
                return solution
            last = ratio
        if self._accepted is not None:
            return None
        fastest = frontier[0]
        return None if fastest.plan in self._rejected else fastest

    def best_without(self, left_out: Collection[SegmentKey], limit: float) -> Solution | None:
        """Return the plan of highest importance that is likely to fit and holds none of some segments, if there is one.

        It is not the best of all options, so nothing is proven of it.
        """
        try:
            frontier = self.frontier(left_out)
        except (InfeasibleBudgetError, MissingEntryError):  # limits that only these segments keep to
            return None
        for index in range(len(frontier) - 1, -1, -1):
            if frontier.latencies_ms[index, 0] <= limit * self.original_ms:
                solution = frontier[index]
                if solution.plan not in self._rejected and self._predict(solution).ratio <= limit:
                    return replace(solution, status="given", gap=None)
        return None

    def fastest(self, most_trials: int, advance: Callable[[], None] = lambda: None) -> Solution:
        """Return the fastest plan: the one predicted so is timed and learnt from until it stays the same."""
        best: tuple[float, Solution] | None = None
        seen = set()
        for _ in range(most_trials):
            solution = self.frontier()[0]
            if solution.plan in seen:
                break
            seen.add(solution.plan)
            ratio = self.time(solution)
            advance()
            if best is None or ratio < best[0]:
                best = ratio, solution
        assert best is not None
        return best[1]

    def time(self, solution: Solution) -> float:
        """Time a plan next to the original, learn from it, and return its ratio, with what was known before."""
        measured = self._time_plan(self._plan_of(solution))
        self.trials.append(measured)
        self._learn(measured)
        return measured.ratio

    def learn(self, solution: Solution, ratio: float, low: float, high: float) -> None:
        """Learn from a plan that was measured elsewhere."""
        self._learn(MeasuredPlan(**self._plan_of(solution)._asdict(), ratio=ratio, low=low, high=high))

    def accept(self, solution: Solution) -> None:
        """Only look for plans of higher importance from now on."""
        self._accepted = solution

    def reject(self, solution: Solution) -> None:
        """Do not return this plan again."""
        self._rejected.add(solution.plan)

    def _plan_of(self, solution: Solution) -> Plan:
        dropped = dropped_layers(self._net, solution.kept_layers)
        return Plan(solution.act_pos, solution.merge_pos, dropped, solution.changes)

    def _predict(self, solution: Solution) -> PlanPrediction:
        return self.beliefs.predict(*self._plan_of(solution)[1:])

    def _learn(self, measured: MeasuredPlan) -> None:
        self._learnt.append(measured)
        self._beliefs = None


def _is_faster(change: float, deviation: float) -> bool:
    return change + _DOUBT * deviation < 0


def _no_importance(latency: LatencyTable, net: Network) -> ImportanceTable:
    """Return importances that make only latency count."""
    entries = []
    for entry in latency.entries:
        if entry.change is not None and entry.change.layers is None:
            continue
        is_chain_start = any(chain.start == entry.start for chain in net.chains)
        start_act = 1 if is_chain_start else int(net.has_activation(entry.start))
        entries.append(
            ImportanceEntry(
                start=entry.start,
                end=entry.end,
                start_act=start_act,
                end_act=int(net.has_activation(entry.end)),
                importance=0.0,
                merged="" if entry.change is None else entry.merged,
                change=entry.change,
            )
        )
    return ImportanceTable(entries)
