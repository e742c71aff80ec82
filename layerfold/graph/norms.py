"""How large the weights of each layer are: what decides which layers of a segment stay."""

from __future__ import annotations

from torch import nn

from layerfold.graph.network import Network
from layerfold.graph.same_model import network_call
from layerfold.graph.weights import weights_of


@network_call
def layer_norms(model: nn.Module, net: Network) -> dict[int, float]:
    """Return, by layer, the L1 norm of its conv's weight, the sum of absolute values; other layers are left out.

    Args:
        model: the module that ``net`` was traced from; left untouched.
        net: its description.

    Source: Kim et al., *LayerMerge* (ICML 2024), section 3.

    Example:
        >>> norms = lf.layer_norms(model, net)
        >>> sorted(norms)
        [1, 2, 3]
        >>> len(net.candidates()), len(net.candidates(layer_norms=norms))
        (6, 8)
    """
    graph = net.graph.on(model)
    modules = dict(graph.named_modules())
    nodes = {node.name: node for node in graph.graph.nodes}
    found = {}
    for layer, names in zip(net.layers, net.graph.layers, strict=True):
        module = modules.get(str(nodes[names.op].target)) if names.op is not None else None
        if isinstance(module, nn.Conv2d):
            found[layer.index] = float(weights_of(module)[0].detach().double().abs().sum())
    return found
