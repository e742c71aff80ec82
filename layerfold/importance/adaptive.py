"""Spend training where the solver's choice depends on it.

Every entry is estimated cheaply; the frontier is solved; the entries behind its plans are estimated expensively; the
cheap values of the others are put on the expensive scale; and again, until the plans stand on expensive estimates
alone. While it looks for plans, an entry that is known cheaply counts as better than its value by the typical error of
cheap values: a good entry that looks a little bad is tried too, and not passed over for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from layerfold.graph import Network
from layerfold.importance.filling import Filling
from layerfold.importance.requests import Request
from layerfold.options import Refinement
from layerfold.progress import progress_bar
from layerfold.solver import Frontier, Solution, entries_behind, solve_frontier
from layerfold.tables import ImportanceTable, LatencyTable, Provenance

Values = dict[Request, float]
_NUM_PLANS = 12
_TIE_BREAK = 1e-3
"""Slope of the cheap values where the fit is flat, so that entries keep their cheap order."""


def estimate_adaptively(
    net: Network,
    latency: LatencyTable,
    requests: Sequence[Request],
    cheap: Filling,
    expensive: Filling,
    how: Refinement,
    provenance: Provenance,
    *,
    progress: bool,
) -> ImportanceTable:
    """Fill a table cheaply, then expensively where its plans depend on it.

    Args:
        net: the network.
        latency: what the plans are solved with.
        requests: every row of the table.
        cheap, expensive: the two ways to estimate.
        how: limits.
        provenance: of the table; what was spent is added to its options.
        progress: show bars on stderr.
    """
    asked = [each for each in requests if not each.changes_nothing(net)]
    most = how.most if how.most is not None else max(16, len(asked) // 5)

    def fill(filling: Filling, what: str, wanted: Sequence[Request]) -> Values:
        needed = filling.needed(wanted)
        unknown = filling.unknown(needed)
        filling.prepare(unknown)
        with progress_bar(what, len(needed), enabled=progress, done=len(needed) - len(unknown)) as bar:
            filling.fill(unknown, bar.advance)
        return {each: filling.importance(each) for each in wanted}

    def table_of(values: Mapping[Request, float]) -> ImportanceTable:
        rows = [each.entry(values.get(each, 0.0)) for each in requests]
        return ImportanceTable(rows, provenance=provenance)

    coarse = fill(cheap, f"importance: {how.start_with}", asked)
    values, refined, spent = refine(
        asked,
        coarse,
        lambda wanted: fill(expensive, f"importance: {how.refine_with}", wanted),
        table_of,
        latency,
        frozenset(chain.end for chain in net.chains if net.has_activation(chain.end)),
        most=most,
        budgets_ms=how.budgets_ms,
    )
    rows = [
        replace(entry, extra={**entry.extra, "refined": float(each in refined), how.start_with: coarse.get(each, 0.0)})
        for each in requests
        for entry in [expensive.entry(each) if each in refined else each.entry(values.get(each, 0.0))]
    ]
    options = {
        **provenance.options,
        **expensive.options,
        "start_with": how.start_with,
        "refine_with": how.refine_with,
        "budgets_ms": list(how.budgets_ms),
        "original": expensive.original,
        "spent": asdict(spent),
        "cheap_seconds": round(cheap.seconds, 3),
        "seconds": round(cheap.seconds + expensive.seconds, 3),
    }
    return ImportanceTable(rows, provenance=replace(provenance, options=options))


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Cost of refining.

    Attributes:
        rounds: how often the frontier was solved.
        refined: entries that were estimated expensively.
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
    expensive: Callable[[Sequence[Request]], Mapping[Request, float]],
    table_of: Callable[[Mapping[Request, float]], ImportanceTable],
    latency: LatencyTable,
    end_acts: frozenset[int],
    *,
    most: int,
    budgets_ms: Sequence[float] = (),
) -> tuple[Values, frozenset[Request], Spent]:
    """Refine what the plans of the frontier stand on.

    Args:
        requests: entries that change something.
        cheap: their importances, higher is better.
        expensive: estimates entries; asked for each of them once.
        table_of: makes the table to solve with.
        latency: of the same segments.
        end_acts: chain ends with an activation.
        most: most entries to refine.
        budgets_ms: whose plans are looked at; none for plans all over the frontier.

    Returns:
        Importances, refined or brought to their scale; which are refined; and what it took.
    """
    known: Values = {}
    rounds, is_settled = 0, False
    while not is_settled and (rounds == 0 or len(known) < most):
        rounds += 1
        values, doubt = on_one_scale(requests, cheap, known)
        hopeful = {each: value if each in known else value + doubt for each, value in values.items()}
        behind = [
            request
            for plan in _plans(solve_frontier(latency, table_of(hopeful)), budgets_ms)
            for request in _behind(plan, table_of(hopeful), latency.chains, end_acts, requests)
        ]
        missing = list(dict.fromkeys(each for each in behind if each not in known))
        is_settled = not missing
        # First what most plans stand on, should the limit come before the end.
        missing.sort(key=lambda each: -behind.count(each))
        known.update(expensive(missing[: most - len(known)]))
    values, _ = on_one_scale(requests, cheap, known)
    spent = Spent(rounds=rounds, refined=len(known), entries=len(requests), is_settled=is_settled)
    return values, frozenset(known), spent


def on_one_scale(
    requests: Sequence[Request], cheap: Mapping[Request, float], known: Mapping[Request, float]
) -> tuple[Values, float]:
    """Return refined values as they are and cheap ones through a rising fit of the known pairs, and the fit's error.

    Returns:
        The values, and the standard deviation of the refined values about the fit (0 below 3 pairs).
    """
    if not known:
        return {each: cheap[each] for each in requests}, 0.0
    xs, ys = np.array(sorted((cheap[each], value) for each, value in known.items())).T
    fitted: NDArray[np.float64] = isotonic_regression(ys).x
    doubt = float(np.std(ys - fitted)) if len(ys) >= 3 else 0.0

    def brought(value: float) -> float:
        # Beyond the known pairs the cheap scale goes on as it is: a segment that looks far worse than all is far worse.
        beyond = value - float(np.clip(value, xs[0], xs[-1]))
        return float(np.interp(value, xs, fitted)) + (beyond if beyond < 0 else _TIE_BREAK * beyond)

    return {each: known.get(each, brought(cheap[each])) for each in requests}, doubt


def _plans(frontier: Frontier, budgets_ms: Sequence[float]) -> list[Solution]:
    """Return the best plan within each budget (the fastest, if none is), or plans evenly over the latencies."""
    latencies = np.asarray(frontier.latencies_ms)[:, 0]
    wanted = budgets_ms or np.linspace(latencies[0], latencies[-1], _NUM_PLANS)
    within = {max(int(np.searchsorted(latencies, each, side="right")) - 1, 0) for each in wanted}
    return [frontier[index] for index in sorted(within)]


def _behind(
    plan: Solution,
    table: ImportanceTable,
    chains: tuple[tuple[int, int], ...],
    end_acts: frozenset[int],
    requests: Sequence[Request],
) -> list[Request]:
    by_key = {request.key: request for request in requests}
    return [by_key[row.key] for row in entries_behind(plan, table, chains, end_acts) if row.key in by_key]
