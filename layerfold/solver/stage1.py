"""Stage 1: the least latency of every stretch of layers in which no activation is left.

Inside such a stretch merging may stop. The published algorithm stops wherever that is fastest; so it removes
activations between two convs that stay two convs, which gains no time. Here an activation whose removal frees no merge
stays: inside a stretch, merging stops only in slots that may be empty (:attr:`ImportanceTable.empty_slots`). The same
convs with the activation kept are another choice, made of two stretches.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from layerfold.arguments import checked
from layerfold.tables import LatencyEntry, LatencyTable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class OptimalSums:
    """Least sums of entries inside one chain.

    Attributes:
        start: the chain's start; row and column r stand for position start + r.
        sums_ms: sums_ms[i, j] = T_opt(start + i, start + j); infinite where nothing leads from i to j.
        ends, rows, latencies_ms: [entries] the entries, by rising end, then start: their rows, and their latencies. The
            last break before a position is worked out from these when somebody asks, which is for a few pairs only.
        may_stop: [rows] whether merging may stop there inside a stretch.
    """

    start: int
    sums_ms: Floats
    ends: Ints
    rows: Ints
    latencies_ms: Floats
    may_stop: NDArray[np.bool_]

    def breaks(self, start: int, end: int) -> tuple[int, ...]:
        """Return the positions, ``start`` and ``end`` included, where merging stops on the best way."""
        row, position = start - self.start, end - self.start
        found = [end]
        while position > row:
            here = slice(*self.ends.searchsorted((position, position + 1)))
            before = self.rows[here]
            # Sums as in :func:`optimal_sums`; of equal ones the entry that starts nearest to the chain's start.
            ways = self.sums_ms[row].take(before) + self.latencies_ms[here]
            ways[~self.may_stop.take(before) & (before != row)] = math.inf
            position = int(before[ways.argmin()])
            found.append(position + self.start)
        return tuple(reversed(found))


def optimal_sums(
    entries: list[LatencyEntry], chain: tuple[int, int], stops: Container[int] | None = None
) -> OptimalSums:
    """Compute T_opt(i, j) = min(T(i, j), min over k of T_opt(i, k) + T(k, j)) for all i < j of one chain.

    Where two ways are equally fast, the one whose last break is nearer to the start is taken, so that merging
    whole wins over merging in parts.

    Args:
        entries: the latency entries; those outside the chain are passed over.
        chain: (start, end).
        stops: the positions k; None for all, as published.

    Paper: section 4.1.
    """
    chain_start, chain_end = chain
    size = chain_end - chain_start + 1
    inside = sorted(
        [
            (entry.end - chain_start, entry.start - chain_start, entry.latency_ms)
            for entry in entries
            if chain_start <= entry.start and entry.end <= chain_end
        ]
    )
    ends, rows = (np.array([each[column] for each in inside], dtype=np.int64) for column in (0, 1))
    latencies_ms = np.array([each[2] for each in inside])
    # [end, start] while they are filled: what is read and written together lies together.
    sums = np.full((size, size), math.inf)
    sums.ravel()[:: size + 1] = 0.0
    sums[ends, rows] = latencies_ms
    may_stop = np.ones(size, dtype=bool)
    last_ends, lasts, lasts_ms = ends, rows, latencies_ms
    if stops is not None:
        may_stop[:] = [position in stops for position in range(chain_start, chain_end + 1)]
        after_stop = may_stop[rows]
        last_ends, lasts, lasts_ms = ends[after_stop], rows[after_stop], latencies_ms[after_stop]
    edges = [0, *((last_ends[1:] != last_ends[:-1]).nonzero()[0] + 1).tolist(), len(last_ends)]
    for first, stop in itertools.pairwise(edges) if len(last_ends) else ():
        here = int(last_ends[first])
        ways = sums.take(lasts[first:stop], axis=0)[:, :here]
        ways += lasts_ms[first:stop, None]
        known = sums[here, :here]
        np.minimum(np.minimum.reduce(ways, axis=0), known, out=known)
    return OptimalSums(
        start=chain_start, sums_ms=sums.T, ends=ends, rows=rows, latencies_ms=latencies_ms, may_stop=may_stop
    )


@checked
def compute_optimal_latency(latency: LatencyTable) -> LatencyTable:
    """Return T_opt for the segments of ``latency``: each entry's best latency, merged whole or in parts.

    Entries in which layers are changed are left out: what they stand for depends on the importances.

    The spread of an entry is the sum of the spreads of its parts, as in the published files.

    Returns:
        a table of the same segments whose entries carry ``breaks``.

    Example:
        >>> best = lf.compute_optimal_latency(latency)
        >>> best.entry(0, 3).latency_ms, best.entry(0, 3).breaks
        (1.6, (0, 3))
    """
    entries = [entry for entry in latency.entries if entry.change is None]
    found: dict[tuple[int, int], LatencyEntry] = {}
    for chain in latency.chains:
        best = optimal_sums(entries, chain)
        for entry in entries:
            if not (chain[0] <= entry.start and entry.end <= chain[1]):
                continue
            breaks = best.breaks(entry.start, entry.end)
            parts = [latency.entry(start, end) for start, end in itertools.pairwise(breaks)]
            found[entry.start, entry.end] = replace(
                entry,
                latency_ms=float(best.sums_ms[entry.start - chain[0], entry.end - chain[0]]),
                spread_ms=math.fsum(part.spread_ms for part in parts),
                breaks=breaks,
            )
    return LatencyTable(
        [found[entry.start, entry.end] for entry in entries],
        provenance=replace(latency.provenance, kind="optimal-latency"),
        source=f"{latency.source} (optimal)",
    )
