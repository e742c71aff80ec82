"""Several linear maps as one, composed in the cheapest order.

Composing is associative, but its cost is not: behind a wide layer it pays to go on from the narrow side. The order is
that of the classical matrix-chain problem (Cormen et al., *Introduction to Algorithms*, section 14.2), with the cost
of composing two kernels in place of that of a matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from layerfold.graph.specs import Pair
from layerfold.merge.algebra import LinearMap


@dataclass(frozen=True)
class _Size:
    """What the cost of composing depends on."""

    inputs: int
    outputs: int
    groups: int
    kernel: Pair
    stride: Pair

    def then(self, other: _Size) -> _Size:
        kernel = [(other.kernel[a] - 1) * self.stride[a] + self.kernel[a] for a in (0, 1)]
        stride = self.stride[0] * other.stride[0], self.stride[1] * other.stride[1]
        groups = math.gcd(self.groups, other.groups)
        return _Size(self.inputs, other.outputs, groups, (kernel[0], kernel[1]), stride)

    def macs_then(self, other: _Size) -> int:
        """Return the multiply-adds of composing this map with the one behind it."""
        channels = other.outputs * self.outputs * self.inputs // (self.groups * other.groups)
        return channels * math.prod(self.kernel) * math.prod(other.kernel)


def compose(maps: Sequence[LinearMap]) -> LinearMap:
    """Return maps that follow each other, at least one, as a single map."""
    sizes = [_size_of(each) for each in maps]

    @cache
    def best(first: int, behind: int) -> tuple[int, int, _Size]:
        """Return (cost, where to split, size) of maps first..behind-1."""
        if behind - first == 1:
            return 0, first, sizes[first]
        options = []
        for split in range(first + 1, behind):
            (before_cost, _, before), (after_cost, _, after) = best(first, split), best(split, behind)
            options.append((before_cost + after_cost + before.macs_then(after), split, before.then(after)))
        return min(options, key=lambda option: option[0])

    def build(first: int, behind: int) -> LinearMap:
        if behind - first == 1:
            return maps[first]
        split = best(first, behind)[1]
        return build(first, split).then(build(split, behind))

    return build(0, len(maps))


def _size_of(each: LinearMap) -> _Size:
    outputs, per_group, *kernel = each.weight_OIHW.shape
    return _Size(per_group * each.groups, outputs, each.groups, (kernel[0], kernel[1]), each.stride)
