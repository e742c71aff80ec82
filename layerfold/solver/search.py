"""The search itself: options in, frontier out, exact unless that would be too large."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from layerfold.arguments import number, shown, whole
from layerfold.errors import UsageError
from layerfold.solver._hull import Hull, make_hull
from layerfold.solver._near import solve_near
from layerfold.solver._pareto import TooManyLabels
from layerfold.solver._sum import SummedFrontier, sum_frontiers
from layerfold.solver.labels import ChainFrontier, solve_chain
from layerfold.solver.options import ChainOptions

Floats = NDArray[np.float64]
_FIRST_EPSILON = 1e-4
_MOST_POINTS = 16_384
_MOST_LABELS = 1_000_000
"""More would not fit into memory."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What :func:`solve_options` found.

    Attributes:
        summed: the points.
        gap: points of importance that any answer may miss by; 0 if exact. Where there is a hull, this is only aimed at.
        hull: bounds the importance at every cost, where labels were thinned by it.
        options: what the hull was made of, where there is one chain: a single budget can be searched further.
    """

    summed: SummedFrontier
    gap: float = 0.0
    hull: Hull | None = None
    options: ChainOptions | None = None


def check_epsilon(epsilon: float, max_labels: int) -> None:
    """Refuse values out of range."""
    if not 0.0 <= number("epsilon", epsilon) <= 1.0:
        raise UsageError(f"epsilon={shown(epsilon)}: expected a part of the span from 0 to 1, for example 1e-4")
    if not 16 <= whole("max_labels", max_labels) <= _MOST_LABELS:
        raise UsageError(f"max_labels={shown(max_labels)}: expected a whole number from 16 to {_MOST_LABELS}")


def solve_options(
    chains: list[ChainOptions],
    to_go: list[Floats],
    *,
    caps: Floats | None = None,
    epsilon: float = 0.0,
    max_labels: int = 20_000,
) -> Found | None:
    """Return the frontier of one or more chains of options, or None where nothing keeps to the caps.

    Args:
        chains: options; every chain's end must be reachable.
        to_go: least cost from every state to the end, a chain each.
        caps: [columns] upper limits on the sums; None for no limit.
        epsilon, max_labels: as in :func:`layerfold.solver.solve_frontier`.
    """
    if epsilon == 0.0:
        try:
            return _solve(chains, to_go, caps, 0.0, max_labels)
        except TooManyLabels:
            epsilon = _FIRST_EPSILON
    if chains[0].costs.shape[1] == 1:
        frontiers, hull, slim = solve_near(chains, epsilon)
        summed = sum_frontiers(frontiers, caps=caps, room=_MOST_POINTS)
        alone = slim[0] if len(slim) == 1 else None
        if not len(summed.importances):
            return None
        return Found(summed=summed, gap=epsilon * hull.span, hull=hull, options=alone)
    span = make_hull([_first_cost(each) for each in chains], most=2).span
    # Slack can be lost at every position and at every addition of a chain.
    states = sum(each.chain[1] - each.chain[0] for each in chains) + len(chains) - 1
    while True:
        try:
            found = _solve(chains, to_go, caps, epsilon * span / states, max_labels)
        except TooManyLabels:
            epsilon *= 10.0
            continue
        return None if found is None else replace(found, gap=epsilon * span)


def _solve(
    chains: list[ChainOptions], to_go: list[Floats], caps: Floats | None, slack: float, max_labels: int
) -> Found | None:
    """Solve every chain and add the frontiers; ``slack`` may be lost at each position once."""
    least = np.array([each[1] for each in to_go])
    frontiers: list[ChainFrontier] = []
    for index, options in enumerate(chains):
        own_caps = None if caps is None else caps - (least.sum(axis=0) - least[index])
        frontier = solve_chain(options, to_go[index], caps=own_caps, slack=slack, max_labels=max_labels)
        if frontier is None:
            return None
        frontiers.append(frontier)
    summed = sum_frontiers(frontiers, caps=caps, slack=slack, max_labels=5 * max_labels)
    return Found(summed=summed) if len(summed.importances) else None


def _first_cost(options: ChainOptions) -> ChainOptions:
    return replace(options, costs=options.costs[:, :1])
