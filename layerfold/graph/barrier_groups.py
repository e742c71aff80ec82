"""Barriers sorted by what they are: what a reader wants to know of 200 of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from layerfold.graph.description import Barrier, Chain
from layerfold.graph.network import Network
from layerfold.graph.squeeze_excitation import (
    SqueezeExcitation,
    blocks_with_squeeze_excitation,
    find_squeeze_excitations,
)

SE_LABEL = "squeeze-and-excitation"
SE_REASON = "multiplies a feature map by what it computes from all of it, which is not linear"
_LABELS = {  # where the plain words of a kind are not what one would say
    "cat": "concatenation",
    "concat": "concatenation",
    "add": "addition",
    "iadd": "addition",
    "mul": "product",
    "mean": "average pool",
    "avg pool": "average pool",
    "getitem": "slice",
    "norm before act": "batch norm",
    "batch norm act": "batch norm",
    "frozen batch norm": "batch norm",
}


@dataclass(frozen=True, kw_only=True)
class BarrierGroup:
    """Barriers of one kind with one reason.

    Attributes:
        label: what they are, in plain words.
        reason: why nothing merges across them.
        items: each barrier, or each gate as a whole, in the network's order.
    """

    label: str
    reason: str
    items: tuple[Barrier | SqueezeExcitation, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions that they stand behind, rising, each once."""
        return tuple(sorted({item.after for item in self.items}))


def group_barriers(net: Network) -> tuple[BarrierGroup, ...]:
    """Return the barriers by label and reason, the most frequent first; a squeeze-and-excitation gate is one item."""
    gates = find_squeeze_excitations(net)
    inside = {id(barrier) for gate in gates for barrier in gate.barriers}
    groups: dict[tuple[str, str], list[Barrier | SqueezeExcitation]] = (
        {(SE_LABEL, SE_REASON): list(gates)} if gates else {}
    )
    for barrier in net.barriers:
        if id(barrier) not in inside:
            groups.setdefault((plain_kind(barrier.kind), barrier.reason), []).append(barrier)
    found = [BarrierGroup(label=key[0], reason=key[1], items=tuple(items)) for key, items in groups.items()]
    return tuple(sorted(found, key=lambda group: -len(group.items)))


def why_not_more(net: Network) -> str:
    """Return in one clause what ends the chains of a network, the commonest first; empty where nothing does.

    For example ``16 of 16 blocks end at squeeze-and-excitation``. What stands behind the last layer ends nothing.
    """
    parts: list[str] = []
    last = max((chain.end for chain in net.chains), default=0)
    for group in group_barriers(net):
        count = sum(0 < item.after < last for item in group.items)
        if group.label == SE_LABEL:
            blocks = blocks_with_squeeze_excitation(net, find_squeeze_excitations(net))
            parts.insert(
                0, f"{blocks[0]} of {blocks[1]} blocks end at {SE_LABEL}" if blocks else f"{count} × {SE_LABEL}"
            )
        elif count:
            parts.append(f"{count} × {group.label}")
    return ", ".join(parts[:4]) + (", ..." if len(parts) > 4 else "")


def items_before_chains(net: Network, chains: Sequence[Chain]) -> list[tuple[Barrier | SqueezeExcitation, ...]]:
    """Return the barriers and gates that stand before each of ``chains``, and as a last item those behind them all.

    Args:
        chains: the network's chains, those inside gates left out.
    """
    gates = find_squeeze_excitations(net)
    gate_of = {id(gate.barriers[-1]): gate for gate in gates}
    hidden = {id(barrier) for gate in gates for barrier in gate.barriers[:-1]}
    found: list[list[Barrier | SqueezeExcitation]] = [[] for _ in range(len(chains) + 1)]
    for barrier in net.barriers:
        if id(barrier) not in hidden:
            item = gate_of.get(id(barrier), barrier)
            found[next((i for i, chain in enumerate(chains) if chain.start >= item.after), len(chains))].append(item)
    return [tuple(items) for items in found]


def item_label(item: Barrier | SqueezeExcitation) -> str:
    """Return what a barrier or gate is, in plain words."""
    return SE_LABEL if isinstance(item, SqueezeExcitation) else plain_kind(item.kind)


def plain_kind(kind: str) -> str:
    """Return a module's or function's kind in plain words: ``AdaptiveAvgPool2d`` becomes ``average pool``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", kind).replace("_", " ").lower().removesuffix("2d").split()
    plain = " ".join(word for word in words if word != "adaptive")
    return _LABELS.get(plain, plain) or kind
