"""Functional convs, norms and average pooling as modules that hold the same parameters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from layerfold.graph.elementwise import Kwargs
from layerfold.graph.rewrites.constants import (
    add_module,
    attribute_name,
    free_name,
    get_tensor,
    is_read_once,
    replace_by_module,
    shape_of,
    take_tensor,
)

if TYPE_CHECKING:
    from layerfold.graph.rewrites import Install

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def rewrite_calls(module: fx.GraphModule) -> Iterator[Install]:
    """Rewrite ``F.conv2d``, ``F.batch_norm`` and ``F.avg_pool2d`` whose weights are parameters used here alone."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or len(shape_of(node)) != 4:
            continue
        if node.target in (F.conv2d, torch.conv2d):
            yield from _rewrite(module, node, _CONV, ("weight", "bias"), _make_conv, "conv")
        elif node.target is F.batch_norm:
            if not _arguments(node, _NORM).get("training", False):
                yield from _rewrite(
                    module, node, _NORM, ("running_mean", "running_var", "weight", "bias"), _make_norm, "norm"
                )
        elif node.target in (F.avg_pool2d, torch._C._nn.avg_pool2d):
            yield from _rewrite(module, node, _POOL, (), _make_pool, "pool")


def _arguments(node: fx.Node, names: tuple[str, ...]) -> Kwargs:
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _rewrite(
    module: fx.GraphModule, node: fx.Node, names: tuple[str, ...], tensors: tuple[str, ...], make: Any, suffix: str
) -> Iterator[Install]:
    arguments = _arguments(node, names)
    value = arguments.pop("input")
    given: dict[str, str] = {}
    for name in tensors:
        tensor = arguments.pop(name, None)
        if tensor is None:
            continue
        attribute = attribute_name(tensor) if getattr(tensor, "op", "") == "get_attr" else None
        if attribute is None or not is_read_once(node.graph, attribute):
            return
        given[name] = attribute
    # An option that the graph works out, as a window of the size of the feature map, is no constant.
    if len(node.all_input_nodes) != 1 + len(given) or (tensors and tensors[0] not in given):
        return
    owner = next(iter(given.values())).rpartition(".")[0] if given else ""
    name = free_name(module, f"{owner}.{node.name}_{suffix}" if owner else f"{node.name}_{suffix}")
    install = partial(_install, name=name, given=given, options=arguments, make=make)
    install(module)
    replace_by_module(node, name, value)
    yield install


def _install(root: nn.Module, *, name: str, given: dict[str, str], options: Kwargs, make: Any) -> None:
    tensors = {argument: get_tensor(root, attribute) for argument, attribute in given.items()}
    for attribute in given.values():
        take_tensor(root, attribute, moved=True)
    add_module(root, name, make(**tensors, **options))


def _as_parameter(value: torch.Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)


def _make_conv(weight: torch.Tensor, bias: torch.Tensor | None = None, groups: int = 1, **options: Any) -> nn.Module:
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        groups=groups,
        bias=bias is not None,
        device="meta",
        **options,
    )
    conv.weight = _as_parameter(weight)
    if bias is not None:
        conv.bias = _as_parameter(bias)
    return conv


def _make_norm(
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module:
    norm = nn.BatchNorm2d(running_mean.numel(), eps=eps, momentum=momentum, affine=weight is not None)
    norm.running_mean, norm.running_var = running_mean, running_var
    if weight is not None:
        norm.weight = _as_parameter(weight)
        norm.bias = _as_parameter(torch.zeros_like(weight) if bias is None else bias)
    return norm


def _make_pool(kernel_size: Any, stride: Any = None, **options: Any) -> nn.Module:
    return nn.AvgPool2d(kernel_size, stride or None, **options)
