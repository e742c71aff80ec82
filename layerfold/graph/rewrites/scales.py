"""Multiplications by constants and additions of constants, as :class:`ChannelScale` modules.

Layer scale (``x * gamma``), residual scaling (``0.2 * branch``), the gains of normaliser-free networks.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from layerfold.graph.linear_modules import ChannelScale
from layerfold.graph.rewrites.constants import (
    Number,
    add_module,
    channel_attribute,
    erase_unread,
    free_name,
    is_number,
    is_read_once,
    replace_by_module,
    shape_of,
    take_tensor,
)

if TYPE_CHECKING:
    from layerfold.graph.rewrites import Install

_MUL = (operator.mul, torch.mul, "mul")
_DIV = (operator.truediv, torch.div, "div")
_ADD = (operator.add, torch.add, "add")
_SUB = (operator.sub, torch.sub, "sub")
_NEUTRAL = {"weight": 1, "bias": 0}


def rewrite_scales(module: fx.GraphModule) -> Iterator[Install]:
    """Rewrite ``x * c``, ``x / number``, ``x + c``, ``x - number`` on feature maps x; drop ``x * 1`` and ``x + 0``."""
    for node in list(module.graph.nodes):
        found = _operands(node, module)
        if found is None:
            continue
        value, argument, constant = found
        if constant == _NEUTRAL[argument]:
            node.replace_all_uses_with(value)
            erase_unread(node)
            continue
        attribute = constant if isinstance(constant, str) else None
        owner = attribute.rpartition(".")[0] if attribute else ""
        name = free_name(module, f"{owner}.{node.name}_scale" if owner else f"{node.name}_scale")
        moved = attribute is not None and is_read_once(node.graph, attribute)
        install = partial(_install, name=name, argument=argument, constant=constant, moved=moved)
        install(module)
        replace_by_module(node, name, value)
        yield install


def _install(root: nn.Module, *, name: str, argument: str, constant: str | Number, moved: bool) -> None:
    value = take_tensor(root, constant, moved=moved) if isinstance(constant, str) else constant
    add_module(root, name, ChannelScale(**{argument: value}))


def _operands(node: fx.Node, module: fx.GraphModule) -> tuple[fx.Node, str, str | Number] | None:
    """Return (feature map, ``weight`` or ``bias``, attribute or number), or None for any other node."""
    if node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
        return None
    if node.target not in (*_MUL, *_DIV, *_ADD, *_SUB) or len(shape_of(node)) != 4:
        return None
    is_symmetric = node.target in (*_MUL, *_ADD)
    for value, other in (node.args, node.args[::-1]) if is_symmetric else (node.args,):
        if not isinstance(value, fx.Node) or shape_of(value) != shape_of(node):
            continue
        argument = "weight" if node.target in (*_MUL, *_DIV) else "bias"
        if is_number(other):
            assert isinstance(other, (int, float))
            if node.target in _DIV:
                return (value, argument, 1 / other) if other else None
            return value, argument, -other if node.target in _SUB else other
        if is_symmetric:
            attribute = channel_attribute(other, shape_of(value)[1], module)
            if attribute is not None:
                return value, argument, attribute
    return None
