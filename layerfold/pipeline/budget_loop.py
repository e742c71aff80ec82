"""Predict, build, measure, learn: until the measured latency is within the budget (DESIGN.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from layerfold.errors import InfeasibleBudgetError
from layerfold.graph import Network
from layerfold.pipeline.plan_search import PlanSearch
from layerfold.profiler import Verification, verify_solution
from layerfold.profiler.backends import Backend
from layerfold.profiler.plan_timing import MeasuredPlan
from layerfold.progress import progress_bar
from layerfold.solver import Frontier, Limits, Solution
from layerfold.solver._extension import Normalise
from layerfold.tables import ImportanceTable, LatencyTable

_MOST_TRIALS = 24
_FASTEST_TRIALS = 5
_ENOUGH = 0.975
"""A plan that uses this much of the limit is not worth another verification."""


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
        latency: the table with all that was learnt.
        rounds: every verification, in order.
        trials: every plan that was timed on the way, in order.
    """

    solution: Solution
    verification: Verification
    frontier: Frontier
    latency: LatencyTable
    rounds: tuple[Round, ...]
    trials: tuple[MeasuredPlan, ...]


def meet_budget(
    model: nn.Module,
    net: Network,
    latency: LatencyTable,
    importance: ImportanceTable,
    budget: Budget,
    backend: Backend,
    *,
    alpha: float = 0.0,
    normalise: Normalise = "single",
    limits: Limits | None = None,
    margin: float = 0.02,
    max_rounds: int = 8,
    batch: int = 1,
    original_onnx: bytes | None = None,
    cap_s: float = 6.0,
    progress: bool = True,
) -> LoopResult:
    """Find the best solution whose measured latency is within the budget.

    Each turn solves again with all that was measured so far, takes the plan of highest importance that is likely to
    fit, and times it next to the original: a second or two, with random weights. What was timed over the
    budget teaches the entries that it holds (the solver had picked those whose errors were favourable) and is not
    looked at again. What fits is built as it will be shipped and verified; then the search goes back up, to plans of
    higher importance that lie between it and the budget, until little of the budget is left.

    Args:
        latency: of any method; fitted ones (``method="plans"``) need the fewest turns.
        alpha, normalise, limits: see :func:`solve_frontier`.
        margin: share of the budget left free while a faster plan exists, so that measuring again confirms it.
        max_rounds: most plans to build and verify; besides, up to three times as many are timed.
        cap_s: most seconds a network in one verification.

    Raises:
        InfeasibleBudgetError: nothing meets the budget; names what can be met.
    """
    search = PlanSearch(model, net, latency, importance, backend, alpha=alpha, normalise=normalise, limits=limits,
                        batch=batch)
    rounds: list[Round] = []

    def verify(solution: Solution) -> Round:
        predicted_ms = search.predicted_ms(solution)
        for cap_now_s in (cap_s, 3 * cap_s):
            verification = verify_solution(
                model, net, solution, backend, batch=batch, budget_ms=budget.budget_ms, speedup=budget.speedup,
                predicted_ms=predicted_ms, original_onnx=original_onnx, cap_s=cap_now_s,
            )  # fmt: skip
            if verification.is_within_budget is not False or not _is_open(verification, budget):
                break
        search.original_ms = verification.original_ms
        search.learn(solution, verification.ratio, verification.ratio_low, verification.ratio_high)
        turn = Round(
            solution=replace(solution, predicted_ms=predicted_ms), predicted_ms=predicted_ms,
            verification=verification, is_within=budget.is_fastest or bool(verification.is_within_budget),
            is_safe=_is_within(verification, budget, margin),
        )  # fmt: skip
        rounds.append(turn)
        return turn

    with progress_bar("verify: time plans", _MOST_TRIALS, enabled=progress) as bar:
        _check_fixed(budget, search)
        if budget.is_fastest:
            verify(search.fastest(_FASTEST_TRIALS, bar.advance))
        while not budget.is_fastest and len(rounds) < max_rounds and len(search.trials) < _MOST_TRIALS:
            limit = budget.in_ms(search.original_ms) * (1 - margin) / search.original_ms
            solution = search.next_plan(limit)
            if solution is None:
                break
            ratio = search.time(solution)
            bar.advance()
            if ratio > limit:
                search.reject(solution)
            elif verify(solution).is_safe:
                search.accept(solution)
                if ratio > _ENOUGH * limit:
                    break
            else:
                search.reject(solution)
        if not any(each.is_within for each in rounds) and not budget.is_fastest:
            # The last word belongs to the fastest plan that was seen, and to what is shipped.
            fastest = search.fastest(_FASTEST_TRIALS, bar.advance)
            if all(each.solution.plan != fastest.plan for each in rounds):
                verify(fastest)
    within = [each for each in rounds if each.is_within]
    if not within:
        raise _unreachable(budget, rounds, search.original_ms)
    best = max(within, key=lambda each: (each.is_safe, each.solution.importance or 0.0, -each.verification.ratio_high))
    return LoopResult(
        solution=best.solution,
        verification=best.verification,
        frontier=search.frontier(),
        latency=search.table(),
        rounds=tuple(rounds),
        trials=tuple(search.trials),
    )


def check_reachable(
    model: nn.Module,
    net: Network,
    latency: LatencyTable,
    budget: Budget,
    backend: Backend,
    *,
    original_onnx: bytes | None = None,
    batch: int = 1,
    cap_s: float = 6.0,
) -> None:
    """Time the fastest plans before anything is spent on accuracy, where the prediction leaves a doubt.

    Raises:
        InfeasibleBudgetError: even the fastest plan is over the budget.
    """
    if budget.is_fastest:
        return
    search = PlanSearch(model, net, latency, None, backend, batch=batch)
    _check_fixed(budget, search)
    if search.predicted_ms(search.frontier()[0]) <= 0.8 * budget.in_ms(search.original_ms):
        return
    fastest = search.fastest(_FASTEST_TRIALS)
    predicted_ms = search.predicted_ms(fastest)
    verification = verify_solution(
        model, net, fastest, backend, batch=batch, budget_ms=budget.budget_ms, speedup=budget.speedup,
        original_onnx=original_onnx, cap_s=cap_s,
    )  # fmt: skip
    if not verification.is_within_budget:
        turn = Round(
            solution=fastest, predicted_ms=predicted_ms, verification=verification, is_within=False, is_safe=False
        )
        raise _unreachable(budget, [turn], verification.original_ms)


def _check_fixed(budget: Budget, search: PlanSearch) -> None:
    """Refuse a budget that what lies outside the chains uses up alone, before anything is measured.

    Raises:
        InfeasibleBudgetError: says how much is fixed, and what is predicted to be reachable.
    """
    budget_ms = budget.in_ms(search.original_ms)
    fixed_ms = search.latency.provenance.fixed_ms
    if not budget.is_fastest and budget_ms <= fixed_ms:
        least_ms = search.predicted_ms(search.frontier()[0])
        raise InfeasibleBudgetError(
            f"budget {budget} ({budget_ms:.4g} ms): what lies outside the chains takes {fixed_ms:.4g} ms, and no "
            f"merging changes that; the fastest plan is predicted to take {least_ms:.4g} ms, ask for that or more",
            budget_ms=budget_ms,
            least_ms=least_ms,
        )


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
