"""Options in which a lever changes layers: what they cost, merged whole or in parts.

Where no layer is changed, the importance of a stretch does not depend on where merging stops inside it, so stage 1 may
choose that by latency alone. With changes the same holds once it is settled which layers they are: an importance row
says which, and its cost is the least sum over break points of entries that change just these layers between their ends.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from layerfold.solver._limits import Limits
from layerfold.solver._pareto import pareto_indices
from layerfold.solver._vector_costs import CostColumns
from layerfold.solver.options import StretchPlan
from layerfold.tables import ImportanceEntry, LatencyEntry
from layerfold.tables.importance import Key
from layerfold.tables.kernel import SegmentKey
from layerfold.tables.levers import Change


@dataclass(frozen=True, kw_only=True)
class ChangedOption:
    """One way to realise a stretch with some of its layers changed.

    Attributes:
        from_state, to_state: numbers as of :class:`layerfold.solver.options.ChainOptions`.
        costs: one a column.
        importance: in points.
        plan: its breaks, what is changed, and what each part merges into.
    """

    from_state: int
    to_state: int
    costs: tuple[float, ...]
    importance: float
    plan: StretchPlan


class ChangedSums:
    """Least costs of stretches whose changed layers are given.

    Args:
        entries: what may be used, of every chain.
        importances: rows with changes: they say which layers a merged kernel stands for.
        columns: the costs.
        stops: as in :func:`layerfold.solver.stage1.optimal_sums`.
    """

    def __init__(
        self,
        entries: Sequence[LatencyEntry],
        importances: Sequence[ImportanceEntry],
        columns: CostColumns,
        stops: Container[int] | None,
    ) -> None:
        self._stops = stops
        self._entries = {entry.key: entry for entry in entries}
        self._columns = columns
        self._costs: dict[SegmentKey, tuple[float, ...]] = {}
        self._kernels: dict[tuple[int, int, Change], str] = {}
        said: list[LatencyEntry | ImportanceEntry] = [*entries, *importances]
        for each in said:
            if each.change is not None and each.change.layers:
                self._kernels[each.start, each.end, each.change] = each.merged
        self._starts: dict[int, set[int]] = {}
        for entry in entries:
            self._starts.setdefault(entry.end, set()).add(entry.start)
        self._known: dict[tuple[int, int, Change, str], list[tuple[tuple[float, ...], list[SegmentKey]]]] = {}

    def ways(
        self, start: int, end: int, change: Change, merged: str
    ) -> list[tuple[tuple[float, ...], list[SegmentKey]]]:
        """Return the non-dominated (costs, keys of the parts) of a stretch with these layers changed.

        Args:
            merged: the kernel that the whole stretch merges into.
        """
        known = self._known.get((start, end, change, merged))
        if known is None:
            known = self._known[start, end, change, merged] = self._ways(start, end, change, merged)
        return known

    def _ways(
        self, start: int, end: int, change: Change, merged: str
    ) -> list[tuple[tuple[float, ...], list[SegmentKey]]]:
        nothing: tuple[float, ...] = (0.0,) * self._columns.count
        best: dict[int, list[tuple[tuple[float, ...], list[SegmentKey]]]] = {start: [(nothing, [])]}
        for here in range(start + 1, end + 1):
            met = []
            for before in sorted(position for position in self._starts.get(here, ()) if position in best):
                if not (before == start or self._stops is None or before in self._stops):
                    continue
                key = (start, end, merged) if (before, here) == (start, end) else self._key(before, here, change)
                if key in self._entries:
                    costs = self._costs_of(key)
                    met += [
                        (tuple(a + b for a, b in zip(so_far, costs, strict=True)), [*parts, key])
                        for so_far, parts in best[before]
                    ]
            if met:
                best[here] = _undominated(met)
        return best.get(end, [])

    def _key(self, start: int, end: int, change: Change) -> SegmentKey:
        part = change.within(start, end)
        return (start, end) if part is None else (start, end, self._kernels.get((start, end, part), ""))

    def _costs_of(self, key: SegmentKey) -> tuple[float, ...]:
        if key not in self._costs:
            self._costs[key] = self._columns.of(self._entries[key])
        return self._costs[key]


def changed_options(
    importances: Sequence[tuple[ImportanceEntry, float]], chain: tuple[int, int], limits: Limits, sums: ChangedSums
) -> list[ChangedOption]:
    """Return the options of one chain in which layers are changed.

    Args:
        importances: rows with changes, each with its normalised importance; those outside the chain are passed over.
        chain: (start, end).
        limits: decisions that are fixed beforehand.
        sums: what stretches cost.
    """
    found = []
    for entry, importance in importances:
        if not (chain[0] <= entry.start and entry.end <= chain[1]) or not _is_allowed(entry, chain, limits):
            continue
        change = entry.change
        assert change is not None
        for costs, keys in sums.ways(entry.start, entry.end, change, entry.merged):
            found.append(
                ChangedOption(
                    from_state=2 * (entry.start - chain[0]) + entry.start_act,
                    to_state=2 * (entry.end - chain[0]) + entry.end_act,
                    costs=costs,
                    importance=importance,
                    plan=StretchPlan(
                        breaks=(entry.start, *(key[1] for key in keys)),
                        change=change,
                        kernels=tuple(key[2] if len(key) > 2 else "" for key in keys),
                    ),
                )
            )
    return found


def split_importances(
    importances: Mapping[Key, float], entries: Sequence[ImportanceEntry]
) -> tuple[dict[tuple[int, int, int, int], float], list[tuple[ImportanceEntry, float]]]:
    """Return normalised importances of whole stretches by (start, end, start_act, end_act), and rows with changes."""
    whole: dict[tuple[int, int, int, int], float] = {}
    changed = []
    for entry in entries:
        if entry.change is None:
            whole[entry.start, entry.end, entry.start_act, entry.end_act] = importances[entry.key]
        else:
            changed.append((entry, importances[entry.key]))
    return whole, changed


def _is_allowed(entry: ImportanceEntry, chain: tuple[int, int], limits: Limits) -> bool:
    """Say whether no fixed decision forbids a row: the rules are those of stretches without changes."""
    if any(entry.start < position < entry.end for position in limits.keep_activations):
        return False
    states = [(entry.end, entry.end_act)]
    if entry.start > chain[0]:
        states.append((entry.start, entry.start_act))
    elif entry.start_act == 0:
        return False
    return not any(
        position in (limits.drop_activations if state else limits.keep_activations) for position, state in states
    )


def _undominated(
    met: list[tuple[tuple[float, ...], list[SegmentKey]]],
) -> list[tuple[tuple[float, ...], list[SegmentKey]]]:
    if len(met) == 1:
        return met
    if len(met[0][0]) == 1:
        # As in stage 1: of equally fast ways the one whose last break is nearest to the start.
        return [min(met, key=lambda way: way[0])]
    kept = pareto_indices(np.array([costs for costs, _ in met]), np.zeros(len(met)))
    return [met[index] for index in kept.tolist()]
