"""The importance of a given solution: what a solver would sum for it."""

from __future__ import annotations

import math
from itertools import pairwise

from layerfold.errors import MissingEntryError
from layerfold.solver._extension import extended_importance, normalised_importances
from layerfold.solver._solution import Solution
from layerfold.tables import ImportanceTable


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
    importances = normalised_importances(importance, 0.0, "single")
    sums = []
    for start, end in chains:
        extended = extended_importance(importances, (start, end))
        stops = [start, *(position for position in solution.act_pos if start < position < end), end]
        for first, last in pairwise(stops):
            state = int(last < end or end in end_acts)
            value = float(extended.values[1, state, first - start, last - start])
            if not math.isfinite(value):
                raise MissingEntryError(
                    f"{importance.source}: nothing leads from position {first} to {last} without an activation "
                    "between; estimate the importance of those segments"
                )
            sums.append(value)
    return math.fsum(sums)
