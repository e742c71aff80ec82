"""What stands in a slot under a plan."""

from __future__ import annotations

from collections.abc import Collection

from layerfold.graph.description import Chain, Segment
from layerfold.graph.network import Network
from layerfold.graph.specs import ActivationSpec


def activation_at(net: Network, chain: Chain, position: int, act_pos: Collection[int]) -> ActivationSpec | None:
    """Return the activation at a position; an empty slot that is filled gets the chain's commonest, a chain's end keeps
    what it has."""
    original = net.layer(position).activation
    if position == chain.end:
        return original
    return (original or chain.activation) if position in act_pos else None


def needlessly_removed(net: Network, act_pos: Collection[int], merge_pos: Collection[int]) -> tuple[int, ...]:
    """Return where merging stops and the original's activation is gone all the same: that saves no time.

    Args:
        net: the network.
        act_pos, merge_pos: as of a solution.
    """
    ends = {chain.end for chain in net.chains}
    return tuple(sorted(set(net.original_act_pos).intersection(merge_pos) - set(act_pos) - ends))


def is_repeated(segment: Segment, activation: ActivationSpec | None, before: ActivationSpec | None) -> bool:
    """Say whether an activation at a segment's end would be applied for a second time and change nothing.

    Args:
        segment: what lies before it.
        activation: what stands at the segment's end.
        before: what stands at its start.
    """
    is_bare = segment.is_identity and not segment.open_residuals
    return is_bare and activation is not None and activation == before and activation.is_idempotent
