"""The part of a changed network that the change can reach: everything before it is computed once and kept.

Entries of one segment start share the feature maps in front of it, so that an entry costs only what lies behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from layerfold.graph import Network

_MOST_BYTES = 1 << 30
"""Of one set of feature maps."""

_KEPT_BYTES = 1 << 28
"""Of several sets; one that takes more is kept alone. A worker has three banks, and a machine several workers."""


class FeatureBank:
    """Feature maps of the original network on fixed batches.

    The latest ones asked for are kept, as far as they fit, and what lies further behind is computed from them.

    Args:
        original: the traced original, in eval mode, with shapes recorded; nothing in it changes its input in place.
        batches: images [N, C, H, W].

    Attributes:
        images: the batches.
    """

    def __init__(self, original: fx.GraphModule, batches: Sequence[Tensor]) -> None:
        self._original, self.images = original, list(batches)
        self._kept: dict[tuple[str, ...], list[tuple[Tensor, ...]]] = {}  # the latest last
        self._shapes: dict[str, tuple[int, ...]] = {
            node.name: node.meta.get("shape") or () for node in original.graph.nodes
        }
        self._places = {node.name: place for place, node in enumerate(original.graph.nodes)}

    def inputs(self) -> list[tuple[Tensor, ...]]:
        """Return the batches themselves."""
        return [(batch,) for batch in self.images]

    def values(self, names: tuple[str, ...]) -> list[tuple[Tensor, ...]]:
        """Return, for each batch, the values of the named nodes."""
        found = self._kept.pop(names, None) or self._computed(names)
        self._kept[names] = found
        return found

    def _computed(self, names: tuple[str, ...]) -> list[tuple[Tensor, ...]]:
        # Freed before the next ones are computed, and before one is taken to compute them from.
        while self._kept and sum(map(self._bytes, (*self._kept, names))) > _KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        taps, given = self._nearest(names)
        with torch.no_grad():
            return [taps(*values) for values in given]

    def _nearest(self, names: tuple[str, ...]) -> tuple[fx.GraphModule, list[tuple[Tensor, ...]]]:
        """Return what computes the named nodes, and from what: the kept values that lie nearest before them, if any."""
        for before in sorted(self._kept, key=lambda each: -self._places[each[-1]]):
            taps = _tap_from(self._original, before, names)
            if taps is not None:
                return taps, self._kept[before]
        return _tap(self._original, names), self.inputs()

    def _bytes(self, names: tuple[str, ...]) -> int:
        images = sum(len(batch) for batch in self.images)
        return 4 * images * sum(math.prod(self._shapes[name][1:]) for name in names)

    def is_affordable(self, names: tuple[str, ...]) -> bool:
        """Say whether these values can be kept: they have one row per image, and take at most a gigabyte."""
        answers = self._original.graph.output_node().all_input_nodes[0]
        rows = self._shapes[answers.name][:1]
        images = {node.name for node in self._original.graph.nodes if node.op == "placeholder"}
        if not all(self._shapes.get(name) and self._shapes[name][:1] == rows for name in set(names) - images):
            return False
        return self._bytes(names) <= _MOST_BYTES


def take_over_shapes(net: Network, form: fx.GraphModule) -> None:
    """Give a train form of the original the shapes of the traced graph, node by node."""
    shapes = {node.name: node.meta.get("shape") for node in net.graph.graph.nodes}
    for node in form.graph.nodes:
        node.meta["shape"] = shapes.get(node.name)


def shared_names(changed: fx.GraphModule, original: fx.GraphModule) -> set[str]:
    """Return the nodes of ``changed`` that compute just what the original's nodes of that name do."""
    originals = {node.name: node for node in original.graph.nodes}
    shared: set[str] = set()
    for node in changed.graph.nodes:
        twin = originals.get(node.name)
        if twin is None or node.op == "output" or (node.op, node.target) != (twin.op, twin.target):
            continue
        inputs = [before.name for before in node.all_input_nodes]
        if inputs == [before.name for before in twin.all_input_nodes] and shared.issuperset(inputs):
            shared.add(node.name)
    return shared


def before(name: str, shared: set[str], changed: fx.GraphModule) -> set[str]:
    """Return the shared nodes that do not depend on the named one, nor are it."""
    kept: set[str] = set()
    for node in changed.graph.nodes:
        if node.name in shared and node.name != name and kept.issuperset(each.name for each in node.all_input_nodes):
            kept.add(node.name)
    return kept


def crossing_names(changed: fx.GraphModule, shared: set[str]) -> tuple[str, ...]:
    """Return the shared nodes whose values the rest of the network reads, in graph order.

    What depends on no image, such as the weight of a functional linear layer, the rest computes itself.
    """
    varying = shared - _constants(changed.graph)
    return tuple(
        node.name
        for node in changed.graph.nodes
        if node.name in varying and any(user.name not in shared for user in node.users)
    )


def _constants(graph: fx.Graph) -> set[str]:
    """Return the nodes whose values depend on no input."""
    found: set[str] = set()
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and all(each.name in found for each in node.all_input_nodes):
            found.add(node.name)
    return found


def split_suffix(changed: fx.GraphModule, shared: set[str]) -> fx.GraphModule:
    """Cut off, in place, what a changed network shares with the original.

    Returns:
        A module that takes the values of ``crossing_names``, in that order, and gives the network's output.
    """
    graph = changed.graph
    names = crossing_names(changed, shared)
    nodes = {node.name: node for node in graph.nodes}
    stand_ins = _stand_ins(graph, names)
    for name, stand_in in stand_ins.items():
        nodes[name].replace_all_uses_with(stand_in, delete_user_cb=lambda user: user.name not in shared)
    _erase_unread(graph, set(stand_ins.values()))
    changed.delete_all_unused_submodules()
    changed.recompile()
    return changed


def _stand_ins(graph: fx.Graph, names: Sequence[str]) -> dict[str, fx.Node]:
    """Put an input for each of these values in front of a graph, in their order."""
    with graph.inserting_before(next(iter(graph.nodes))):
        return {name: graph.placeholder(f"kept_{name}") for name in names}


def cut_behind(network: fx.GraphModule, name: str) -> fx.GraphModule:
    """Return a module that computes one node of a network; it shares the network's parts and takes its inputs."""
    graph, by_name = _copied(network)
    graph.output(by_name[name])
    return _finished(network, graph)


def _tap(original: fx.GraphModule, names: tuple[str, ...]) -> fx.GraphModule:
    """Return a module that computes the named nodes of the original, as a tuple."""
    graph, by_name = _copied(original)
    graph.output(tuple(by_name[name] for name in names))
    return _finished(original, graph)


def _tap_from(original: fx.GraphModule, before: tuple[str, ...], names: tuple[str, ...]) -> fx.GraphModule | None:
    """Return a module that computes nodes from the values of others, or None where these do not suffice."""
    graph, by_name = _copied(original)
    graph.output(tuple(by_name[name] for name in names))
    stand_ins = _stand_ins(graph, before)
    for name, stand_in in stand_ins.items():
        by_name[name].replace_all_uses_with(stand_in)
    _erase_unread(graph, set(stand_ins.values()))
    reads_images = any(node.op == "placeholder" and node not in stand_ins.values() for node in graph.nodes)
    return None if reads_images else fx.GraphModule(original, graph)


def _copied(network: fx.GraphModule) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """Return a copy of a graph without its output, and the copy's nodes by the names that they have in the network."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, lambda before: copies[before])
    return graph, {node.name: twin for node, twin in copies.items()}


def _finished(network: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    _erase_unread(graph, {node for node in graph.nodes if node.op == "placeholder"})
    return fx.GraphModule(network, graph)


def _erase_unread(graph: fx.Graph, kept: set[fx.Node]) -> None:
    """Erase what nobody reads, but for the inputs in ``kept``."""
    for node in reversed(list(graph.nodes)):
        if node not in kept and node.op != "output" and not node.users:
            graph.erase_node(node)
