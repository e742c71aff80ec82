"""Adding frontiers: independent chains are chosen for together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from layerfold.solver._labels import ChainFrontier
from layerfold.solver._pareto import pareto_indices

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


def sum_frontiers(chains: list[ChainFrontier], *, caps: Floats | None = None) -> SummedFrontier:
    """Add frontiers pairwise, smallest first; exact, since a dominated summand never makes a better sum.

    Args:
        chains: at least one.
        caps: [columns] upper limits of the whole sum; None for no limit.
    """
    parts = [
        SummedFrontier(
            chains=(each,), costs=each.costs, importances=each.importances,
            choice=np.arange(len(each.importances))[:, None],
        )
        for each in chains
    ]
    order = sorted(range(len(parts)), key=lambda index: len(parts[index].importances))
    least_left = np.array([parts[index].costs.min(axis=0) for index in order])
    rest = [least_left[step + 1 :].sum(axis=0) for step in range(len(order))]
    total = reduce(
        lambda left, step: _add(left, parts[order[step]], None if caps is None else caps - rest[step]),
        range(1, len(order)), parts[order[0]],
    )
    back = np.argsort(order)
    return SummedFrontier(
        chains=tuple(chains), costs=total.costs, importances=total.importances, choice=total.choice[:, back]
    )


def _add(left: SummedFrontier, right: SummedFrontier, caps: Floats | None) -> SummedFrontier:
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
        kept = pareto_indices(costs, importances)
        costs, importances, pairs = costs[kept], importances[kept], pairs[kept]
    return SummedFrontier(
        chains=left.chains + right.chains, costs=costs, importances=importances,
        choice=np.concatenate((left.choice[pairs[:, 0]], right.choice[pairs[:, 1]]), axis=1),
    )
