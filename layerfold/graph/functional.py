"""In-place operations written as what they compute, so that a graph can be edited by its values alone.

``x.relu_()`` changes what later readers of ``x`` see. In a traced graph nothing says so: the node may have no reader
at all, and would be erased as dead. Here every later reader of the changed value reads the operation's result instead,
and the operation becomes its counterpart that returns a new tensor.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from layerfold.graph.weights import has_other_hooks

_OUT_OF_PLACE: dict[Any, Any] = {
    getattr(space, name): getattr(space, name[:-1])
    for space in (torch, F)
    for name in dir(space)
    if name.endswith("_") and not name.startswith("_") and callable(getattr(space, name[:-1], None))
}
# `x += y` changes the tensor x too.
_OUT_OF_PLACE |= {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def make_functional(graph: fx.Graph, root: nn.Module) -> None:
    """Rewrite, in place, every in-place operation of a graph; modules of ``root`` lose their ``inplace`` flag.

    Nodes that hold tensors carry their shapes (``node.meta["shape"]``).
    """
    modules = dict(root.named_modules())
    _erase_identities(graph, modules)
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _is_in_place(node, modules) or not node.all_input_nodes:
            continue
        changed = node.all_input_nodes[0]
        for reader in list(changed.users):
            if order[reader] > order[node]:
                reader.replace_input_with(changed, node)
        _name_counterpart(node)
    for module in modules.values():
        make_out_of_place(module)


def make_out_of_place(module: Any) -> None:
    """Let a module return a new tensor from now on, if it has the flag ``inplace`` and that is set."""
    if getattr(module, "inplace", False) is True:
        module.inplace = False


def _erase_identities(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Let whoever reads an identity's result read its input: they are one tensor, and change in place together."""
    for node in list(graph.nodes):
        module = modules[str(node.target)] if node.op == "call_module" else None
        if type(module) is nn.Identity and node.all_input_nodes and not has_other_hooks(module):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


def _is_in_place(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return getattr(modules[str(node.target)], "inplace", False) is True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op == "call_function":
        if getattr(operator, getattr(node.target, "__name__", ""), None) is node.target:
            # Of sizes and other plain numbers it makes new ones.
            return node.target in _OUT_OF_PLACE and "shape" in getattr(node.args[0], "meta", {})
        return node.target in _OUT_OF_PLACE or node.kwargs.get("inplace") is True
    return False


def _name_counterpart(node: fx.Node) -> None:
    # `requires_grad_` has an attribute of that name beside it, no method.
    if node.op == "call_method" and callable(getattr(torch.Tensor, str(node.target)[:-1], None)):
        node.target = str(node.target)[:-1]
    elif node.op == "call_function":
        node.target = _OUT_OF_PLACE.get(node.target, node.target)
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}
