"""How tables are solved, and how the loop that measures goes about it. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from layerfold.settings import check_settings, setting

if TYPE_CHECKING:
    from layerfold.solver import Limits, Solution

Normalise = Literal["single", "default", "all"]
MOST_WHOLES = 24
"""Plans that are scored as whole networks at most."""


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """Settings of the solver.

    Attributes:
        alpha, normalise: see :func:`layerfold.extend_importance`; a solution's importance is the normalised sum.
        limits: caps and fixed decisions beside the budget.
        risk: if given, latencies are those that the sum of independent normal entries keeps to with
            probability 1 - risk.
        budgets_ms: end-to-end limits known beforehand, one per device: the frontier holds only what keeps to them.
        epsilon: the part of the span of importance (best plan less fastest plan) that an answer may miss by; 0 for
            exact. With one cost it steers the thinning, and the gap is proven afterwards by the hull; with several
            costs it bounds the gap beforehand.
        max_labels: most labels per state before thinning sets in; then epsilon is 1e-4, or what it takes.

    Example:
        >>> options = lf.SolveOptions(limits=lf.Limits(max_merged=1), risk=0.05)
        >>> lf.solve_frontier(latency, importance, options=options).risk
        0.05
    """

    alpha: float = 0.0
    normalise: Normalise = "single"
    limits: Limits | None = None
    risk: float | None = None
    budgets_ms: Sequence[float] | None = None
    epsilon: float = 0.0
    max_labels: int = 20_000

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class LoopOptions(SolveOptions):
    """Settings of the loop that measures plans.

    Attributes:
        alpha, normalise, limits, risk, budgets_ms, epsilon, max_labels: as of :class:`SolveOptions`.
        margin: share of the budget left free while a faster plan exists, so that measuring again confirms it.
        max_rounds: most plans to build and verify before any is scored; besides, up to three times as many are timed.
        cap_s: most seconds per network in one verification, above 0.
    """

    margin: float = setting(0.02, least=0, below=1)
    max_rounds: int = 8
    cap_s: float = setting(6.0, above=0)


@dataclass(frozen=True, kw_only=True)
class PlanScores:
    """Scores that decide between plans which keep the budget, beside the sum of importances.

    Attributes:
        score_plan: score of a plan's whole network, higher is better (:class:`layerfold.importance.WholeScores`); None
            takes the plan of highest importance. The fastest plan is what it is, and not scored.
        most_wholes: most plans to score.
        score_finalist: another score of plans, higher is better, which may be more expensive
            (:class:`layerfold.importance.FinalistScores`); None takes the plan whose whole scores best.
    """

    score_plan: Callable[[Solution], float] | None = None
    most_wholes: int = MOST_WHOLES
    score_finalist: Callable[[Solution], float] | None = None
