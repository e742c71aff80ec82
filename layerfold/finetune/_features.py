"""Feature maps on the way: what a student is compared with its teacher by, beside the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from layerfold.errors import UsageError


def tapped(module: nn.Module, names: Sequence[str], argument: str) -> fx.GraphModule:
    """Return a module with the same parts that gives (output, feature maps of the named nodes).

    Args:
        module: a traced network or train form.
        names: of nodes of its graph.
        argument: what the caller calls the module, for errors.

    Raises:
        UsageError: not a traced network, or it has no such node.
    """
    if not isinstance(module, fx.GraphModule):
        raise UsageError(
            f"{argument}: is a {type(module).__name__}; feature maps are taken from traced networks, such "
            "as net.graph.on(model)"
        )
    copies: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    output = graph.graph_copy(module.graph, copies)
    nodes = {node.name: node for node in module.graph.nodes}
    taps = []
    for name in names:
        if name not in nodes:
            raise UsageError(f"features: {argument} has no node {name!r}; take the names from segment_ends(...)")
        # A copy: an activation behind it may work in place.
        with graph.inserting_after(copies[nodes[name]]):
            taps.append(graph.call_method("clone", (copies[nodes[name]],)))
    graph.output((output, tuple(taps)))
    return fx.GraphModule(module, graph)


def feature_distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """Return |student - teacher|^2 / |teacher|^2, mean over images and feature maps: 0 where they agree.

    Args:
        found: the student's feature maps, [batch, channels, height, width] each.
        expected: the teacher's, of the same shapes.
    """
    errors = []
    for mine, theirs in zip(found, expected, strict=True):
        target = theirs.float().flatten(1)
        error = (mine.float().flatten(1) - target).square().sum(1)
        errors.append((error / target.square().sum(1).clamp_min(1e-12)).mean())
    return torch.stack(errors).mean()
