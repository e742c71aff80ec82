"""Constants of a traced graph: a parameter or buffer, perhaps seen in another shape; and modules made from them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

_RESHAPES = ("view", "reshape", "unsqueeze", "contiguous")
Number = int | float


def shape_of(node: object) -> tuple[int, ...]:
    """Return the recorded shape of a node's tensor; empty for anything else."""
    shape: tuple[int, ...] = node.meta.get("shape", ()) if isinstance(node, fx.Node) else ()
    return shape


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def attribute_name(node: object) -> str | None:
    """Return the qualified name of the parameter or buffer that a node holds, in whatever shape, or None."""
    while isinstance(node, fx.Node) and node.op != "get_attr":
        is_reshape = (node.op == "call_method" and node.target in _RESHAPES) or node.target is operator.getitem
        if not is_reshape or len(node.all_input_nodes) != 1:
            return None
        node = node.args[0]
    return str(node.target) if isinstance(node, fx.Node) else None


def value_of(node: fx.Node, root: nn.Module, of: torch.Tensor | None = None) -> torch.Tensor:
    """Return the value of a node that :func:`attribute_name` knows; with ``of`` in place of the tensor it holds."""
    if node.op == "get_attr":
        return get_tensor(root, str(node.target)).detach() if of is None else of
    inner = value_of(node.all_input_nodes[0], root, of)
    if node.op == "call_method":
        reshaped: torch.Tensor = getattr(inner, str(node.target))(*node.args[1:], **node.kwargs)
        return reshaped
    index: Any = node.args[1]
    return inner[index]


def channel_attribute(node: object, channels: int, root: nn.Module) -> str | None:
    """Return the name of a constant with one value per channel, or one for all, that broadcasts over [N, C, H, W]."""
    name = attribute_name(node)
    if name is None or not isinstance(node, fx.Node):
        return None
    value = value_of(node, root)
    if not _keeps_order(node, root, name):
        return None
    is_one = value.numel() == 1 and value.dim() <= 4
    is_channels = value.numel() == channels and value.dim() in (3, 4) and value.shape[-3:] == (channels, 1, 1)
    return name if is_one or is_channels else None


def _keeps_order(node: fx.Node, root: nn.Module, name: str) -> bool:
    """Say whether a node holds all elements of a parameter or buffer, in order: one picked out of many is another."""
    shape = get_tensor(root, name).shape
    places = torch.arange(shape.numel()).view(shape)
    return torch.equal(value_of(node, root, places).reshape(-1), places.reshape(-1))


def get_tensor(root: nn.Module, name: str) -> torch.Tensor:
    """Return the parameter or buffer of a qualified name."""
    owner, _, own_name = name.rpartition(".")
    value: torch.Tensor = getattr(root.get_submodule(owner), own_name)
    return value


def take_tensor(root: nn.Module, name: str | None, *, moved: bool) -> torch.Tensor | None:
    """Return a parameter or buffer, and where it is ``moved`` remove it from where it was."""
    if name is None:
        return None
    value = get_tensor(root, name)
    if moved:
        owner, _, own_name = name.rpartition(".")
        delattr(root.get_submodule(owner), own_name)
    return value


def is_read_once(graph: fx.Graph, name: str) -> bool:
    """Say whether a single node of the graph reads this parameter or buffer, and a single one that node.

    A module that holds it and is called reads it too.
    """
    readers = [node for node in graph.nodes if node.op == "get_attr" and str(node.target) == name]
    is_held = any(node.op == "call_module" and name.startswith(f"{node.target}.") for node in graph.nodes)
    return len(readers) == 1 and len(readers[0].users) == 1 and not is_held


def add_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module under a qualified name."""
    owner, _, own_name = name.rpartition(".")
    root.get_submodule(owner).add_module(own_name, module.train(root.training))


def free_name(root: nn.Module, name: str) -> str:
    """Return ``name``, or with a number behind it the first that the model does not have."""
    owner, _, own_name = name.rpartition(".")
    taken = root.get_submodule(owner)
    number, found = 0, own_name
    while hasattr(taken, found):
        number += 1
        found = f"{own_name}_{number}"
    return f"{owner}.{found}" if owner else found


def replace_by_module(node: fx.Node, name: str, value: fx.Node) -> fx.Node:
    """Replace ``node`` by a call of the module ``name`` on ``value``."""
    with node.graph.inserting_before(node):
        new = node.graph.call_module(name, (value,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    erase_unread(node)
    return new


def erase_unread(node: fx.Node) -> None:
    """Erase a node that nobody reads, and the constants that only it read."""
    inputs = node.all_input_nodes
    node.graph.erase_node(node)
    for before in inputs:
        if not before.users and attribute_name(before) is not None:
            erase_unread(before)
