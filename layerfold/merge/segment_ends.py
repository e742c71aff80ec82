"""Where a segment ends, in a train form and in the original: what feature maps are compared at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from layerfold.graph.network import Network
from layerfold.graph.traced import TracedGraph

if TYPE_CHECKING:
    from layerfold.solver import Solution


def segment_ends(form: fx.GraphModule, net: Network, solution: Solution) -> list[tuple[str, str]]:
    """Return, for each segment of more than one layer, the nodes of its last feature map before the activation.

    Args:
        form: what ``build_train_form(model, net, solution)`` returned.
        net: the original's description.
        solution: what the form was built from.

    Returns:
        Pairs of node names, of the form and of ``net.graph.on(model)``; their values have the same shape.
    """
    traced: TracedGraph = net.graph
    mine = {node.name: node for node in form.graph.nodes}
    theirs = {node.name: node for node in traced.graph.nodes}
    pairs = []
    for segment in net.segments_in(solution):
        if segment.end - segment.start > 1:
            ends = [last_node(nodes, traced, segment.start, segment.end) for nodes in (mine, theirs)]
            pairs.append((ends[0], ends[1]))
    return [(found.name, expected.name) for found, expected in pairs if found is not None and expected is not None]


def last_node(nodes: dict[str, fx.Node], traced: TracedGraph, start: int, end: int) -> fx.Node | None:
    """Return the node behind which a segment's activation stands: its last addition, else the segment or layer.

    Args:
        nodes: of a train form or of the traced original, by name.
        traced: the original's graph.
        start, end: of the segment.
    """
    names = traced.layers[end - 1]
    ways = (*reversed(names.adds), f"segment_{start}_{end}", names.norm, names.op)
    return next((nodes[name] for name in ways if name in nodes), None)
