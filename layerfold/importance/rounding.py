"""An entry in int8: the kernel of its segment rounded, and the feature maps at its two ends.

The rest of the network stays in float32, so that importances add up as they do in float32: each holds what merging
loses and what rounding loses in one place.
"""

from __future__ import annotations

import math

from torch import Tensor, fx

from layerfold.graph import Network
from layerfold.importance.requests import Request
from layerfold.merge.segment_ends import last_node
from layerfold.qat import Place, measure_ranges, rounded_network


def first_node(changed: fx.GraphModule, net: Network, request: Request) -> str | None:
    """Return the node of a changed network that computes the entry's kernel; None where nothing is left of it."""
    names = {node.name for node in changed.graph.nodes}
    whole = f"segment_{request.start}_{request.end}"
    ops = [net.graph.layers[index - 1].op for index in range(request.start + 1, request.end + 1)]
    return next((name for name in (whole, *ops) if name in names), None)


def rounded_entry(
    network: fx.GraphModule, net: Network, request: Request, batches: list[tuple[Tensor, ...]]
) -> fx.GraphModule:
    """Return a changed network with its segment in int8, in eval mode; it shares its parameters.

    Args:
        network: the changed network, or what of it lies behind the change, with statistics that fit.
        net: the original's description.
        request: the entry.
        batches: what the network takes: ranges of feature maps are measured on them.
    """
    kernel = first_node(network, net, request)
    if kernel is None:
        return network
    nodes = {node.name: node for node in network.graph.nodes}
    names = net.graph.layers[request.end - 1]
    before = nodes[kernel].all_input_nodes[0].name
    end = last_node(nodes, net.graph, request.start, request.end)
    activations = (names.activation, f"activation_{request.end}")
    behind = next((name for name in activations if name in nodes), None if end is None else end.name)
    places = [
        Place(node=name, tensor=name, group=name, low=-math.inf, high=math.inf)
        for name in dict.fromkeys((before, behind))
        if name is not None
    ]
    rounded = rounded_network(network, places, kernels={kernel}).eval()
    measure_ranges(rounded, batches)
    return rounded
