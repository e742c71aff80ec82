"""Gates: which activations may go, alone or together, and what a choice of them leaves.

Not to be confused with the gates of squeeze-and-excitation (:mod:`layerfold.graph.squeeze_excitation`), which multiply
feature maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from layerfold.errors import UsageError
from layerfold.graph.description import Chain
from layerfold.graph.network import Network
from layerfold.graph.squeeze_excitation import chains_outside
from layerfold.options.search import GRANULARITIES, Granularity


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Activations that stay or go together.

    Attributes:
        name: qualified name of the layer in front of its first activation.
        positions: where it has its activations, rising; without them once it is off.
        fills: the empty slot that gets an activation when it is off, or None.
    """

    name: str
    positions: tuple[int, ...]
    fills: int | None = None


def list_gates(net: Network, granularity: Granularity = "slot") -> tuple[Gate, ...]:
    """Return the gates of a network, by position.

    ``slot``: one for each activation. ``block``: one for all activations inside a block; when it is off, the block's
    end gets an activation if it has none, so that a block that merges whole is a conv with an activation behind it
    (DepthShrinker, section 3.3). A block lies between two neighbours of: the chain's start and end, where residuals
    start and end, and empty slots (linear bottlenecks). A chain with neither residuals nor empty slots is cut in
    front of its strided layers.

    Chain ends have no gate: they keep what they have. Nor have the chains inside squeeze-and-excitation gates, where
    merging buys next to nothing.

    Raises:
        UsageError: another granularity, or no activation that could go.
    """
    if granularity not in GRANULARITIES:
        raise UsageError(f"granularity={granularity!r}: must be one of {', '.join(GRANULARITIES)}")
    found = [
        gate
        for chain in chains_outside(net)
        for gate in (_slots(net, chain) if granularity == "slot" else _blocks(net, chain))
    ]
    if not found:
        raise UsageError(
            f"model {net.name}: has no activation inside a chain at {granularity} granularity, so there "
            "is none to remove; `layerfold inspect` shows its chains"
        )
    return tuple(found)


def activations_left(net: Network, gates: Sequence[Gate], on: Sequence[bool]) -> tuple[int, ...]:
    """Return A: the positions with an activation where the gates of ``on`` stay and the others go."""
    left = set(net.original_act_pos)
    for gate, stays in zip(gates, on, strict=True):
        if not stays:
            left.difference_update(gate.positions)
            left.update(() if gate.fills is None else (gate.fills,))
    return tuple(sorted(left))


def _slots(net: Network, chain: Chain) -> Iterable[Gate]:
    for position in range(chain.start + 1, chain.end):
        if net.has_activation(position):
            yield Gate(name=net.layer(position).name, positions=(position,))


def _blocks(net: Network, chain: Chain) -> Iterable[Gate]:
    start = chain.start
    for end in _block_ends(net, chain):
        inside = tuple(position for position in range(start + 1, end) if net.has_activation(position))
        if inside:
            is_fillable = end < chain.end and not net.has_activation(end) and chain.activation is not None
            yield Gate(name=net.layer(start + 1).name, positions=inside, fills=end if is_fillable else None)
        start = end


def _block_ends(net: Network, chain: Chain) -> list[int]:
    inner = range(chain.start + 1, chain.end)
    ends = {position for position in inner if not net.has_activation(position)}
    for residual in net.residuals:
        ends.update(position for position in (residual.src, residual.dst) if position in inner)
    if not ends:
        ends = {position for position in inner if max(net.layer(position + 1).conv.stride) > 1}
    return [*sorted(ends), chain.end]
