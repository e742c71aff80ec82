"""Which chains feed which: the order of chains in the network, beyond their numbering.

Read from the traced graph, without torch: what is asked of a node is its name and its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from layerfold.graph.network import Network


def chain_sources(net: Network) -> tuple[tuple[int, ...], ...] | None:
    """Return, for each chain, the positions whose feature maps reach its input, directly or through barriers.

    An empty tuple is the network's input. A position is the end of a chain, or inside one where a barrier reads along.

    Returns:
        None for a network without its traced graph (one read from a file).
    """
    if net.graph is None:
        return None
    nodes = {node.name: node for node in net.graph.graph.nodes}
    position_of = {layer.feature: index for index, layer in enumerate(net.graph.layers, start=1)}
    reached: dict[str, frozenset[int]] = {}
    for name, node in nodes.items():  # in the order of execution, so inputs come first
        own = position_of.get(name)
        reached[name] = frozenset({own}) if own is not None else _inputs_of(node, reached)
    return tuple(tuple(sorted(reached[name])) for name in net.graph.inputs)


def chain_levels(net: Network) -> tuple[int, ...]:
    """Return a level for each chain: chains of one level run side by side, each level reads from those before.

    The level is the number of chains on the longest way to a chain from the network's input; without the traced
    graph, chains are taken to follow one another.
    """
    sources = chain_sources(net)
    if sources is None:
        return tuple(range(len(net.chains)))
    number_at = {chain.end: number for number, chain in enumerate(net.chains)}
    feeds = [{number_at[position] for position in found if position in number_at} for found in sources]
    levels: dict[int, int] = {}
    while len(levels) < len(feeds):
        ready = [n for n, found in enumerate(feeds) if n not in levels and found <= levels.keys()]
        levels.update({n: 1 + max((levels[feed] for feed in feeds[n]), default=-1) for n in ready})
    return tuple(levels[number] for number in range(len(feeds)))


def barriers_on_the_way(net: Network) -> list[frozenset[int]] | None:
    """Return, for each chain, the numbers (in ``Network.barriers``) of the barriers between its sources and its input.

    Returns:
        None for a network without its traced graph.
    """
    if net.graph is None:
        return None
    own = set(_names(net.graph.layers)) | set(_names(net.graph.residuals))
    nodes = [node for node in net.graph.graph.nodes if node.name not in own]
    features = {layer.feature for layer in net.graph.layers}
    number_of: dict[str, int] = {}
    for node in nodes:  # barriers were listed in the order of the nodes
        number = len(number_of)
        if number < len(net.barriers) and net.barriers[number].name in (node.name, str(node.target)):
            number_of[node.name] = number
    reached: dict[str, frozenset[int]] = {}
    for node in net.graph.graph.nodes:
        if node.name in features:
            reached[node.name] = frozenset()
        else:
            through = {number_of[node.name]} if node.name in number_of else set()
            reached[node.name] = _inputs_of(node, reached) | through
    return [reached[name] for name in net.graph.inputs]


def _names(records: Iterable[Any]) -> Iterator[str]:
    """Yield every node name that records of the traced graph hold, at any depth."""
    for record in records:
        if isinstance(record, str):
            yield record
        elif isinstance(record, tuple):
            yield from _names(record)
        elif record is not None and hasattr(record, "__dict__"):
            yield from _names(tuple(vars(record).values()))


def _inputs_of(node: Any, reached: dict[str, frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*(reached[source.name] for source in node.all_input_nodes))
