"""Random solutions: a random path over the candidates of each chain, and random activations on it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import layerfold as lf

APPETITES = (0.2, 0.6, 0.95)
"""Chance that a step takes several layers: a solution that merges little, half, nearly all it can."""

_DROP = 0.6


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The candidates that solutions are drawn from.

    Attributes:
        max_kernel, max_growth: as of :meth:`layerfold.Network.candidates`.
        max_params: weights of the largest merged conv.
    """

    max_kernel: int
    max_growth: float
    max_params: int

    @property
    def shape(self) -> dict[str, Any]:
        """The limits that the network itself applies."""
        return {"max_kernel": self.max_kernel, "max_growth": self.max_growth}

    def of(self, options: Sequence[lf.Segment]) -> list[lf.Segment]:
        """Return the options that are not too large; a layer as it is always stays."""
        return [each for each in options if not each.is_changed or each.conv.num_params <= self.max_params]


BANK_LIMITS = Limits(max_kernel=15, max_growth=2.5, max_params=13_000_000)
"""A 7x7 conv with 512 channels: larger ones show nothing new, and take minutes each in float64."""

QUICK_LIMITS = Limits(max_kernel=9, max_growth=2, max_params=3_000_000)
"""What runs in every `make test`."""


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


def random_solutions(net: lf.Network, count: int, *, limits: Limits = BANK_LIMITS, seed: int = 0) -> list[lf.Solution]:
    """Return ``count`` solutions over the candidates within those limits."""
    rng, candidates = random.Random(seed), limits.of(net.candidates(**limits.shape))
    return [random_solution(net, candidates, rng) for _ in range(count)]


def random_drop_solutions(
    model: nn.Module, net: lf.Network, count: int, *, limits: Limits = BANK_LIMITS, seed: int = 0
) -> list[lf.Solution]:
    """Return ``count`` solutions in which layers are dropped wherever the network lets them go.

    As :func:`random_solutions`, but six steps in ten are options with dropped layers, where there are any.
    """
    rng, norms = random.Random(seed), lf.layer_norms(model, net)
    options = limits.of(net.candidates(**limits.shape, layer_norms=norms))
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
