"""Predict, build, measure, learn: until the measured latency is within the budget (docs/design.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from layerfold.budget import Budget, Verdict
from layerfold.errors import InfeasibleBudgetError
from layerfold.graph import Network
from layerfold.options import LoopOptions, PlanScores
from layerfold.pipeline.plan_search import PlanSearch
from layerfold.profiler import Verification
from layerfold.profiler.plans.plan import MeasuredPlan, Plan
from layerfold.progress import Progress, progress_bar, waiting
from layerfold.settings import takes_settings
from layerfold.solver import Frontier, ScoredPlan, Solution, climb_plans
from layerfold.solver.rounding import round_to
from layerfold.tables import ImportanceTable, LatencyTable
from layerfold.tables.kernel import SegmentKey

_MOST_TRIALS = 24
_FASTEST_TRIALS = 5
_REACHABLE_CAP_S = 6.0
_ENOUGH = 0.975
"""A plan that uses this much of the limit is not worth another verification."""
_LEAST_SLACK = 0.02
"""Share of a plan's latency by which a budget that is named as reachable lies above it at least."""
MOST_FINALISTS = 4
"""Of those taken that a more expensive score decides between at most."""


class PlanMeter(Protocol):
    """Meter of the loop, which itself only decides (:class:`layerfold.pipeline.backend_meter.BackendMeter`)."""

    def time(self, plan: Plan) -> MeasuredPlan:
        """Time a plan next to the original: a second or two, with random weights."""
        ...

    def verify(self, solution: Solution, budget: Budget, *, predicted_ms: float, cap_s: float) -> Verification:
        """Build a plan as it will be shipped, and measure it; ``cap_s`` is the most seconds per network."""
        ...


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
    """Result of the loop.

    Attributes:
        solution: the best one whose measured latency is within the budget.
        verification: its measurement.
        frontier: as predicted at the end.
        latency: the table with all that was learnt.
        rounds: every verification, in order.
        trials: every plan that was timed on the way, in order.
        wholes: where plans were scored as wholes, the verified ones that were taken, in order: from the one of highest
            importance to the one whose whole scores best.
        finalists: those of these that a second score decided between, with it; ``solution`` is the best, or where none
            has a finite score, the one whose whole scores best.
    """

    solution: Solution
    verification: Verification
    frontier: Frontier
    latency: LatencyTable
    rounds: tuple[Round, ...]
    trials: tuple[MeasuredPlan, ...]
    wholes: tuple[ScoredPlan, ...] = ()
    finalists: tuple[ScoredPlan, ...] = ()

    @property
    def whole_scores(self) -> list[float | None]:
        """Scores of ``wholes``; None for a network without finite answers, which JSON has no number for."""
        return _finite(self.wholes)

    @property
    def chosen_whole(self) -> int:
        """Index of the one of ``wholes`` that was chosen; there must be some."""
        return [each.solution.structure for each in self.wholes].index(self.solution.structure)

    @property
    def chosen_finalist(self) -> int | None:
        """Index of the one of ``finalists`` that was chosen; None where there are none."""
        entered = [each.solution.structure for each in self.finalists]
        return entered.index(self.solution.structure) if entered else None

    @property
    def finalist_scores(self) -> list[float | None]:
        """Scores of ``finalists``; None likewise."""
        return _finite(self.finalists)


@takes_settings(options=LoopOptions, scores=PlanScores)
def meet_budget(
    net: Network,
    latency: LatencyTable,
    importance: ImportanceTable,
    budget: Budget,
    meter: PlanMeter,
    *,
    options: LoopOptions | None = None,
    scores: PlanScores | None = None,
    progress: bool = True,
    **settings: Any,
) -> LoopResult:
    """Find the best solution whose measured latency is within the budget.

    Each turn solves again with all that was measured so far, takes the plan of highest importance that is likely to
    fit, and times it next to the original. What was timed over the budget teaches the entries that it holds (the
    solver had picked those whose errors were favourable) and is not looked at again. What fits is built as it will be
    shipped and verified; then the search goes back up, to plans of higher importance that lie between it and the
    budget, until little of the budget is left.

    With ``score_plan``, the plan found is left for one whose whole network scores better, as long as there is one
    nearby that is measured within the budget too (:func:`layerfold.solver.climb_plans`). Where that led to another
    plan, ``score_finalist`` decides between the first and the last three that were taken on the way.

    Args:
        latency: of any method; fitted ones (``method="plans"``) need the fewest turns.
        meter: times and verifies plans.
        options, settings: see :class:`layerfold.options.LoopOptions`; a setting given by name takes the place of that
            of ``options``.
        scores: see :class:`layerfold.options.PlanScores`, whose fields may be given by name too.

    Raises:
        InfeasibleBudgetError: nothing meets the budget; names what can be met.
    """
    options, scores = options or LoopOptions(), scores or PlanScores()
    score_plan, score_finalist = scores.score_plan, scores.score_finalist
    search = PlanSearch(net, latency, importance, meter.time, options)
    loop = _Loop(search, budget, meter, margin=options.margin, cap_s=options.cap_s)
    _check_fixed(budget, search)
    what = "verify: time plans"
    with progress_bar(what, _MOST_TRIALS, enabled=progress) as bar, loop.told_by(bar, what):
        if budget.is_fastest:
            loop.verify(search.fastest(_FASTEST_TRIALS, bar.advance))
        else:
            loop.find_highest(options.max_rounds, bar.advance)
    best = loop.best()
    wholes: list[ScoredPlan] = []
    if score_plan is not None and not budget.is_fastest:
        what = "verify: plans as wholes"
        with progress_bar(what, scores.most_wholes, enabled=progress) as bar, loop.told_by(bar, what):
            wholes = climb_plans(
                best.solution,
                score_plan,
                loop.solve_without,
                take=loop.is_kept_by,
                most=scores.most_wholes,
                advance=bar.advance,
            )
    finalists: list[ScoredPlan] = []
    if len(wholes) > 1:
        chosen = wholes[-1]
        latest = wholes[1:][1 - MOST_FINALISTS :]
        entered = [each for each in (wholes[0], *latest) if loop.round_of(each.solution).is_safe]
        if score_finalist is not None and len(entered) > 1:
            finalists = [replace(each, score=score_finalist(each.solution)) for each in entered]
            chosen = max(
                (each for each in finalists if math.isfinite(each.score)), key=lambda each: each.score, default=chosen
            )
        best = loop.round_of(chosen.solution)
    return LoopResult(
        solution=best.solution,
        verification=best.verification,
        frontier=search.frontier(),
        latency=search.table(),
        rounds=tuple(loop.rounds),
        trials=tuple(search.trials),
        wholes=tuple(wholes),
        finalists=tuple(finalists),
    )


def _finite(plans: Sequence[ScoredPlan]) -> list[float | None]:
    return [each.score if math.isfinite(each.score) else None for each in plans]


class _Loop:
    """State of the loop: what was verified so far, and the ways to verify more."""

    def __init__(self, search: PlanSearch, budget: Budget, meter: PlanMeter, *, margin: float, cap_s: float) -> None:
        self._search, self._budget, self._meter, self._margin, self._cap_s = search, budget, meter, margin, cap_s
        self.rounds: list[Round] = []
        self._say: Callable[[str], None] = lambda _: None

    @contextmanager
    def told_by(self, bar: Progress, what: str) -> Iterator[None]:
        """Have a bar say, beside ``what``, when a plan is built and measured: that takes longer than all else."""
        self._say = lambda phase: bar.describe(f"{what}{phase}")
        try:
            yield
        finally:
            self._say = lambda _: None

    @property
    def _limit(self) -> float:
        """The share of the original's latency that a plan may take."""
        return self._budget.in_ms(self._search.original_ms, self._margin) / self._search.original_ms

    def verify(self, solution: Solution) -> Round:
        """Build a plan as it will be shipped, and measure it."""
        self._say(", one built and measured")
        predicted_ms = self._search.predicted_ms(solution)
        budget = self._budget
        for cap_s in (self._cap_s, 3 * self._cap_s):
            verification = self._meter.verify(solution, budget, predicted_ms=predicted_ms, cap_s=cap_s)
            if budget.verdict(verification) is not Verdict.OPEN:
                break
        self._search.original_ms = verification.original_ms
        self._search.learn(solution, verification.ratio, verification.ratio_low, verification.ratio_high)
        turn = Round(
            solution=replace(solution, predicted_ms=predicted_ms),
            predicted_ms=predicted_ms,
            verification=verification,
            is_within=budget.is_kept_by(verification),
            is_safe=budget.is_kept_by(verification, self._margin),
        )
        self.rounds.append(turn)
        self._say("")
        return turn

    def find_highest(self, max_rounds: int, advance: Callable[[], None]) -> None:
        """Verify plans until no other of higher importance is likely to fit."""
        search = self._search
        while len(self.rounds) < max_rounds and len(search.trials) < _MOST_TRIALS:
            solution = search.next_plan(self._limit)
            if solution is None:
                break
            limit, ratio = self._limit, search.time(solution)
            advance()
            if ratio > limit:
                search.reject(solution)
            elif self.verify(solution).is_safe:
                search.accept(solution)
                if ratio > _ENOUGH * limit:
                    break
            else:
                search.reject(solution)
        if not any(each.is_within for each in self.rounds):
            # The last word belongs to the fastest plan that was seen, and to what is shipped.
            fastest = search.fastest(_FASTEST_TRIALS, advance)
            if all(each.solution.plan != fastest.plan for each in self.rounds):
                self.verify(fastest)

    def best(self) -> Round:
        """Return the one of highest importance that keeps the budget.

        Raises:
            InfeasibleBudgetError: there is none.
        """
        within = [each for each in self.rounds if each.is_within]
        if not within:
            raise _unreachable(self._budget, self.rounds, self._margin)
        return max(
            within, key=lambda each: (each.is_safe, each.solution.importance or 0.0, -each.verification.ratio_high)
        )

    def round_of(self, solution: Solution) -> Round:
        """Return the round in which a plan was verified last."""
        return next(each for each in self.rounds[::-1] if each.solution.structure == solution.structure)

    def solve_without(self, left_out: Collection[SegmentKey]) -> Solution | None:
        """Return the plan of highest importance without some segments that is likely to keep the budget."""
        return self._search.best_without(left_out, self._limit)

    def is_kept_by(self, solution: Solution) -> bool:
        """Time a plan, verify it if that went well, and say whether it keeps the budget."""
        is_kept = self._search.time(solution) <= self._limit and self.verify(solution).is_safe
        if not is_kept:
            self._search.reject(solution)
        return is_kept


def check_reachable(
    net: Network, latency: LatencyTable, budget: Budget, meter: PlanMeter, *, progress: bool = False
) -> None:
    """Time the fastest plans before anything is spent on accuracy, where the prediction leaves a doubt.

    Args:
        progress: show on stderr that this is being done.

    Raises:
        InfeasibleBudgetError: even the fastest plan is over the budget.
    """
    if budget.is_fastest:
        return
    search = PlanSearch(net, latency, None, meter.time)
    _check_fixed(budget, search)
    if search.predicted_ms(search.frontier()[0]) <= 0.8 * budget.in_ms(search.original_ms):
        return
    with waiting("profile: is the budget reachable", enabled=progress):
        fastest = search.fastest(_FASTEST_TRIALS)
        predicted_ms = search.predicted_ms(fastest)
        verification = meter.verify(fastest, budget, predicted_ms=predicted_ms, cap_s=_REACHABLE_CAP_S)
    if not budget.is_kept_by(verification):
        turn = Round(
            solution=fastest, predicted_ms=predicted_ms, verification=verification, is_within=False, is_safe=False
        )
        raise _unreachable(budget, [turn], _LEAST_SLACK)


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
            f"budget {budget.said(budget_ms)}: what lies outside the chains takes {fixed_ms:.4g} ms, and no "
            f"merging changes that; the fastest plan is predicted to take {least_ms:.4g} ms, and `layerfold compress "
            "--fastest` measures what it takes",
            budget_ms=budget_ms,
            least_ms=least_ms,
        )


def _unreachable(budget: Budget, rounds: Sequence[Round], margin: float) -> InfeasibleBudgetError:
    """Return the error that names what can be met: in ms and as a speed-up the same, and met when it is asked for."""
    fastest = min((each.verification for each in rounds), key=lambda found: found.high_ms)
    budget_ms = budget.in_ms(fastest.original_ms)
    # A speed-up asks for both. Measured again, the interval's end may lie as much higher as it lies above the middle.
    high = max(fastest.ratio_high, fastest.high_ms / fastest.original_ms)
    needed = high + max(high - fastest.ratio, max(margin, _LEAST_SLACK) * high)
    speedup = round_to(1 / needed, up=False)
    return InfeasibleBudgetError(
        f"budget {budget.said(budget_ms)}: no plan meets it; the fastest takes {fastest.measured_ms:.4g} ms "
        f"(up to {fastest.high_ms:.4g}), {1 / fastest.ratio:.3g} times as fast as the original's "
        f"{fastest.original_ms:.4g} ms; ask for {round_to(fastest.original_ms / float(speedup), up=True)} ms or more, "
        f"or --speedup {speedup} or less",
        budget_ms=budget_ms,
        least_ms=fastest.high_ms,
    )
