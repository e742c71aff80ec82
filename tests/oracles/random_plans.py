"""Random plans of a network from its candidates alone, whatever the profiler would choose to time."""

from __future__ import annotations

import random
from collections.abc import Sequence

from layerfold.graph.description import Segment
from layerfold.graph.network import Network
from layerfold.tables import LatencyTable

_KEEP_ACTIVATION = 1.0
_FILL_SLOT = 0.1
_MOST_GROWTH = 2.0


def random_solutions(
    net: Network,
    candidates: Sequence[Segment],
    count: int,
    seed: int = 0,
    *,
    table: LatencyTable | None = None,
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return distinct random plans, spread from light to heavy merging and so over latency. No layer is dropped.

    Merged segments that cost more than twice what they replace (in the table, or in multiply-adds without one) are
    left out: no solver would choose them.

    Args:
        net: the traced network.
        candidates: segments that may be merged.
        count: how many plans, at least 1; fewer come back when the network has fewer.
        seed: of the random numbers.
        table: latencies of the candidates.

    Returns:
        (act_pos, merge_pos) of each plan, chain ends included, from light to heavy merging.
    """
    rng = random.Random(seed)
    merged: dict[int, list[int]] = {}
    for segment in candidates:
        if segment.num_layers > 1 and not segment.dropped and _is_sensible(net, segment, table):
            merged.setdefault(segment.start, []).append(segment.end)
    plans: dict[tuple[tuple[int, ...], tuple[int, ...]], None] = {}
    for attempt in range(20 * count):
        if len(plans) == count:
            break
        share = (len(plans) + 0.5 + attempt / (20 * count)) / (count + 0.5)
        plans.setdefault(_random_plan(net, merged, share, rng), None)
    return list(plans)


def _random_plan(
    net: Network, merged: dict[int, list[int]], share: float, rng: random.Random
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    act_pos, merge_pos = [], []
    for chain in net.chains:
        position = chain.start
        while position < chain.end:
            ends = merged.get(position, ())
            position = rng.choice(ends) if ends and rng.random() < share else position + 1
            merge_pos.append(position)
            chance = _KEEP_ACTIVATION if net.has_activation(position) else _FILL_SLOT
            has_activation = net.has_activation(position) if position == chain.end else rng.random() < chance
            if has_activation:
                act_pos.append(position)
    return tuple(act_pos), tuple(merge_pos)


def _is_sensible(net: Network, segment: Segment, table: LatencyTable | None) -> bool:
    singles = [(position, position + 1) for position in range(segment.start, segment.end)]
    if table is not None:
        if (segment.start, segment.end) not in table:
            return False
        return table.entry(segment.start, segment.end).latency_ms <= _MOST_GROWTH * table.sum_ms(singles)
    return segment.macs <= _MOST_GROWTH * sum(net.segment(start, end).macs for start, end in singles)
