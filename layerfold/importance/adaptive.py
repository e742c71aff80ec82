"""Spend training where the solver's choice depends on it.

Every entry is estimated cheaply; the frontier is solved; the entries that its plans use are estimated dearly; cheap
values of the others are put on the dear scale; and again, until the plans use nothing that is known cheaply only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from layerfold.importance.requests import Request
from layerfold.solver import Frontier, Solution, solve_frontier
from layerfold.tables import ImportanceTable, LatencyTable

_TIE_BREAK = 1e-3
"""Slope of the cheap values where the fit is flat, so that entries keep their cheap order."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What refining took.

    Attributes:
        rounds: how often the frontier was solved.
        refined: entries that were estimated dearly.
        entries: all that change something.
        is_settled: whether the plans stand on refined entries alone; otherwise the limit came first.
    """

    rounds: int
    refined: int
    entries: int
    is_settled: bool


def refine(
    requests: Sequence[Request],
    cheap: Mapping[Request, float],
    dear: Callable[[Sequence[Request]], Mapping[Request, float]],
    table_of: Callable[[Mapping[Request, float]], ImportanceTable],
    latency: LatencyTable,
    *,
    num_plans: int = 8,
    most: int | None = None,
) -> tuple[dict[Request, float], Spent]:
    """Refine what the plans of the frontier use.

    Args:
        requests: entries that change something.
        cheap: their importances, higher is better.
        dear: estimates entries; asked for each of them once.
        table_of: makes the table to solve with.
        latency: of the same segments.
        num_plans: plans of the frontier that are looked at, evenly over its latencies.
        most: most entries to refine; None for no limit.

    Returns:
        Importances, refined or brought to their scale, and what it took.
    """
    known: dict[Request, float] = {}
    rounds, is_settled = 0, False
    while True:
        values = on_one_scale(requests, cheap, known)
        plans = spread(solve_frontier(latency, table_of(values)), num_plans)
        rounds += 1
        used = {key for plan in plans for key in _changes(plan)}
        missing = [each for each in requests if each not in known and _key(each) in used]
        is_settled = not missing
        room = math.inf if most is None else most - len(known)
        if is_settled or room <= 0:
            break
        # Those on which most depends first, should the limit come before the end.
        missing.sort(key=lambda each: values[each])
        known.update(dear(missing[: int(min(room, len(missing)))]))
    return values, Spent(rounds=rounds, refined=len(known), entries=len(requests), is_settled=is_settled)


def on_one_scale(
    requests: Sequence[Request], cheap: Mapping[Request, float], known: Mapping[Request, float]
) -> dict[Request, float]:
    """Return refined values as they are, and cheap ones through a rising fit of the pairs that are known."""
    if not known:
        return {each: cheap[each] for each in requests}
    pairs = sorted((cheap[each], value) for each, value in known.items())
    xs, ys = np.array(pairs).T
    fitted = isotonic_regression(ys).x
    return {
        each: known[each] if each in known
        else float(np.interp(cheap[each], xs, fitted)) + _TIE_BREAK * (cheap[each] - float(np.clip(cheap[each], xs[0], xs[-1])))
        for each in requests
    }  # fmt: skip


def spread(frontier: Frontier, count: int) -> list[Solution]:
    """Return ``count`` of a frontier's points, evenly over its latencies, both ends among them."""
    latencies = np.asarray(frontier.latencies_ms)[:, 0]
    wanted = np.linspace(latencies[0], latencies[-1], max(count, 1))
    return [frontier[index] for index in sorted({int(np.abs(latencies - each).argmin()) for each in wanted})]


def _key(request: Request) -> tuple[int, int, tuple[int, ...]]:
    return request.start, request.end, request.dropped


def _changes(plan: Solution) -> set[tuple[int, int, tuple[int, ...]]]:
    """Return (start, end, dropped layers) of a plan's segments and of its stretches between activations."""
    kept = None if plan.kept_layers is None else set(plan.kept_layers)

    def dropped(start: int, end: int) -> tuple[int, ...]:
        return () if kept is None else tuple(each for each in range(start + 1, end + 1) if each not in kept)

    stops = sorted({0, *plan.merge_pos})
    acts = sorted({0, *plan.act_pos, *plan.merge_pos[-1:]})
    spans = [*itertools.pairwise(stops), *itertools.pairwise(acts)]
    return {(start, end, dropped(start, end)) for start, end in spans}
