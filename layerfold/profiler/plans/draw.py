"""Random plans of a network, from nearly unmerged to strongly merged: what a fit is made of."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from layerfold.errors import UsageError
from layerfold.graph.network import Network
from layerfold.profiler.plans.plan import Plan
from layerfold.tables.kernel import SegmentKey
from layerfold.tables.levers import DROP, Change

_KEEP_ACTIVATION = 1.0
"""No plan that is chosen removes an activation where merging stops all the same, so none that is fitted to does."""
_FILL_SLOT = 0.1
_MOST_GROWTH = 2.0
_GOOD_GROWTH = 1.3
_ENOUGH_SEGMENTS = 30
_ENOUGH_FASTER = 10
_SHARE_OF_SLOWER = 1 / 3


def covering_solutions(
    net: Network,
    growth: Mapping[SegmentKey, float],
    count: int,
    seed: int = 0,
    *,
    changes: Mapping[SegmentKey, Change | None] | None = None,
) -> list[Plan]:
    """Return random plans, no two with equal segments, that hold every promising changed segment about equally often.

    One measured plan says something of all its segments at once, so a fit needs far fewer plans than there are
    segments, if each appears in several and beside different neighbours. A plan is filled with segments in
    random order, those used least so far first, until its share of the layers is merged.

    Args:
        net: the traced network.
        growth: changed segment -> its latency relative to the layers that it replaces, as far as is known.
        count: how many plans, at least 1; fewer come back when the network has fewer.
        seed: of the random numbers.
        changes: changed segment -> what a lever changes of its layers; nothing of those that are absent.

    Returns:
        Plans in random order from light to heavy merging.
        Only :func:`promising_segments` appear; those slower than what they replace, which may turn out to be worth
        it inside the network, a third as often as the others.
    """
    if count < 1:
        raise UsageError(f"count={count} must be at least 1")
    rng = random.Random(seed)
    usable = promising_segments(growth)
    faster = [segment for segment in usable if growth[segment] < 1]
    used = dict.fromkeys(usable, 0)
    wanted = {segment: 1.0 if growth[segment] < 1 else _SHARE_OF_SLOWER for segment in usable}
    plans: dict[tuple[object, ...], Plan] = {}
    for _ in range(20 * count):
        if len(plans) == count or not usable:
            break
        # Every other plan is one that a solver could choose: it holds only what is faster alone.
        choice = faster if len(faster) >= _ENOUGH_FASTER and rng.random() < 0.5 else usable
        waiting = sorted(choice, key=lambda segment: (used[segment] + rng.random()) / wanted[segment])
        most_layers = rng.uniform(0.1, 1.0) * len(net.layers)
        taken: list[SegmentKey] = []
        covered: set[int] = set()
        for segment in waiting:
            layers = range(segment[0] + 1, segment[1] + 1)
            if len(covered) + len(layers) <= most_layers and covered.isdisjoint(layers):
                taken.append(segment)
                covered.update(layers)
        made = [change for segment in taken if (change := (changes or {}).get(segment)) is not None]
        plan = _plan_with(net, [segment[:2] for segment in taken], made, rng)
        if taken and plan[1:] not in plans:
            plans[plan[1:]] = plan
            for segment in taken:
                used[segment] += 1
    return list(plans.values())


def promising_segments(growth: Mapping[SegmentKey, float]) -> list[SegmentKey]:
    """Return the changed segments worth timing in a network.

    Alone, they take at most 1.3 times what they replace; where these are few, the next ones up to twice it come in
    too: how a segment does inside the network may differ by that much.
    """
    by_growth = sorted(growth, key=lambda segment: (growth[segment], segment))
    return sorted(
        segment
        for rank, segment in enumerate(by_growth)
        if growth[segment] <= _GOOD_GROWTH or (rank < _ENOUGH_SEGMENTS and growth[segment] <= _MOST_GROWTH)
    )


def _plan_with(net: Network, merged: Sequence[tuple[int, ...]], changes: Sequence[Change], rng: random.Random) -> Plan:
    """Return a plan with these changed segments, all other layers alone, and random activations."""
    inner = {position for start, end in merged for position in range(start + 1, end)}
    merge_pos = [position for position in range(1, len(net.layers) + 1) if position not in inner]
    ends = {chain.end for chain in net.chains}
    act_pos = []
    for position in merge_pos:
        chance = _KEEP_ACTIVATION if net.has_activation(position) else _FILL_SLOT
        if net.has_activation(position) if position in ends else rng.random() < chance:
            act_pos.append(position)
    dropped = sorted(layer for each in changes if each.lever == DROP for layer in each.layers or ())
    others = sorted((each for each in changes if each.lever != DROP), key=lambda each: each.layers or ())
    return Plan(tuple(act_pos), tuple(merge_pos), tuple(dropped), tuple(others))
