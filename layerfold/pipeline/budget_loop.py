"""Predict, build, measure, refit: until the measured latency is within the budget (DESIGN.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from layerfold.errors import InfeasibleBudgetError
from layerfold.graph import Network
from layerfold.profiler import Verification, benchmark_networks, calibrate_latency, random_solutions, verify_solution
from layerfold.profiler.assemble import assemble_network
from layerfold.profiler.backends import Backend
from layerfold.profiler.outside import outside_graph
from layerfold.progress import progress_bar
from layerfold.solver import Frontier, Solution, solve_frontier
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyTable

_WEIGHT_OF_CHOSEN = 4.0
"""A plan that the solver chose counts more in the fit than a random one: it is where the prediction is needed."""
_LEAST_STEP = 0.02
"""Plans closer than this to one already measured are not measured again: the machine could not tell them apart."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What was asked for: end-to-end milliseconds, a speed-up over the original, or simply the fastest plan.

    Attributes:
        budget_ms: or None; speedup: or None. With neither, the fastest plan is wanted.
    """

    budget_ms: float | None = None
    speedup: float | None = None

    @property
    def is_fastest(self) -> bool:
        """Say whether there is no limit to keep, and the least latency is wanted."""
        return self.budget_ms is None and self.speedup is None

    def in_ms(self, original_ms: float) -> float:
        """Return the budget in ms, given the original's latency; 0, which nothing meets, for the fastest plan."""
        if self.budget_ms is not None:
            return self.budget_ms
        return original_ms / self.speedup if self.speedup is not None else 0.0

    def __str__(self) -> str:
        if self.is_fastest:
            return "the fastest plan"
        return f"{self.budget_ms:g} ms" if self.budget_ms is not None else f"{self.speedup:g}x"


@dataclass(frozen=True, kw_only=True)
class Round:
    """One turn of the loop.

    Attributes:
        solution: the plan; predicted_ms: its latency as predicted; verification: as measured.
        is_within: whether the measurement keeps the budget; is_safe: whether it does so with the margin to spare.
    """

    solution: Solution
    predicted_ms: float
    verification: Verification
    is_within: bool
    is_safe: bool


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """What came out.

    Attributes:
        solution: the best one whose measured latency is within the budget.
        verification: its measurement.
        frontier: as predicted at the end.
        latency: the table with the last fit.
        rounds: every turn, in order.
    """

    solution: Solution
    verification: Verification
    frontier: Frontier
    latency: LatencyTable
    rounds: tuple[Round, ...]


Point = tuple[float, float]
"""(sum of entries, measured latency), ms."""


def measure_random_plans(
    model: nn.Module,
    net: Network,
    latency: LatencyTable,
    backend: Backend,
    *,
    count: int = 6,
    seed: int = 0,
    batch: int = 1,
    cap_s: float = 2.0,
    progress: bool = True,
) -> list[Point]:
    """Measure the original and a few random plans end to end, interleaved; the original comes first.

    The plans are written as ONNX directly, with random weights: latency does not depend on the weights.
    """
    outside = outside_graph(model, net, batch=batch)
    everything = tuple(range(1, len(net.layers) + 1))
    plans = [(net.original_act_pos, everything)]
    candidates = [net.segment(entry.start, entry.end) for entry in latency.entries]
    plans += random_solutions(net, candidates, count, seed, table=latency)
    networks = {
        f"plan {i}": assemble_network(net, outside, act_pos, merge_pos) for i, (act_pos, merge_pos) in enumerate(plans)
    }
    with progress_bar("calibrate: measure random plans", 1, enabled=progress) as bar:
        report = benchmark_networks(networks, None, backend, cap_s=cap_s)
        bar.advance()
    return [
        (latency.sum_ms(latency.segments_of(merge_pos)), report[f"plan {i}"].median_ms)
        for i, (_, merge_pos) in enumerate(plans)
    ]


def calibrated(latency: LatencyTable, points: Sequence[Point], chosen: Sequence[Point] = ()) -> LatencyTable:
    """Return the table with the fixed part and the scale that fit measured plans."""
    weights = [1.0] * len(points) + [_WEIGHT_OF_CHOSEN] * len(chosen)
    fit = calibrate_latency(latency, [*points, *chosen], weights=weights)
    return latency.with_calibration(fixed_ms=fit.fixed_ms, scale=fit.scale)


def fastest_solution(latency: LatencyTable, net: Network) -> Solution:
    """Return the plan of least predicted latency, whatever it does to the accuracy."""
    entries = []
    for entry in latency.entries:
        chain = net.chain_of(entry.end)
        start_act = 1 if entry.start == chain.start else int(net.has_activation(entry.start))
        entries.append(
            ImportanceEntry(
                start=entry.start, end=entry.end, start_act=start_act, end_act=int(net.has_activation(entry.end)),
                importance=0.0,
            )
        )  # fmt: skip
    return solve_frontier(latency, ImportanceTable(entries))[0]


def meet_budget(
    model: nn.Module,
    net: Network,
    latency: LatencyTable,
    importance: ImportanceTable,
    budget: Budget,
    backend: Backend,
    *,
    points: Sequence[Point],
    alpha: float = 0.0,
    margin: float = 0.02,
    max_rounds: int = 8,
    batch: int = 1,
    original_onnx: bytes | None = None,
    cap_s: float = 6.0,
    progress: bool = True,
) -> LoopResult:
    """Find the best solution whose measured latency is within the budget.

    The frontier orders all plans by the sum of their entries. What was measured cuts it from both sides: a plan
    over the budget rules out every slower one, a plan within it every plan of less importance. Between them the
    best plan predicted to fit is built and measured, and the prediction refitted.

    Args:
        points: random plans from :func:`measure_random_plans`, the original first.
        alpha: see :func:`solve_frontier`.
        margin: share of the budget left free while a faster plan exists, so that measuring again confirms it.
        max_rounds: most plans to build and measure.

    Raises:
        InfeasibleBudgetError: the fastest plan was measured to be over the budget; names what it reaches.
    """
    chosen: list[Point] = []
    rounds: list[Round] = []
    table = calibrated(latency, points)
    # A refit moves all predictions alike, so the frontier's plans and their order are found once.
    plans = list(solve_frontier(table, importance, alpha))
    sums = [table.sum_ms(table.segments_of(solution.merge_pos)) for solution in plans]
    passed, failed = -1, len(sums)
    original_ms = points[0][1]
    with progress_bar("verify: build and measure", max_rounds, enabled=progress) as bar:
        while len(rounds) < max_rounds:
            # The table speaks of the time when the random plans were measured; the machine may be slower by now.
            limit_ms = budget.in_ms(original_ms) * (1 - margin) * points[0][1] / original_ms
            index = _next_index(sums, table, limit_ms, passed, failed)
            if passed < 0 and failed > 0 and len(rounds) == max_rounds - 1:
                index = 0  # nothing fitted so far: the last word belongs to the fastest plan
            if index is None:
                break
            solution = plans[index]
            predicted_ms = table.end_to_end_ms(sums[index])
            for cap_now_s in (cap_s, 3 * cap_s):
                verification = verify_solution(
                    model, net, solution, backend, batch=batch, budget_ms=budget.budget_ms, speedup=budget.speedup,
                    predicted_ms=predicted_ms, original_onnx=original_onnx, cap_s=cap_now_s,
                )  # fmt: skip
                if verification.is_within_budget is not False or not _is_open(verification, budget):
                    break
            original_ms = verification.original_ms
            is_safe = _is_within(verification, budget, margin)
            rounds.append(
                Round(
                    solution=replace(solution, predicted_ms=predicted_ms), predicted_ms=predicted_ms,
                    verification=verification,
                    is_within=budget.is_fastest or bool(verification.is_within_budget), is_safe=is_safe,
                )
            )  # fmt: skip
            # Both networks of a verification drift together: bring its latency to the first original's.
            chosen.append((sums[index], verification.ratio * points[0][1]))
            if is_safe:
                passed = index
            else:
                failed = index
            table = calibrated(latency, points, chosen)
            bar.advance()
    within = [each for each in rounds if each.is_within]
    if not within:
        raise _unreachable(budget, rounds, original_ms)
    best = max(within, key=lambda each: (each.is_safe, each.solution.importance or 0.0, -each.verification.ratio_high))
    return LoopResult(
        solution=best.solution,
        verification=best.verification,
        frontier=solve_frontier(table, importance, alpha),
        latency=table,
        rounds=tuple(rounds),
    )


def _next_index(
    sums: Sequence[float], table: LatencyTable, limit_ms: float, passed: int, failed: int
) -> int | None:
    """Return the slowest plan predicted to fit, between what passed and what failed; the fastest if none does."""
    least = sums[passed] * (1 + _LEAST_STEP) if passed >= 0 else 0.0
    most = sums[failed] * (1 - _LEAST_STEP) if failed < len(sums) else float("inf")
    fitting = [
        i
        for i in range(passed + 1, failed)
        if least <= sums[i] <= most and table.end_to_end_ms(sums[i]) <= limit_ms
    ]
    if fitting:
        return fitting[-1]
    # Before giving up, the fastest plan of all is measured rather than predicted.
    return 0 if passed < 0 and failed > 0 else None


def _is_open(verification: Verification, budget: Budget) -> bool:
    """Say whether a measurement leaves it open if the budget is kept: its interval holds the budget."""
    if budget.speedup is not None:
        return verification.ratio_low <= 1 / budget.speedup
    return verification.low_ms <= budget.in_ms(verification.original_ms)


def _is_within(verification: Verification, budget: Budget, margin: float) -> bool:
    limit_ms = budget.in_ms(verification.original_ms) * (1 - margin)
    fits = verification.high_ms <= limit_ms
    if budget.speedup is not None:
        fits = fits and verification.ratio_high <= (1 - margin) / budget.speedup
    return bool(verification.is_within_budget) and fits


def _unreachable(budget: Budget, rounds: Sequence[Round], original_ms: float) -> InfeasibleBudgetError:
    fastest = min((each.verification for each in rounds), key=lambda found: found.high_ms)
    budget_ms = budget.in_ms(fastest.original_ms)
    return InfeasibleBudgetError(
        f"budget {budget} ({budget_ms:.4g} ms): no plan meets it; the fastest takes {fastest.measured_ms:.4g} ms "
        f"(up to {fastest.high_ms:.4g}), {1 / fastest.ratio:.3g} times as fast as the original's "
        f"{fastest.original_ms:.4g} ms; ask for {_above(fastest.high_ms)} ms or more, "
        f"or --speedup {_below(1 / fastest.ratio_high)} or less",
        budget_ms=budget_ms,
        least_ms=fastest.high_ms,
    )


def _above(value: float) -> str:
    """Round up, so that the number named can be met."""
    return f"{value * 1.005:.3g}" if float(f"{value:.3g}") < value else f"{value:.3g}"


def _below(value: float) -> str:
    return f"{int(value * 100) / 100:g}"


def check_reachable(
    model: nn.Module,
    net: Network,
    latency: LatencyTable,
    budget: Budget,
    backend: Backend,
    *,
    points: Sequence[Point],
    original_onnx: bytes | None = None,
    batch: int = 1,
    cap_s: float = 6.0,
) -> None:
    """Measure the fastest plan before anything is spent on accuracy, where the prediction leaves a doubt.

    Raises:
        InfeasibleBudgetError: even the fastest plan is over the budget.
    """
    if budget.is_fastest:
        return
    table = calibrated(latency, points)
    fastest = fastest_solution(table, net)
    predicted_ms = table.predict_ms(fastest)
    if predicted_ms <= 0.8 * budget.in_ms(points[0][1]):
        return
    verification = verify_solution(
        model, net, fastest, backend, batch=batch, budget_ms=budget.budget_ms, speedup=budget.speedup,
        original_onnx=original_onnx, cap_s=cap_s,
    )  # fmt: skip
    if not verification.is_within_budget:
        turn = Round(
            solution=fastest, predicted_ms=predicted_ms, verification=verification, is_within=False, is_safe=False
        )
        raise _unreachable(budget, [turn], verification.original_ms)
