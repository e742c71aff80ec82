"""The importance of a given solution: what a solver would sum for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from layerfold.errors import MissingEntryError
from layerfold.solver._drop_options import split_importances
from layerfold.solver._extension import ExtendedImportance, extended_importance, normalised_importances
from layerfold.solver._solution import Solution
from layerfold.tables import ImportanceEntry, ImportanceTable


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
    whole, drops = split_importances(normalised_importances(importance, 0.0, "single"), importance.entries)
    sums = []
    for start, end in chains:
        extended = extended_importance(whole, (start, end))
        stops = [start, *(position for position in solution.act_pos if start < position < end), end]
        for first, last in pairwise(stops):
            state = int(last < end or end in end_acts)
            value = _through(solution, extended, drops, (first, last), state)
            if not math.isfinite(value):
                raise MissingEntryError(
                    f"{importance.source}: nothing leads from position {first} to {last} without an activation "
                    "between; estimate the importance of those segments"
                )
            sums.append(value)
    return math.fsum(sums)


def _through(
    solution: Solution, extended: ExtendedImportance, drops: Sequence[tuple[ImportanceEntry, float]],
    stretch: tuple[int, int], end_act: int,
) -> float:
    """Return the greatest sum of rows that lead through a stretch between activations; minus infinity where none does.

    Rows in which layers are dropped count where they drop just what the solution drops between their ends, which are
    positions where merging stops.
    """
    first, last = stretch
    kept = None if solution.kept_layers is None else set(solution.kept_layers)
    gone = set() if kept is None else {index for index in range(first + 1, last + 1) if index not in kept}
    stops = [first, *(stop for stop in solution.merge_pos if gone and first < stop < last), last]
    best = {first: 0.0}
    for here in stops[1:]:
        state = end_act if here == last else 0
        ways = [
            best[before] + float(extended.values[int(before == first), state, before - extended.start,
                                                 here - extended.start])
            for before in stops if before < here and gone.isdisjoint(range(before + 1, here + 1))
        ]  # fmt: skip
        ways += [
            best[entry.start] + value for entry, value in drops
            if (entry.end, entry.end_act) == (here, state) and entry.start in best
            and entry.start_act == int(entry.start == first)
            and set(entry.dropped) == gone.intersection(range(entry.start + 1, here + 1))
        ]  # fmt: skip
        best[here] = max(ways, default=-math.inf)
    return best[last]
