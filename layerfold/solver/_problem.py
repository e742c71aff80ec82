"""From tables to options: what may be chosen in each chain, and at which costs."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np
from numpy.typing import NDArray

from layerfold.errors import ProvenanceMismatchError
from layerfold.solver._changed_options import ChangedOption, ChangedSums, changed_options
from layerfold.solver._limits import Limits
from layerfold.solver._vector_costs import CostColumns, VectorSums, vector_sums
from layerfold.solver.extension import ExtendedImportance, extended_importance
from layerfold.solver.options import ChainOptions, StretchPlan, chain_options
from layerfold.solver.stage1 import OptimalSums, optimal_sums
from layerfold.tables import ImportanceEntry, ImportanceTable, LatencyEntry, LatencyTable, check_coverage
from layerfold.tables.latency import check_entries
from layerfold.tables.provenance import check_same_source

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = tuple[int, int, int, int]
_ROUNDING = 1e-12


def check_tables(latencies: Sequence[LatencyTable], importance: ImportanceTable) -> None:
    """Refuse tables that do not belong together, and importance tables with gaps.

    Raises:
        ProvenanceMismatchError: different networks or input shapes.
        MissingEntryError: a segment of the latency table without importance that is not left out on purpose.
        TableError: an importance for a segment outside all chains.
    """
    latency = latencies[0]
    for other in latencies[1:]:
        check_same_source(
            latency.provenance,
            other.provenance,
            (latency.source, other.source),
            ignore=("device", "dtype", "backend", "batch"),
        )
        check_precisions(latency, other)
    check_entries(latencies)
    check_coverage(latency, importance)


def check_precisions(latency: LatencyTable, other: LatencyTable) -> None:
    """Refuse an int8 table beside one in floating point of the same device: a network runs there in one precision.

    Raises:
        ProvenanceMismatchError: names both tables.
    """
    ours, theirs = latency.provenance, other.provenance
    known = {ours.dtype, theirs.dtype} - {""}
    if len(known) > 1 and "int8" in known and (ours.device, ours.backend) == (theirs.device, theirs.backend):
        raise ProvenanceMismatchError(
            f"{latency.source} and {other.source}: dtype differs ({ours.dtype} and {theirs.dtype}) on one device; "
            "a network runs there in one precision, give the table of that one"
        )


def build_options(
    latencies: Sequence[LatencyTable],
    importances: dict[Key, float],
    limits: Limits,
    columns: CostColumns,
    changed: Sequence[tuple[ImportanceEntry, float]] = (),
    *,
    empty_slots: Container[int],
) -> list[ChainOptions]:
    """Return the options of every chain.

    Args:
        importances: of stretches whose layers are the original's.
        empty_slots: where merging may stop without an activation.
        changed: rows in which a lever changes layers, with their importance.

    Raises:
        MissingEntryError: no options lead from a chain's start to its end.
    """
    latency = latencies[0]
    # In a table of optimal latencies, what is faster in parts is no conv of its own; its parts have entries too.
    allowed = [entry for entry in latency.entries if entry.breaks is None or len(entry.breaks) == 2]
    if limits.has_segment_rules:
        allowed = [entry for entry in allowed if limits.allows(entry, latency.source)]
    stops = None if limits.allow_bare_stops else empty_slots
    if stops is not None:
        allowed = [entry for chain in latency.chains for entry in _faster_than_parts(allowed, chain, columns)]
    changed_sums = ChangedSums(allowed, [entry for entry, _ in changed], columns, stops) if changed else None
    allowed = [entry for entry in allowed if entry.change is None]
    found = []
    for chain in latency.chains:
        extended = extended_importance(importances, chain)
        if columns.is_single:
            options = _single_cost_options(optimal_sums(allowed, chain, stops), extended, chain, limits)
        else:
            options = _vector_options(vector_sums(allowed, chain, columns, stops), extended, chain, limits, columns)
        if changed_sums is not None:
            options = _with_changed(options, changed_options(changed, chain, limits, changed_sums))
        found.append(options)
    return found


def _faster_than_parts(
    entries: Sequence[LatencyEntry], chain: tuple[int, int], columns: CostColumns
) -> list[LatencyEntry]:
    """Return the entries of one chain that gain something in at least one of the costs.

    Where the layers of a segment cost no more in parts, merging them gains nothing and removes activations; where they
    cost no more unchanged, changing some gains nothing. Such segments are no options, whatever is said of their
    importance.
    """
    inside = [entry for entry in entries if chain[0] <= entry.start and entry.end <= chain[1]]
    whole = [entry for entry in inside if entry.change is None]
    if not columns.is_single:
        fronts = vector_sums(whole, chain, columns, None)
        return [
            entry
            for entry in inside
            if not fronts.has_better(entry.start, entry.end, columns.of(entry), or_equal=entry.change is not None)
        ]
    sums = optimal_sums(whole, chain)
    best = sums.sums_ms[[each.start - chain[0] for each in inside], [each.end - chain[0] for each in inside]].tolist()
    return [
        entry
        for entry, least_ms in zip(inside, best, strict=True)
        if entry.latency_ms < least_ms or (entry.latency_ms == least_ms and entry.change is None)
    ]


def _with_changed(options: ChainOptions, changed: Sequence[ChangedOption]) -> ChainOptions:
    """Return both kinds of options of one chain together."""
    if not changed:
        return options
    count = len(options.importances)
    return chain_options(
        chain=options.chain,
        from_state=np.append(options.from_state, [each.from_state for each in changed]),
        to_state=np.append(options.to_state, [each.to_state for each in changed]),
        costs=np.concatenate((options.costs, [each.costs for each in changed])),
        importances=np.append(options.importances, [each.importance for each in changed]),
        plan_of=lambda index: options.plan_of(index) if index < count else changed[index - count].plan,
    )


def _single_cost_options(
    sums: OptimalSums, extended: ExtendedImportance, chain: tuple[int, int], limits: Limits
) -> ChainOptions:
    rows, columns, from_state, to_state, values = _candidates(extended, chain, limits)
    keep = np.isfinite(sums.sums_ms[rows, columns])
    # An importance extended over k without a merge across k is the same as two options that meet in (k, 0).
    last = extended.last[from_state % 2, to_state % 2, rows, columns]
    parted = np.flatnonzero(last >= 0)
    whole = sums.sums_ms[rows[parted], columns[parted]]
    parts = sums.sums_ms[rows[parted], last[parted]] + sums.sums_ms[last[parted], columns[parted]]
    keep[parted] &= whole < parts * (1.0 - _ROUNDING)
    rows, columns, from_state, to_state = (each[keep] for each in (rows, columns, from_state, to_state))
    return chain_options(
        chain=chain,
        from_state=from_state,
        to_state=to_state,
        costs=sums.sums_ms[rows, columns][:, None],
        importances=values[keep],
        plan_of=_plan_of(sums, rows, columns),
    )


def _plan_of(sums: OptimalSums, rows: Ints, columns: Ints) -> Callable[[int], StretchPlan]:
    return lambda index: StretchPlan(
        breaks=sums.breaks(int(rows[index]) + sums.start, int(columns[index]) + sums.start)
    )


def _vector_options(
    sums: VectorSums, extended: ExtendedImportance, chain: tuple[int, int], limits: Limits, columns: CostColumns
) -> ChainOptions:
    rows, ends, from_state, to_state, values = _candidates(extended, chain, limits)
    picked: list[int] = []
    costs: list[tuple[float, ...]] = []
    plans: list[tuple[int, ...]] = []
    for index, (row, end, start, stop) in enumerate(
        zip(rows.tolist(), ends.tolist(), from_state.tolist(), to_state.tolist(), strict=True)
    ):
        last = int(extended.last[start % 2, stop % 2, row, end])
        for cost, breaks in sums.ways(row, end):
            if last < 0 or last + chain[0] not in breaks:
                picked.append(index)
                costs.append(cost)
                plans.append(breaks)
    return chain_options(
        chain=chain,
        from_state=from_state[picked],
        to_state=to_state[picked],
        costs=np.array(costs, dtype=float).reshape(len(picked), columns.count),
        importances=values[picked],
        plan_of=lambda index: StretchPlan(breaks=plans[index]),
    )


def _candidates(
    extended: ExtendedImportance, chain: tuple[int, int], limits: Limits
) -> tuple[Ints, Ints, Ints, Ints, Floats]:
    """Return (rows, columns, from states, to states, importances) of every extended importance that limits allow."""
    kept = np.array([position in limits.keep_activations for position in range(chain[0], chain[1] + 1)])
    dropped = np.array([position in limits.drop_activations for position in range(chain[0], chain[1] + 1)])
    before = np.concatenate(([0], np.cumsum(kept)))
    start_acts, end_acts, rows, columns = np.nonzero(extended.values > -np.inf)
    # No option may run over a kept activation, stop at one without it, or stop at a dropped one with it.
    fine = before[columns] == before[rows + 1]
    fine &= np.where(end_acts == 0, ~kept[columns], ~dropped[columns])
    fine &= np.where(rows == 0, start_acts == 1, np.where(start_acts == 0, ~kept[rows], ~dropped[rows]))
    start_acts, end_acts, rows, columns = start_acts[fine], end_acts[fine], rows[fine], columns[fine]
    values = extended.values[start_acts, end_acts, rows, columns]
    return rows, columns, 2 * rows + start_acts, 2 * columns + end_acts, values
