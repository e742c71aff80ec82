"""Activations written out by hand, as the functions they are."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from layerfold.graph.rewrites.constants import is_number

if TYPE_CHECKING:
    from layerfold.graph.rewrites import Install

_MUL = (operator.mul, torch.mul, "mul")
_DIV = (operator.truediv, torch.div, "div")
_ADD = (operator.add, torch.add, "add")
_SIGMOIDS: tuple[Any, ...] = (torch.sigmoid, F.sigmoid, "sigmoid")
_HARD_SHIFT, _HARD_RANGE = 3, 6


def rewrite_activations(module: fx.GraphModule) -> Iterator[Install]:
    """Rewrite ``x * sigmoid(x)``, ``x * hardsigmoid(x)``, ``relu6(x + 3) / 6`` and ``x * relu6(x + 3) / 6``."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if (value := _hard_sigmoid_input(node, modules)) is not None:
            _become(node, F.hardsigmoid, value)
    for node in list(module.graph.nodes):
        if node.target in _DIV and len(node.args) == 2 and node.args[1] == _HARD_RANGE:
            product = node.args[0]
            if not isinstance(product, fx.Node):
                continue
            if (value := _gated_input(product, modules, _is_shifted_relu6)) is not None:
                _become(node, F.hardswish, value)
        elif (value := _gated_input(node, modules, _is_sigmoid)) is not None:
            _become(node, F.silu, value)
        elif (value := _gated_input(node, modules, _is_hard_sigmoid)) is not None:
            _become(node, F.hardswish, value)
    yield from ()


def _become(node: fx.Node, function: Any, value: fx.Node) -> None:
    node.op, node.target, node.args, node.kwargs = "call_function", function, (value,), {}


def _gated_input(node: fx.Node, modules: dict[str, nn.Module], is_gate: Any) -> fx.Node | None:
    """Return x where the node is ``x * gate(x)``, the gate read here alone."""
    if node.target not in _MUL or len(node.args) != 2 or node.kwargs:
        return None
    for value, gate in (node.args, node.args[::-1]):
        if isinstance(value, fx.Node) and isinstance(gate, fx.Node) and is_gate(gate, modules) is value:
            return value if len(gate.users) == 1 else None
    return None


def _is_sigmoid(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    is_module = node.op == "call_module"  # its name may be anything, also "sigmoid"
    is_sigmoid = type(modules[str(node.target)]) is nn.Sigmoid if is_module else node.target in _SIGMOIDS
    return node.all_input_nodes[0] if is_sigmoid else None


def _is_hard_sigmoid(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    is_module = node.op == "call_module" and type(modules[str(node.target)]) is nn.Hardsigmoid
    return node.all_input_nodes[0] if is_module or node.target is F.hardsigmoid else None


def _is_shifted_relu6(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """Return x where the node is ``relu6(x + 3)``."""
    is_module = node.op == "call_module" and type(modules[str(node.target)]) is nn.ReLU6
    if not (is_module or node.target is F.relu6):
        return None
    shifted = node.all_input_nodes[0]
    is_shift = shifted.target in _ADD and len(shifted.args) == 2 and shifted.args[1] == _HARD_SHIFT
    return shifted.all_input_nodes[0] if is_shift and is_number(shifted.args[1]) and len(shifted.users) == 1 else None


def _hard_sigmoid_input(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    if node.target not in _DIV or len(node.args) != 2 or node.args[1] != _HARD_RANGE or node.kwargs:
        return None
    inner = node.args[0]
    if not isinstance(inner, fx.Node) or len(inner.users) != 1:
        return None
    return _is_shifted_relu6(inner, modules)
