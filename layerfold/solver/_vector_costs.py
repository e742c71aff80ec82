"""Several costs at once: which columns a problem has, and stage 1 for all of them together."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from layerfold.errors import TableError
from layerfold.solver._limits import Limits
from layerfold.solver._pareto import pareto_indices
from layerfold.tables import LatencyEntry, LatencyTable
from layerfold.tables.kernel import IDENTITY
from layerfold.tables.signature import conv_sizes

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CostColumns:
    """The columns of a problem's costs.

    First one latency sum per device; with ``risk``, then one variance sum per device; then one column per cap.

    Attributes:
        tables: the devices' latency tables, of the same segments.
        has_risk: whether variances are carried.
        caps: name of a capped size (``params``, ``macs``, ``merged``) and its limit.
    """

    tables: tuple[LatencyTable, ...]
    has_risk: bool
    caps: tuple[tuple[str, float], ...]

    @property
    def num_devices(self) -> int:
        return len(self.tables)

    @property
    def count(self) -> int:
        return self.num_devices * (2 if self.has_risk else 1) + len(self.caps)

    @property
    def is_single(self) -> bool:
        return self.count == 1

    def of(self, entry: LatencyEntry) -> tuple[float, ...]:
        """Return the costs of one entry's segment on every device."""
        alike = [table.at(entry.key) for table in self.tables]
        costs = [each.latency_ms for each in alike]
        if self.has_risk:
            costs += [each.spread_ms**2 for each in alike]
        return (*costs, *(_size(name, entry, self.tables[0].source) for name, _ in self.caps))


def cost_columns(tables: Sequence[LatencyTable], limits: Limits, *, has_risk: bool) -> CostColumns:
    """Return the columns that a problem needs."""
    caps = [("params", limits.max_params), ("macs", limits.max_macs), ("merged", limits.max_merged)]
    return CostColumns(
        tables=tuple(tables),
        has_risk=has_risk,
        caps=tuple((name, float(most)) for name, most in caps if most is not None),
    )


def _size(name: str, entry: LatencyEntry, source: str) -> float:
    if name == "merged":
        return float(entry.end > entry.start + 1 and entry.merged != IDENTITY)
    if entry.merged == IDENTITY:
        return 0.0
    value = entry.params if name == "params" else entry.macs
    if value is None and entry.signature:
        sizes = conv_sizes(entry.signature)
        value = sizes.params if name == "params" else sizes.macs
    if value is None:
        raise TableError(
            f"{source}: segment ({entry.start},{entry.end}) has neither a column {name!r} nor a signature that tells, "
            f"so max_{name} cannot be checked; profile the network with layerfold"
        )
    return float(value)


class VectorSums:
    """Non-dominated cost vectors, with their breaks, of every stretch without activation of one chain."""

    def __init__(self, start: int, fronts: dict[tuple[int, int], tuple[Floats, list[tuple[int, ...]]]]) -> None:
        self._start = start
        self._fronts = fronts

    def ways(self, row: int, column: int) -> Iterator[tuple[tuple[float, ...], tuple[int, ...]]]:
        """Yield (costs, breaks) from position start + row to start + column."""
        front = self._fronts.get((row + self._start, column + self._start))
        if front is not None:
            for costs, breaks in zip(front[0].tolist(), front[1], strict=True):
                yield tuple(costs), breaks

    def has_better(self, start: int, end: int, costs: tuple[float, ...], *, or_equal: bool) -> bool:
        """Say whether some way from one position to another costs no more in any column, and less in one.

        Args:
            or_equal: count what costs the same as well.
        """
        front = self._fronts.get((start, end))
        if front is None:
            return False
        no_more = (front[0] <= costs).all(axis=1)
        return bool((no_more if or_equal else no_more & (front[0] < costs).any(axis=1)).any())


def vector_sums(
    entries: Sequence[LatencyEntry], chain: tuple[int, int], columns: CostColumns, stops: Container[int] | None
) -> VectorSums:
    """Compute stage 1 for several costs: every non-dominated sum over break points, for all i < j of a chain.

    Args:
        stops: as in :func:`layerfold.solver.stage1.optimal_sums`.
    """
    inside = sorted(
        (each for each in entries if chain[0] <= each.start and each.end <= chain[1]),
        key=lambda each: (each.end, each.start),
    )
    costs = {(each.start, each.end): np.array(columns.of(each)) for each in inside}
    into: dict[int, list[int]] = {}
    for each in inside:
        into.setdefault(each.end, []).append(each.start)
    fronts: dict[tuple[int, int], tuple[Floats, list[tuple[int, ...]]]] = {}
    for start in range(chain[0], chain[1]):
        fronts[start, start] = (np.zeros((1, columns.count)), [(start,)])
        for end in range(start + 1, chain[1] + 1):
            sums, breaks = [], []
            for before in into.get(end, ()):
                front = fronts.get((start, before))
                may_stop = before == start or stops is None or before in stops
                if before >= start and front is not None and may_stop:
                    sums.append(front[0] + costs[before, end])
                    breaks += [(*way, end) for way in front[1]]
            if sums:
                stacked = np.concatenate(sums)
                kept = pareto_indices(stacked, np.zeros(len(stacked))) if len(stacked) > 1 else np.array([0])
                fronts[start, end] = (stacked[kept], [breaks[index] for index in kept.tolist()])
    return VectorSums(chain[0], fronts)
