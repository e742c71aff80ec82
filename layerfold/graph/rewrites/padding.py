"""Zero padding in front of a conv as the conv's own padding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from layerfold.graph.linear_modules import PaddedConv2d
from layerfold.graph.rewrites.constants import add_module

if TYPE_CHECKING:
    from layerfold.graph.rewrites import Install

Sides = tuple[int, int, int, int]
_PAD = ("input", "pad", "mode", "value")


def rewrite_padding(module: fx.GraphModule) -> Iterator[Install]:
    """Rewrite a zero padding that only one conv reads: the conv, under its old name, pads by itself."""
    modules = dict(module.named_modules())
    targets = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    for node in list(module.graph.nodes):
        sides = _sides(node, modules)
        if sides is None or len(node.users) != 1:
            continue
        (conv,) = node.users
        name = str(conv.target)
        if conv.op != "call_module" or type(modules[name]) is not nn.Conv2d or targets.count(name) != 1:
            continue
        if isinstance(modules[name].padding, str) or modules[name].padding_mode != "zeros":
            continue
        install = partial(_install, name=name, sides=sides)
        install(module)
        conv.replace_input_with(node, node.all_input_nodes[0])
        module.graph.erase_node(node)
        yield install


def pad_call(node: fx.Node) -> tuple[int, ...] | None:
    """Return the padding of a call of ``F.pad`` with constant zeros, or None for anything else."""
    if node.op != "call_function" or node.target not in (F.pad, torch._C._nn.pad):
        return None
    given = {**dict(zip(_PAD, node.args, strict=False)), **node.kwargs}
    pad = given.get("pad")
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0):
        return None
    if not isinstance(pad, (tuple, list)) or not all(isinstance(size, int) for size in pad):
        return None
    return tuple(pad)


def _sides(node: fx.Node, modules: dict[str, nn.Module]) -> Sides | None:
    pad: Any = pad_call(node)
    if node.op == "call_module":
        module = modules[str(node.target)]
        is_zero = type(module) is nn.ZeroPad2d or (type(module) is nn.ConstantPad2d and module.value == 0)
        pad = module.padding if is_zero else None
    if pad is None or any(pad[4:]) or min(pad) < 0:
        return None
    left, right, top, bottom = (*pad, 0, 0)[:4]
    return left, right, top, bottom


def _install(root: nn.Module, *, name: str, sides: Sides) -> None:
    """Replace a conv by one of the same parameters that also adds ``sides`` (left, right, top, bottom)."""
    conv: Any = root.get_submodule(name)
    height, width = conv.padding
    left, right, top, bottom = sides
    padded = PaddedConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    padded.sides = (left + width, right + width, top + height, bottom + height)
    padded.weight, padded.bias = conv.weight, conv.bias
    add_module(root, name, padded)
