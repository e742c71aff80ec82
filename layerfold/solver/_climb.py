"""From one plan to better ones, where a score of whole plans knows more than the sum of importances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from layerfold.solver._solution import Solution
from layerfold.tables.kernel import SegmentKey

LeftOut = frozenset[SegmentKey]


@dataclass(frozen=True, kw_only=True)
class ScoredPlan:
    """A plan that was looked at as a whole.

    Attributes:
        solution: the plan.
        score: of the whole plan; higher is better.
        left_out: segments that it was not to hold.
    """

    solution: Solution
    score: float
    left_out: LeftOut


def climb_plans(
    first: Solution,
    score: Callable[[Solution], float],
    solve_without: Callable[[LeftOut], Solution | None],
    *,
    take: Callable[[Solution], bool] = lambda _: True,
    most: int,
    advance: Callable[[], None] = lambda: None,
) -> list[ScoredPlan]:
    """Go from a plan to the best-scored one of its neighbours, while one is better and can be taken.

    Neighbours of a plan are the solver's answers without one of its merged segments, and without all that was left out
    on the way to it: what spoils a whole is some segment of it, and the solver knows the best way around each.

    Args:
        first: where to start; it is taken.
        score: of a plan as a whole; asked once per plan.
        solve_without: the best plan by the sum of importances that holds none of some segments; None where there is
            none. Asked again, with the same segments, once a plan could not be taken: it may know another by then.
        take: tell whether a plan that is better can be taken, for example whether its measured latency is within the
            budget.
        most: plans to score at most.
        advance: called after each.

    Returns:
        The plans taken, in order: scores rise, and the last is the best. Empty if ``most`` is 0.
    """
    scores: dict[object, float] = {}
    refused: set[object] = set()

    def scored(solution: Solution, left_out: LeftOut = frozenset()) -> ScoredPlan | None:
        if solution.structure not in scores and len(scores) < most:
            scores[solution.structure] = score(solution)
            advance()
        known = scores.get(solution.structure)
        return None if known is None else ScoredPlan(solution=solution, score=known, left_out=left_out)

    def neighbours_of(plan: ScoredPlan) -> Iterator[ScoredPlan]:
        for segment in plan.solution.segments:
            left_out = plan.left_out | {segment.key}
            solution = solve_without(left_out) if segment.plan != "keep" else None
            if solution is not None and solution.plan not in refused and (found := scored(solution, left_out)):
                yield found

    start = scored(first)
    taken = [] if start is None else [start]
    while taken:
        best = max(neighbours_of(taken[-1]), key=lambda each: each.score, default=taken[-1])
        if best.score <= taken[-1].score:
            break
        if take(best.solution):
            taken.append(best)
        else:
            refused.add(best.solution.plan)
    return taken
