"""Options, frontiers, solutions: the exact choice of what to merge (docs/design.md). No torch."""

from layerfold.solver._alternatives import solve_alternatives
from layerfold.solver._climb import ScoredPlan, climb_plans
from layerfold.solver._explain import Explanation, explain_point
from layerfold.solver._frontier import Frontier
from layerfold.solver._importance_of import entries_behind, importance_of
from layerfold.solver._limits import Limits
from layerfold.solver._solution import Solution, SolutionSegment
from layerfold.solver._solve import solve_frontier
from layerfold.solver.extension import extend_importance
from layerfold.solver.options import Option, StretchPlan
from layerfold.solver.stage1 import compute_optimal_latency

__all__ = [
    "Explanation",
    "Frontier",
    "Limits",
    "Option",
    "ScoredPlan",
    "Solution",
    "SolutionSegment",
    "StretchPlan",
    "climb_plans",
    "compute_optimal_latency",
    "entries_behind",
    "explain_point",
    "extend_importance",
    "importance_of",
    "solve_alternatives",
    "solve_frontier",
]
