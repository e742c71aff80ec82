"""A network's chains in the order in which they are drawn: side by side where they run side by side.

A column holds the chains of one level (:mod:`layerfold.graph.wiring`), each in a lane of its own. Chains inside a
squeeze-and-excitation gate are in none: the gate is one mark.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerfold.graph.barrier_groups import item_label, items_before_chains
from layerfold.graph.squeeze_excitation import SqueezeExcitation, chains_outside, find_squeeze_excitations
from layerfold.graph.wiring import barriers_on_the_way, chain_levels

if TYPE_CHECKING:
    from layerfold.graph.description import Barrier, Chain
    from layerfold.graph.network import Network

Items = tuple["Barrier | SqueezeExcitation", ...]


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One chain, and what stands before it and before no other chain of its column."""

    chain: Chain
    items: Items = ()


@dataclass(frozen=True, kw_only=True)
class Column:
    """Chains that run side by side, and what stands before all of them."""

    lanes: tuple[Lane, ...]
    items: Items = ()


def columns_of(net: Network) -> tuple[tuple[Column, ...], Items]:
    """Return the columns from the input to the output, and what stands behind the last one."""
    chains = chains_outside(net)
    ways = barriers_on_the_way(net)
    if ways is None:
        *before, behind = items_before_chains(net, chains)
        return tuple(
            Column(lanes=(Lane(chain=chain),), items=items) for chain, items in zip(chains, before, strict=True)
        ), behind
    level_of, way_of, free = _by_start(net, ways)
    columns = []
    for level in sorted({level_of[chain.start] for chain in chains}):
        side_by_side = [chain for chain in chains if level_of[chain.start] == level]
        met = Counter(item for chain in side_by_side for item in way_of[chain.start] if item in free)
        shared = [item for item in free if met[item] == len(side_by_side)]
        lanes = []
        for chain in side_by_side:
            own = [item for item in free if item in way_of[chain.start] and item not in shared]
            lanes.append(Lane(chain=chain, items=tuple(free.pop(item) for item in own)))
        columns.append(Column(lanes=tuple(lanes), items=tuple(free.pop(item) for item in shared)))
    return tuple(columns), tuple(free.values())


def _by_start(
    net: Network, ways: list[frozenset[int]]
) -> tuple[dict[int, int], dict[int, frozenset[int]], dict[int, Barrier | SqueezeExcitation]]:
    """Return, by a chain's start, its level and the numbers of the items on its way; and the items by number.

    A gate goes by the number of its last barrier.
    """
    gates = {id(gate.barriers[-1]): gate for gate in find_squeeze_excitations(net)}
    hidden = {id(barrier) for gate in gates.values() for barrier in gate.barriers[:-1]}
    items = {
        number: gates.get(id(barrier), barrier)
        for number, barrier in enumerate(net.barriers)
        if id(barrier) not in hidden
    }
    starts = [chain.start for chain in net.chains]
    return dict(zip(starts, chain_levels(net), strict=True)), dict(zip(starts, ways, strict=True)), items


def mark_label(items: Items, most: int) -> str:
    """Return what barriers are, shortened to at most ``most`` characters: ``addition ×2, upsample +1``."""
    if isinstance(items[0], SqueezeExcitation):
        return "squeeze-excite"
    counts = Counter(item_label(item) for item in items)
    names = [label + (f" ×{count}" if count > 1 else "") for label, count in counts.items()]
    shown = 1
    while shown < len(names) and len(", ".join(names[: shown + 1])) <= most - 3:
        shown += 1
    label, more = ", ".join(names[:shown]), len(names) - shown
    if len(label) > most:
        label = label[: most - 1] + "…"
    return label + (f" +{more}" if more else "")
