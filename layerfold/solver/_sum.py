"""Adding frontiers: independent chains are chosen for together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from layerfold.solver._pareto import TooManyLabels, pareto_indices
from layerfold.solver.labels import ChainFrontier

Floats = NDArray[np.float64]
_BLOCK = 2_000_000
"""Pairs looked at in one go: bounds the memory of a sum to some 100 MiB."""


@dataclass(frozen=True, kw_only=True)
class SummedFrontier:
    """Non-dominated sums of one point of each chain, by rising first cost.

    Attributes:
        chains: the summands.
        costs: [points, columns].
        importances: [points].
        choice: [points, chains]: which point of each chain.
    """

    chains: tuple[ChainFrontier, ...]
    costs: Floats
    importances: Floats
    choice: NDArray[np.int64]


def sum_frontiers(
    chains: list[ChainFrontier],
    *,
    caps: Floats | None = None,
    slack: float = 0.0,
    max_labels: int | None = None,
    room: int | None = None,
) -> SummedFrontier:
    """Add frontiers pairwise, smallest first; exact, since a dominated summand never makes a better sum.

    Args:
        chains: at least one.
        caps: [columns] upper limits of the whole sum; None for no limit.
        slack: points of importance that may be lost at each addition.
        max_labels: most points of a sum.
        room: where a sum of one cost has more points, so many are kept, spread along it.

    Raises:
        TooManyLabels: a sum has more than ``max_labels`` points.
    """
    parts = [
        SummedFrontier(
            chains=(each,),
            costs=each.costs,
            importances=each.importances,
            choice=np.arange(len(each.importances))[:, None],
        )
        for each in chains
    ]
    if len(parts) == 1:
        return parts[0]
    order = sorted(range(len(parts)), key=lambda index: len(parts[index].importances))
    least_left = np.array([parts[index].costs.min(axis=0) for index in order])
    rest = [least_left[step + 1 :].sum(axis=0) for step in range(len(order))]
    total = reduce(
        lambda left, step: _limited(
            _add(left, parts[order[step]], None if caps is None else caps - rest[step], slack), max_labels, room
        ),
        range(1, len(order)),
        parts[order[0]],
    )
    back = np.argsort(order)
    return SummedFrontier(
        chains=tuple(chains), costs=total.costs, importances=total.importances, choice=total.choice[:, back]
    )


def _add(left: SummedFrontier, right: SummedFrontier, caps: Floats | None, slack: float) -> SummedFrontier:
    width = max(1, _BLOCK // max(1, len(right.importances)))
    costs = np.empty((0, left.costs.shape[1]))
    importances = np.empty(0)
    pairs = np.empty((0, 2), dtype=np.int64)
    for start in range(0, len(left.importances), width):
        stop = min(start + width, len(left.importances))
        rows = np.repeat(np.arange(start, stop), len(right.importances))
        columns = np.tile(np.arange(len(right.importances)), stop - start)
        costs = np.concatenate((costs, left.costs[rows] + right.costs[columns]))
        importances = np.concatenate((importances, left.importances[rows] + right.importances[columns]))
        pairs = np.concatenate((pairs, np.column_stack((rows, columns))))
        if caps is not None:
            fits = (costs <= caps).all(axis=1)
            costs, importances, pairs = costs[fits], importances[fits], pairs[fits]
        # Slack is lost once an addition: what several blocks drop is measured against the last.
        kept = pareto_indices(costs, importances, slack if stop == len(left.importances) else 0.0)
        costs, importances, pairs = costs[kept], importances[kept], pairs[kept]
    return SummedFrontier(
        chains=left.chains + right.chains,
        costs=costs,
        importances=importances,
        choice=np.concatenate((left.choice[pairs[:, 0]], right.choice[pairs[:, 1]]), axis=1),
    )


def _limited(summed: SummedFrontier, max_labels: int | None, room: int | None) -> SummedFrontier:
    size = len(summed.importances)
    if max_labels is not None and size > max_labels:
        raise TooManyLabels
    if room is None or size <= room:
        return summed
    # Both ends stay; between them the fastest point of each cell of the frontier's length.
    cost, importance = summed.costs[:, 0], summed.importances
    along = cost / (np.ptp(cost) or 1.0) + importance / (np.ptp(importance) or 1.0)
    cell = ((along - along[0]) * (room / (along[-1] - along[0]))).astype(np.int64)
    kept = np.flatnonzero(np.concatenate(([True], np.diff(cell) != 0)))
    kept = np.union1d(kept, [size - 1])
    return SummedFrontier(
        chains=summed.chains, costs=summed.costs[kept], importances=importance[kept], choice=summed.choice[kept]
    )
