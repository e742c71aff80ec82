"""Importances made comparable (alpha) and extended over inner positions without activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from layerfold.arguments import checked, number, shown
from layerfold.errors import UsageError
from layerfold.options.solve import Normalise
from layerfold.solver._changed_options import split_importances
from layerfold.tables import ImportanceEntry, ImportanceTable
from layerfold.tables.fields import check_chain
from layerfold.tables.importance import Key

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ExtendedImportance:
    """I_ext of one chain.

    Attributes:
        start: the chain's start; row and column r stand for position start + r.
        values: values[a, b, i, j] = I_ext(start + i, start + j, a, b); minus infinity where there is none.
        last: last[a, b, i, j] = row of the last inner position without activation, or -1 where the segment's own
            importance is the best.
    """

    start: int
    values: Floats
    last: NDArray[np.int32]

    def between(self, start: int, end: int, start_act: int, end_act: int) -> float:
        """Return I_ext(start, end, start_act, end_act); minus infinity where there is none."""
        return float(self.values[start_act, end_act, start - self.start, end - self.start])

    def breaks(self, start: int, end: int, start_act: int, end_act: int) -> tuple[int, ...]:
        """Return start, the inner positions without activation over which the importance was extended, and end."""
        row, position, state = start - self.start, end - self.start, end_act
        found = [end]
        while (before := int(self.last[start_act, state, row, position])) >= 0:
            found.append(before + self.start)
            position, state = before, 0
        return (start, *reversed(found))


def extended_importance(
    importances: dict[tuple[int, int, int, int], float], chain: tuple[int, int]
) -> ExtendedImportance:
    """Compute I_ext(i, j, a, b) = max(I(i, j, a, b), max over k of I_ext(i, k, a, 0) + I(k, j, 0, b)).

    On ties the segment's own importance wins, then the break nearest to the start.

    Args:
        importances: (start, end, start_act, end_act) to importance; those outside the chain are passed over.
        chain: (start, end).

    Paper: appendix B.
    """
    chain_start, chain_end = chain
    size = chain_end - chain_start + 1
    # [start_act, end_act, start, end]; I_ext(., j) is final before any I_ext(., later) reads it.
    values = np.full((2, 2, size, size), -math.inf)
    last = np.full((2, 2, size, size), -1, dtype=np.int32)
    breaks: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for (start, end, start_act, end_act), importance in importances.items():
        if chain_start <= start and end <= chain_end:
            values[start_act, end_act, start - chain_start, end - chain_start] = importance
            if start_act == 0 and start > chain_start:
                breaks.setdefault((end - chain_start, end_act), []).append((start - chain_start, importance))
    for here, end_act in sorted(breaks):
        alike = sorted(breaks[here, end_act])
        before = np.array([row for row, _ in alike])
        # [start_act, rows, breaks]; the first of equal ones is the break nearest to the start.
        ways = values[:, 0, :here, before].transpose(1, 2, 0) + np.array([gain for _, gain in alike])
        best = ways.argmax(axis=2)
        way = ways.max(axis=2)
        target = values[:, end_act, :here, here]
        better = way > target
        target[better] = way[better]
        last[:, end_act, :here, here][better] = before[best[better]]
    return ExtendedImportance(start=chain_start, values=values, last=last)


def normalised_importances(importance: ImportanceTable, alpha: float, normalise: Normalise) -> dict[Key, float]:
    """Return importance less ``alpha`` times a mean importance, by the entries' keys.

    A network of many small segments sums many small losses. Taking ``alpha`` times the mean (mostly below 0) from
    every term counters that bias.

    Args:
        alpha: at least 0; 0 changes nothing.
        normalise: over which entries the mean goes: ``single``: single-layer segments; ``default``: those with the
            original's activations at both ends (a slot that appears without one was empty); ``all``: every entry.
            Entries in which layers are changed do not count.

    Raises:
        UsageError: alpha not a number from 0 to 1e6, an unknown ``normalise``, or no entry to take the mean over.
    """
    if not 0.0 <= number("alpha", alpha) <= 1e6:
        raise UsageError(f"alpha={shown(alpha)}: expected a number from 0 to 1e6, for example 1.0")
    if not isinstance(normalise, str) or normalise not in get_args(Normalise):
        raise UsageError(f"normalise={shown(normalise)}: expected {', '.join(get_args(Normalise))}")
    shift = 0.0
    if alpha:
        counts = _counts(importance, normalise)
        over = [entry.importance for entry in importance.entries if entry.change is None and counts(entry)]
        if not over:
            raise UsageError(
                f"normalise={normalise!r}: {importance.source} has no such entry to take the mean over; "
                "use normalise='all' or alpha=0"
            )
        shift = alpha * math.fsum(over) / len(over)
    return {key: entry.importance - shift for key, entry in importance.by_key.items()}


@checked
def extend_importance(
    importance: ImportanceTable, alpha: float = 0.0, normalise: Normalise = "single"
) -> ImportanceTable:
    """Return I_ext: of every segment in the table, each (start_act, end_act) with an importance, its own or extended.

    A stretch that is no segment of the table has no row, as in published files: its importance is the sum of two rows
    that meet in a slot without activation, and the solver puts those together. Entries in which layers are changed are
    not extended, and left out.

    Args:
        importance: measured importances; the chains are those of its provenance, else one chain over all.
        alpha, normalise: as in ``normalised_importances``; normalised first, then extended.

    Returns:
        a table whose entries carry ``breaks``: start, the inner positions without activation, end.

    Example:
        >>> extended = lf.extend_importance(importance)
        >>> extended.entry(0, 3).importance, extended.entry(0, 3).breaks
        (-4.0, (0, 3))
    """
    importances, _ = split_importances(normalised_importances(importance, alpha, normalise), importance.entries)
    chains = importance.provenance.chains or (
        (min(entry.start for entry in importance.entries), max(entry.end for entry in importance.entries)),
    )
    entries = []
    for chain in chains:
        check_chain(chain, importance.source)
        extended = extended_importance(importances, chain)
        finite = [
            (int(row) + chain[0], int(column) + chain[0], start_act, end_act)
            for start_act in (0, 1)
            for end_act in (0, 1)
            for row, column in zip(*np.nonzero(extended.values[start_act, end_act] > -math.inf), strict=True)
            if (int(row) + chain[0], int(column) + chain[0]) in importance.segments
        ]
        for start, end, start_act, end_act in sorted(finite):
            value = extended.values[start_act, end_act, start - chain[0], end - chain[0]]
            entries.append(
                ImportanceEntry(
                    start=start,
                    end=end,
                    start_act=start_act,
                    end_act=end_act,
                    importance=float(value),
                    breaks=extended.breaks(start, end, start_act, end_act),
                )
            )
    return ImportanceTable(
        entries,
        provenance=replace(importance.provenance, kind="extended-importance"),
        source=f"{importance.source} (extended)",
    )


def _counts(importance: ImportanceTable, normalise: Normalise) -> Callable[[ImportanceEntry], bool]:
    """Return which entries the mean goes over."""
    empty = {entry.start for entry in importance.entries if entry.start_act == 0}
    empty_ends = empty | {entry.end for entry in importance.entries if entry.end_act == 0}
    chosen: dict[str, Callable[[ImportanceEntry], bool]] = {
        "single": lambda entry: entry.end == entry.start + 1,
        # A chain's start has an activation whatever the slot that ends the chain before it holds.
        "default": lambda entry: (
            (entry.start_act == 0) == (entry.start in empty) and (entry.end_act == 0) == (entry.end in empty_ends)
        ),
        "all": lambda entry: True,
    }
    return chosen[normalise]
