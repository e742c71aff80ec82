"""Plans are looked at as wholes before one is taken: what segments lose alone does not quite add up.

Two merges side by side can lose far more together than the sum of both says, since the second works on what the first
has spoilt. The solver cannot know; but to score a whole plan takes a second or two, and among plans of about the same
sum the best whole is worth far more than the best sum (docs/importance.md). So the solver's plan is scored as a whole,
beside the best plans without each of its segments; from the best of these it goes on, until none is better.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from layerfold.data import ImageData
from layerfold.errors import InfeasibleBudgetError
from layerfold.graph import Network
from layerfold.importance.scores import change_of, importance_of
from layerfold.importance.subject import Subject
from layerfold.progress import progress_bar
from layerfold.solver import Solution, solve_frontier
from layerfold.tables import ImportanceTable, LatencyTable
from layerfold.tables._kernel import SegmentKey

MOST_PLANS = 24


@dataclass(frozen=True, kw_only=True)
class WholePlan:
    """A plan that was looked at.

    Attributes:
        solution: the best by the sum of importances without ``left_out``.
        left_out: segments that it was not to hold.
        change: of the score, of the whole network with BatchNorm statistics measured anew; higher is better.
    """

    solution: Solution
    left_out: frozenset[SegmentKey]
    change: float


@dataclass(frozen=True, kw_only=True)
class ChosenPlan:
    """What :func:`choose_plan` found.

    Attributes:
        best: the plan whose whole loses least.
        looked_at: every plan, in order; the first is the solver's.
    """

    best: WholePlan
    looked_at: tuple[WholePlan, ...]


def choose_plan(
    model: nn.Module, net: Network, data: ImageData, latency: LatencyTable, importance: ImportanceTable, *,
    budget_ms: float, alpha: float = 0.0, calibration_images: int = 256, holdout_images: int | None = None,
    seed: int = 0, most: int = MOST_PLANS, device: str = "cpu", progress: bool = True,
) -> ChosenPlan:  # fmt: skip
    """Return the plan within a budget whose whole network loses least, of those near the solver's.

    Networks are scored as by ``recalibrate``, untrained, by the loss on the holdout (without labels: the divergence
    from the original's answers).

    Args:
        model: the trained model that ``net`` was traced from; left untouched.
        data: as in :func:`layerfold.importance.estimate_importance`.
        latency, importance, alpha: what the solver gets.
        budget_ms: end to end, as predicted.
        calibration_images, holdout_images, seed: as in :func:`layerfold.importance.estimate_importance`.
        most: most plans to look at.
        device: torch's name of where they are scored.
        progress: show a bar on stderr.

    Raises:
        InfeasibleBudgetError: no plan meets the budget.
        DataError: a holdout of one class, or labels outside the model's classes.
    """
    first = solve_frontier(latency, importance, alpha).at(budget_ms=budget_ms)
    subject = Subject(model, net, data, calibration_images=calibration_images, holdout_images=holdout_images,
                      seed=seed, is_recalibrated=True, device=device)
    score = "loss" if data.is_labelled else "kl"
    looked_at: dict[object, WholePlan] = {}

    def look(solution: Solution, left_out: frozenset[SegmentKey]) -> WholePlan:
        structure = solution.act_pos, solution.plan
        if structure not in looked_at:
            change = change_of(subject.score_solution(solution), subject.original)
            looked_at[structure] = WholePlan(solution=solution, left_out=left_out, change=importance_of(change, score))
            bar.advance()
        return looked_at[structure]

    with progress_bar("plans as wholes", most, enabled=progress) as bar:
        best = look(first, frozenset())
        is_better = True
        while is_better and len(looked_at) < most:
            found = []
            for segment in (each for each in best.solution.segments if each.plan != "keep"):
                if len(looked_at) == most:
                    break
                left_out = best.left_out | {segment.key}
                try:
                    solution = solve_frontier(without(latency, left_out), importance, alpha).at(budget_ms=budget_ms)
                except InfeasibleBudgetError:
                    continue
                found.append(look(solution, left_out))
            better = max(found, key=lambda each: each.change, default=best)
            is_better = better.change > best.change
            best = better if is_better else best
    return ChosenPlan(best=best, looked_at=tuple(looked_at.values()))


def without(latency: LatencyTable, left_out: Collection[SegmentKey]) -> LatencyTable:
    """Return a latency table that lacks some segments."""
    entries = [each for each in latency.entries if each.key not in left_out]
    return LatencyTable(entries, provenance=latency.provenance, source=latency.source)
