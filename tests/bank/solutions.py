"""Random solutions: a random path over the candidates of each chain, and random activations on it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import nn

import layerfold as lf

APPETITES = (0.2, 0.6, 0.95)
"""Chance that a step takes several layers: a solution that merges little, half, nearly all it can."""

MAX_KERNEL, MAX_GROWTH = 15, 2.5
"""Limits of the candidates that the bank draws from."""

_DROP = 0.6

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


def random_drop_solutions(model: nn.Module, net: lf.Network, count: int, *, seed: int = 0) -> list[lf.Solution]:
    """Return ``count`` solutions in which layers are dropped wherever the network lets them go.

    As :func:`random_solutions`, but six steps in ten are options with dropped layers, where there are any.
    """
    rng, norms = random.Random(seed), lf.layer_norms(model, net)
    options = net.candidates(max_kernel=MAX_KERNEL, max_growth=MAX_GROWTH, layer_norms=norms)
    options = [each for each in options if not each.is_changed or each.conv.num_params <= MAX_PARAMS]
    return [_random_drop_solution(net, options, rng) for _ in range(count)]


def _random_drop_solution(net: lf.Network, options: Sequence[lf.Segment], rng: random.Random) -> lf.Solution:
    keep = rng.uniform(0.2, 0.9)
    by_start: dict[int, list[lf.Segment]] = {}
    for option in options:
        by_start.setdefault(option.start, []).append(option)
    merge_pos, act_pos, dropped = [], [], set()
    for chain in net.chains:
        ends = {start: [option.end for option in found] for start, found in by_start.items()}
        steps = _steps(chain, ends)
        position = chain.start
        while position < chain.end:
            here = [option for option in by_start[position] if option.end in steps[position]]
            dropping = [option for option in here if option.dropped]
            chosen = rng.choice(dropping if dropping and rng.random() < _DROP else here)
            position = chosen.end
            merge_pos.append(position)
            dropped.update(chosen.dropped)
            if position < chain.end and chain.activation is not None and rng.random() < keep:
                act_pos.append(position)
    kept = tuple(layer.index for layer in net.layers if layer.index not in dropped)
    return lf.Solution(act_pos=tuple(act_pos), merge_pos=tuple(merge_pos), kept_layers=kept)


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
