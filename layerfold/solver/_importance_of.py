"""The importance of a given solution: what a solver would sum for it, and from which entries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from layerfold.errors import MissingEntryError
from layerfold.solver._changed_options import split_importances
from layerfold.solver._solution import Solution
from layerfold.solver.extension import ExtendedImportance, extended_importance, normalised_importances
from layerfold.tables import ImportanceEntry, ImportanceTable
from layerfold.tables.importance import Key
from layerfold.tables.levers import changes_within


def importance_of(
    solution: Solution, importance: ImportanceTable, chains: tuple[tuple[int, int], ...], end_acts: frozenset[int]
) -> float:
    """Return the sum of extended importances between the activations of a solution, in points.

    A solution that was solved with this very table keeps the sum that it was solved for.

    Args:
        solution: A and S.
        importance: the table.
        chains: (start, end) of each chain.
        end_acts: chain ends with an activation, whatever the solution says of them.

    Raises:
        MissingEntryError: the table has no way through a stretch between two activations.
    """
    if solution.importance is not None and solution.table_hashes.get("importance") == importance.hash:
        return solution.importance
    return math.fsum(way.importance for way in _ways(solution, importance, chains, end_acts))


def entries_behind(
    solution: Solution, importance: ImportanceTable, chains: tuple[tuple[int, int], ...], end_acts: frozenset[int]
) -> tuple[ImportanceEntry, ...]:
    """Return the entries whose importances a solution's is the sum of, by position; see :func:`importance_of`."""
    return tuple(importance.by_key[key] for way in _ways(solution, importance, chains, end_acts) for key in way.keys)


@dataclass(frozen=True)
class _Way:
    """The best sum over rows that lead through a stretch, and those rows."""

    importance: float
    keys: tuple[Key, ...]

    def through(self, importance: float, *keys: Key) -> _Way:
        return _Way(self.importance + importance, (*self.keys, *keys))


def _ways(
    solution: Solution, importance: ImportanceTable, chains: tuple[tuple[int, int], ...], end_acts: frozenset[int]
) -> Iterator[_Way]:
    """Yield the way through each stretch between two activations (or a chain's ends)."""
    whole, changed = split_importances(normalised_importances(importance, 0.0, "single"), importance.entries)
    for start, end in chains:
        extended = extended_importance(whole, (start, end))
        stops = [start, *(position for position in solution.act_pos if start < position < end), end]
        for first, last in pairwise(stops):
            found = _through(solution, extended, changed, (first, last), int(last < end or end in end_acts))
            if found is None:
                raise MissingEntryError(
                    f"{importance.source}: nothing leads from position {first} to {last} without an activation "
                    "between; estimate the importance of those segments"
                )
            yield found


def _through(
    solution: Solution,
    extended: ExtendedImportance,
    changed: Sequence[tuple[ImportanceEntry, float]],
    stretch: tuple[int, int],
    end_act: int,
) -> _Way | None:
    """Return the best way through a stretch between activations; None where there is none.

    Rows in which layers are changed count where they change just what the solution changes between their ends, which
    are positions where merging stops.
    """
    first, last = stretch
    changes = solution.changes_within(first, last)
    stops = [first, *(stop for stop in solution.merge_pos if changes and first < stop < last), last]
    best = {first: _Way(0.0, ())}
    for here in stops[1:]:
        state = end_act if here == last else 0
        ways = [
            best[before].through(value, *_rows_of(extended, before, here, int(before == first), state))
            for before in stops
            if before in best
            and before < here
            and not changes_within(changes, before, here)
            and (value := extended.between(before, here, int(before == first), state)) > -math.inf
        ]
        ways += [
            best[entry.start].through(value, entry.key)
            for entry, value in changed
            if (entry.end, entry.end_act) == (here, state)
            and entry.start in best
            and entry.start_act == int(entry.start == first)
            and [entry.change] == changes_within(changes, entry.start, here)
        ]
        if ways:
            best[here] = max(ways, key=lambda way: way.importance)
    return best.get(last)


def _rows_of(extended: ExtendedImportance, start: int, end: int, start_act: int, end_act: int) -> list[Key]:
    """Return the rows that an extended importance is the sum of."""
    breaks = extended.breaks(start, end, start_act, end_act)
    return [
        (here, there, start_act if here == start else 0, end_act if there == end else 0)
        for here, there in pairwise(breaks)
    ]
