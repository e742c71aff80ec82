"""Random solutions: a random path over the candidates of each chain, and random activations on it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import layerfold as lf

APPETITES = (0.2, 0.6, 0.95)
"""Chance that a step takes several layers: a solution that merges little, half, nearly all it can."""

MAX_KERNEL, MAX_GROWTH = 15, 2.5
"""Limits of the candidates that the bank draws from."""

MAX_PARAMS = 13_000_000
"""Largest merged conv: 7x7 with 512 channels. Larger ones show nothing new, and take minutes each in float64."""


def random_solution(net: lf.Network, candidates: Sequence[lf.Segment], rng: random.Random) -> lf.Solution:
    """Return a random S out of the candidates and a random A within it; slots that were empty are filled too."""
    appetite, keep = rng.choice(APPETITES), rng.uniform(0.2, 0.9)
    ends: dict[int, list[int]] = {}
    for segment in candidates:
        ends.setdefault(segment.start, []).append(segment.end)
    merge_pos, act_pos = [], []
    for chain in net.chains:
        steps = _steps(chain, ends)
        position = chain.start
        while position < chain.end:
            position = _step(position, steps[position], appetite, rng)
            merge_pos.append(position)
            if position < chain.end and chain.activation is not None and rng.random() < keep:
                act_pos.append(position)
    return lf.Solution(act_pos=tuple(act_pos), merge_pos=tuple(merge_pos))


def random_solutions(
    net: lf.Network, count: int, *, max_kernel: int = MAX_KERNEL, max_growth: float = MAX_GROWTH, seed: int = 0
) -> list[lf.Solution]:
    """Return ``count`` solutions over the candidates within those limits, and of at most ``MAX_PARAMS``."""
    rng, candidates = random.Random(seed), net.candidates(max_kernel=max_kernel, max_growth=max_growth)
    candidates = [each for each in candidates if each.num_layers == 1 or each.conv.num_params <= MAX_PARAMS]
    return [random_solution(net, candidates, rng) for _ in range(count)]


def _steps(chain: lf.Chain, ends: dict[int, list[int]]) -> dict[int, list[int]]:
    """Return, by position, the ends from which the chain's end can still be reached."""
    steps: dict[int, list[int]] = {chain.end: []}
    for start in range(chain.end - 1, chain.start - 1, -1):
        reachable = [end for end in ends.get(start, ()) if end in steps]
        if reachable:
            steps[start] = reachable
    return steps


def _step(start: int, ends: list[int], appetite: float, rng: random.Random) -> int:
    several = [end for end in ends if end > start + 1]
    if several and (rng.random() < appetite or len(several) == len(ends)):
        return rng.choice(several)
    return min(ends)
