"""Strided slicing and padding of channels as :class:`StridedSlice`: the parameterless shortcut of CIFAR ResNets."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import fx, nn

from layerfold.graph.linear_modules import StridedSlice
from layerfold.graph.rewrites.constants import add_module, free_name, replace_by_module, shape_of
from layerfold.graph.rewrites.padding import pad_call

if TYPE_CHECKING:
    from layerfold.graph.rewrites import Install


def rewrite_slices(module: fx.GraphModule) -> Iterator[Install]:
    """Rewrite ``x[:, :, ::s, ::s]``, zero padding of the channels, both in a row, and pooling of single pixels."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        stride = _stride_of(node, modules)
        padding = _channel_padding(node)
        if stride is None and padding is None:
            continue
        value, before, behind = node.all_input_nodes[0], *(padding or (0, 0))
        if (stride or (1, 1)) == (1, 1) and not (before or behind):
            node.replace_all_uses_with(value)
            module.graph.erase_node(node)
            continue
        name = free_name(module, f"{node.name}_slice")
        inner = modules.get(str(value.target)) if value.op == "call_module" else None
        if padding and isinstance(inner, StridedSlice) and not (inner.before or inner.behind) and len(value.users) == 1:
            stride = inner.stride
            value = value.all_input_nodes[0]
        install = partial(_install, name=name, stride=stride or (1, 1), before=before, behind=behind)
        install(module)
        replace_by_module(node, name, value)
        modules[name] = module.get_submodule(name)
        yield install
    module.graph.eliminate_dead_code()


def _install(root: nn.Module, *, name: str, stride: tuple[int, int], before: int, behind: int) -> None:
    add_module(root, name, StridedSlice(stride, before, behind))


def _stride_of(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[int, int] | None:
    if len(shape_of(node)) != 4:
        return None
    if node.op == "call_module":
        module = modules[str(node.target)]
        if type(module) in (nn.MaxPool2d, nn.AvgPool2d):
            return _single_pixel_stride(module.kernel_size, module.stride, module.padding)
        return None
    if node.op == "call_function" and node.target in (F.max_pool2d, F.avg_pool2d):
        names = ("input", "kernel_size", "stride", "padding")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        return _single_pixel_stride(given["kernel_size"], given.get("stride"), given.get("padding", 0))
    if node.target is not operator.getitem or len(node.all_input_nodes) != 1:
        return None
    shape = shape_of(node.all_input_nodes[0])
    index: Any = node.args[1]
    if len(shape) != 4 or not isinstance(index, tuple):
        return None
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (4 - len(index) + 1), *index[at + 1 :])
    index = (*index, *[slice(None)] * (4 - len(index)))
    if not all(isinstance(part, slice) and _is_whole(part, size) for part, size in zip(index, shape, strict=True)):
        return None
    steps = [part.step or 1 for part in index]
    return (steps[2], steps[3]) if steps[:2] == [1, 1] else None


def _is_whole(part: slice, size: int) -> bool:
    return part.start in (None, 0) and (part.stop is None or part.stop == size)


def _single_pixel_stride(kernel_size: Any, stride: Any, padding: Any) -> tuple[int, int] | None:
    settings = kernel_size, stride or kernel_size, padding
    if not all(isinstance(value, int) or _is_pair(value) for value in settings):
        return None  # worked out by the graph
    kernel, steps, zeros = (_pair(value) for value in settings)
    return steps if kernel == (1, 1) and zeros == (0, 0) else None


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(size, int) for size in value) and len(value) == 2


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _channel_padding(node: fx.Node) -> tuple[int, int] | None:
    """Return the zero channels (before, behind) that a node adds and nothing else, or None."""
    padding = pad_call(node)
    if padding is None or len(padding) != 6 or any(padding[:4]) or min(padding) < 0 or len(shape_of(node)) != 4:
        return None
    return padding[4], padding[5]
