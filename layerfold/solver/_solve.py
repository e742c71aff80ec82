"""Both stages together: from tables to the frontier."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.arguments import checked
from layerfold.errors import InfeasibleBudgetError, MissingEntryError, UsageError
from layerfold.options.solve import Normalise, SolveOptions
from layerfold.settings import takes_settings
from layerfold.solver._changed_options import split_importances
from layerfold.solver._frontier import Frontier
from layerfold.solver._limits import Limits
from layerfold.solver._pareto import pareto_indices
from layerfold.solver._problem import build_options, check_tables
from layerfold.solver._risk import quantile
from layerfold.solver._vector_costs import CostColumns, cost_columns
from layerfold.solver.budgets import checked_budgets
from layerfold.solver.extension import normalised_importances
from layerfold.solver.labels import least_to_go
from layerfold.solver.rounding import round_to
from layerfold.solver.search import Found, check_epsilon, solve_options
from layerfold.tables import ImportanceTable, LatencyTable
from layerfold.tables.fields import entries_of

Floats = NDArray[np.float64]
_ROUNDING = 1e-12
_SAME = 1e-14


@takes_settings(options=SolveOptions)
@checked
def solve_frontier(
    latency: LatencyTable | Sequence[LatencyTable],
    importance: ImportanceTable,
    alpha: float | None = None,
    normalise: Normalise | None = None,
    *,
    options: SolveOptions | None = None,
    **settings: Any,
) -> Frontier:
    """Return every Pareto-optimal solution, exact for all budgets.

    Where a frontier outgrows ``max_labels``, or ``epsilon`` is above 0, labels are thinned; every answer then says
    how far from optimal it may be (``Solution.gap``, proven).

    Args:
        latency: the latency table; several for several devices, all of the same segments.
        importance: importances by (start, end, start_act, end_act).
        alpha, normalise: see :func:`extend_importance`; a solution's importance is the normalised sum.
        options, settings: see :class:`SolveOptions`; a setting given by name takes the place of that of ``options``.

    Raises:
        MissingEntryError, ProvenanceMismatchError, TableError: tables that do not go together.
        InfeasibleBudgetError: nothing keeps to ``limits`` and ``budgets_ms``.

    Paper: section 4; appendix B for the extended importances.

    Example:
        >>> frontier = lf.solve_frontier(latency, importance)
        >>> len(frontier), bool(frontier.gaps.any())
        (3, False)
        >>> solution = frontier.at(budget_ms=3.5)
        >>> solution.act_pos, solution.predicted_ms, solution.importance
        ((1, 3), 3.2, -1.0)
    """
    tables = latency_tables(latency)
    options = options or SolveOptions()
    limits, risk = options.limits or Limits(), options.risk
    limits.check_positions(tables[0].chains, tables[0].source)
    check_tables(tables, importance)
    columns = cost_columns(tables, limits, has_risk=risk is not None)
    deviations = quantile(risk) if risk is not None else 0.0
    check_epsilon(options.epsilon, options.max_labels)
    caps = _caps(columns, options.budgets_ms)
    importances = normalised_importances(importance, options.alpha, options.normalise)
    whole, changed = split_importances(importances, importance.entries)
    all_options = build_options(tables, whole, limits, columns, changed, empty_slots=importance.empty_slots)
    to_go = [least_to_go(each) for each in all_options]
    least = np.array([each[1] for each in to_go])
    for of_chain, least_costs in zip(all_options, least, strict=True):
        if not np.isfinite(least_costs).all():
            remedy = "loosen the fixed decisions"
            if limits == Limits():
                remedy = "activation pairs are missing, estimate them"
            start, end = of_chain.chain
            raise MissingEntryError(f"{importance.source}: no options lead through the chain {start}..{end}; {remedy}")
    slack = caps * (1.0 + _ROUNDING)
    if (least.sum(axis=0) > slack).any():
        raise _out_of_reach(columns, caps, least.sum(axis=0))
    found = solve_options(
        all_options,
        to_go,
        caps=slack if np.isfinite(caps).any() else None,
        epsilon=options.epsilon,
        max_labels=options.max_labels,
    )
    if found is None:
        raise _out_of_reach(columns, caps, least.sum(axis=0))
    return _finished(found, columns, importance, options, deviations, caps)


def latency_tables(latency: LatencyTable | Sequence[LatencyTable]) -> list[LatencyTable]:
    """Return the tables of one or several devices.

    Raises:
        UsageError: none, or something else among them.
    """
    found = [latency] if isinstance(latency, LatencyTable) else list(entries_of(latency, LatencyTable, "latency"))
    if not found:
        raise UsageError("latency=[]: expected at least one latency table")
    return found


def _caps(columns: CostColumns, budgets_ms: Sequence[float] | None) -> Floats:
    """Return the upper limit of every column, in the columns' own units."""
    caps = np.full(columns.count, np.inf)
    if budgets_ms is not None:
        budgets = checked_budgets(budgets_ms, columns.num_devices)
        for device, (table, budget_ms) in enumerate(zip(columns.tables, budgets, strict=True)):
            caps[device] = (budget_ms - table.provenance.fixed_ms) / table.provenance.scale
    for place, (_, most) in enumerate(columns.caps):
        caps[columns.count - len(columns.caps) + place] = most
    return caps


def _finished(
    found: Found,
    columns: CostColumns,
    importance: ImportanceTable,
    options: SolveOptions,
    deviations: float,
    caps: Floats,
) -> Frontier:
    """Turn sums of costs into latencies, drop what is over a cap, and what only a dropped column told apart."""
    summed = found.summed
    devices = columns.num_devices
    sums = summed.costs[:, :devices].copy()
    if options.risk is not None:
        sums += deviations * np.sqrt(summed.costs[:, devices : 2 * devices])
    fits = np.flatnonzero((np.column_stack((sums, summed.costs[:, devices:])) <= caps * (1.0 + _ROUNDING)).all(axis=1))
    if not len(fits):
        raise _out_of_reach(columns, caps, np.concatenate((sums.min(axis=0), summed.costs[:, devices:].min(axis=0))))
    scales = np.array([table.provenance.scale for table in columns.tables])
    fixed = np.array([table.provenance.fixed_ms for table in columns.tables])
    latencies_ms = fixed + scales * sums
    kept = fits[pareto_indices(latencies_ms[fits], summed.importances[fits])]
    if devices == 1:
        # Of points whose latencies differ by the order of their sums only, the one of higher importance.
        ascending = latencies_ms[kept, 0]
        kept = kept[np.append(ascending[1:] > ascending[:-1] * (1.0 + _SAME), True)]
    gaps = np.full(len(kept), found.gap)
    if found.hull is not None:
        # A point answers all budgets up to the next point's latency.
        following = np.append(sums[kept[1:], 0], np.inf)
        gaps = np.maximum(found.hull.bound(following) - summed.importances[kept], 0.0)
    return Frontier(
        summed=summed,
        points=kept,
        latencies_ms=latencies_ms[kept],
        gaps=gaps,
        columns=columns,
        importance=importance,
        options=options,
        found=found,
    )


def _out_of_reach(columns: CostColumns, caps: Floats, least: Floats) -> InfeasibleBudgetError:
    """Name the tightest limit and the least that can be reached for it."""
    with np.errstate(over="ignore"):
        worst = int(np.argmax(np.where(np.isfinite(caps), least / np.maximum(caps, 1e-300), 0.0)))
    first = columns.tables[0]
    if worst < columns.num_devices:
        table = columns.tables[worst]
        asked_ms, least_ms = table.end_to_end_ms(float(caps[worst])), table.end_to_end_ms(float(least[worst]))
        what = f"budget {asked_ms:.6g} ms on {table.source}: no plan meets it, the least reachable latency is"
        what += f" {round_to(least_ms * (1.0 + _ROUNDING), up=True, digits=6)} ms"
    else:
        asked_ms, least_ms = first.end_to_end_ms(float(caps[0])), first.end_to_end_ms(float(least[0]))
        what = f"max_{columns.caps[worst - columns.count][0]}={caps[worst]:.10g}: no plan keeps to it, "
        what += f"the least reachable is {math.ceil(least[worst])}"
    if least[worst] <= caps[worst]:
        what += " on its own, but not together with the other limits"
    return InfeasibleBudgetError(f"{what}; raise it or widen the candidates", budget_ms=asked_ms, least_ms=least_ms)
