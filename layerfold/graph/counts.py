"""How much of a network may be merged, counted without trying: plans by dynamic programming, multiply-adds by sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from layerfold.graph.description import Segment, shortcut_macs
from layerfold.graph.network import Network


def count_merge_sets(net: Network, candidates: Iterable[Segment]) -> int:
    """Return how many sets S of merge positions the candidates allow.

    A set is one path of candidates through each chain, so the paths of each chain are counted and multiplied.

    Args:
        net: the network.
        candidates: segments that may be merged, single layers included: ``net.candidates(...)``.
    """
    return _count_paths(net, candidates, lambda position: 1)


def count_plans(net: Network, candidates: Iterable[Segment]) -> int:
    """Return how many pairs (A, S) the candidates allow: S as in :func:`count_merge_sets`, A any subset of it.

    A chain's end keeps what it has, so it offers no choice (docs/design.md); nor does a position of a chain
    that has no activation at all, since nothing says what would fill its slot.
    """
    filled = {chain.end: chain.activation is not None for chain in net.chains}
    return _count_paths(net, candidates, lambda position: 2 if filled[net.chain_of(position).end] else 1)


def _count_paths(net: Network, candidates: Iterable[Segment], choices: Callable[[int], int]) -> int:
    """Return the product over chains of the sum over paths of the product of ``choices`` at inner stops."""
    ends: dict[int, list[int]] = {}
    for segment in candidates:
        ends.setdefault(segment.start, []).append(segment.end)
    total = 1
    for chain in net.chains:
        paths = {chain.end: 1}
        for start in range(chain.end - 1, chain.start - 1, -1):
            found = sum(paths[end] for end in ends.get(start, ()))
            paths[start] = found if start == chain.start else found * choices(start)
        total *= paths[chain.start]
    return total


def replaced_macs(net: Network, start: int, end: int) -> int:
    """Return the multiply-adds, for one image, of layers start+1..end as they are and of the shortcuts added there."""
    indices = range(start + 1, end + 1)
    layers = sum(net.layer(index).conv.macs(net.layer(index).input_shape) for index in indices)
    return layers + sum(shortcut_macs(residual) for residual in net.residuals if residual.dst in indices)


def mergeable_share(net: Network, candidates: Iterable[Segment]) -> float:
    """Return the share of the network's multiply-adds, 0..1, in convs that a candidate of several layers takes in.

    Those convs are the candidate's layers and the shortcuts of residuals that lie inside it. The whole is all that
    ``Network.macs`` counts, fully connected layers included.
    """
    several = [segment for segment in candidates if segment.num_layers > 1]
    covered = {index for segment in several for index in range(segment.start + 1, segment.end + 1)}
    found = sum(layer.conv.macs(layer.input_shape) for layer in net.layers if layer.index in covered)
    for residual in net.residuals:
        if residual.shortcut and any(each.start <= residual.src and residual.dst <= each.end for each in several):
            found += shortcut_macs(residual)
    return found / net.macs if net.macs else 0.0


def lean_candidates(net: Network, candidates: Iterable[Segment]) -> list[Segment]:
    """Return the candidates that do not raise multiply-adds: the merged conv costs at most what it replaces."""
    return [
        segment
        for segment in candidates
        if segment.num_layers == 1 or segment.macs <= replaced_macs(net, segment.start, segment.end)
    ]
