"""A network whose kernels and feature maps are rounded as its quantised ONNX file rounds them, to be trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional as F

from layerfold.errors import UsageError
from layerfold.graph.copying import copy_module
from layerfold.graph.functional import make_out_of_place
from layerfold.graph.vocabulary import conv_obstacle, is_norm
from layerfold.graph.weights import derives_weight
from layerfold.merge.algebra import fold_norm
from layerfold.merge.deploy_form import set_submodule
from layerfold.merge.segment import TrainSegment
from layerfold.qat._fake import RoundedFeatureMap, round_weight
from layerfold.qat._places import Place

_PREFIX = "rounded_"

Ranges = Mapping[str, tuple[float, float]]
"""Ranges (low, high) of feature maps, by the names of the nodes of the deploy form that give them."""


class RoundedSegment(nn.Module):
    """A segment as the one conv that it becomes, its merged kernel rounded to int8.

    The kernel is computed at each pass from the weights of its layers and from the running statistics of their norms,
    so that these weights are what is trained.
    """

    def __init__(self, segment: TrainSegment) -> None:
        super().__init__()
        self.segment = segment

    def forward(self, x: Tensor) -> Tensor:
        spec = self.segment.merged
        affine = self.segment.trained_map().as_conv(spec)
        (top, bottom), (left, right) = spec.padding
        return F.conv2d(
            F.pad(x, (left, right, top, bottom)),
            round_weight(affine.weight_OIHW.to(x.dtype)),
            affine.bias.to(x.dtype),
            stride=spec.stride,
            dilation=spec.dilation,
            groups=spec.groups,
        )


class RoundedConv(nn.Module):
    """A conv with the norm behind it folded in by its running statistics, its kernel rounded to int8."""

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        affine = fold_norm(self.conv, self.norm)
        changed, bias = {"weight": round_weight(affine.weight_OIHW.to(x.dtype))}, affine.bias.to(x.dtype)
        # By the conv's own forward: some pad by the size of what they are given.
        if self.conv.bias is not None:
            return cast(Tensor, functional_call(self.conv, {**changed, "bias": bias}, (x,)))
        return cast(Tensor, functional_call(self.conv, changed, (x,))) + bias.view(-1, 1, 1)


class RoundedLinear(nn.Module):
    """A linear layer, its weight rounded to int8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, round_weight(self.linear.weight), self.linear.bias)


def rounded_network(
    form: fx.GraphModule,
    places: Sequence[Place],
    *,
    is_learned: bool = True,
    kernels: Container[str] | None = None,
) -> fx.GraphModule:
    """Return a network with the same parameters as ``form`` whose kernels and feature maps are rounded to 8 bits.

    Norms behind convs are folded by their running statistics, which do not change meanwhile.

    Args:
        form: a train form, a deploy form or any traced network; shares its parameters with the result.
        places: what the quantised ONNX file of its deploy form rounds (:func:`find_places`).
        is_learned: whether the ranges of feature maps are parameters that train.
        kernels: nodes whose kernels are rounded; None for all.

    Raises:
        UsageError: a conv whose weight is computed from other parameters; those train in deploy form.
    """
    copies: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(form.graph, copies))
    module = fx.GraphModule(form, graph, class_name=f"Rounded{form.__class__.__name__}")
    module.meta = {}
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    for node in [each for each in graph.nodes if each.op == "call_module"]:
        if kernels is not None and node.name not in kernels:
            continue
        part = module.get_submodule(str(node.target))
        if isinstance(part, nn.Conv2d):
            norm = _norm_behind(node, part, calls, module)
            set_submodule(module, str(node.target), RoundedConv(_trainable(part, node), _module_of(norm, module)))
            if norm is not None:
                norm.replace_all_uses_with(node)
                graph.erase_node(norm)
        elif isinstance(part, TrainSegment):
            set_submodule(module, str(node.target), RoundedSegment(part))
        elif isinstance(part, nn.Linear):
            set_submodule(module, str(node.target), RoundedLinear(part))
    nodes = {node.name: node for node in graph.nodes}
    for place in places:
        if place.node is not None:
            name = f"{_PREFIX}{node_of_group(place.group, places)}"
            if not hasattr(module, name):
                module.add_submodule(name, RoundedFeatureMap(is_learned=is_learned, bounds=(place.low, place.high)))
            _round_behind(nodes[place.node], name, module)
    module.delete_all_unused_submodules()
    graph.lint()
    module.recompile()
    module.train(form.training)
    return module


def _norm_behind(node: fx.Node, conv: nn.Conv2d, calls: Counter[str], module: fx.GraphModule) -> fx.Node | None:
    """Return the norm that merging folds into a conv (``fold_norms``), or None."""
    if conv_obstacle(conv) is not None or len(node.users) != 1 or calls[str(node.target)] > 1:
        return None
    (reader,) = node.users
    is_alone = reader.op == "call_module" and calls[str(reader.target)] == 1
    return reader if is_alone and is_norm(module.get_submodule(str(reader.target))) else None


def _module_of(node: fx.Node | None, module: fx.GraphModule) -> nn.Module | None:
    return None if node is None else module.get_submodule(str(node.target))


def _trainable(conv: nn.Conv2d, node: fx.Node) -> nn.Conv2d:
    if derives_weight(conv):
        raise UsageError(
            f"precision='int8': the conv {node.target} computes its weight from other parameters; train in float32, "
            "merge, and train the merged network in int8 (--int8-form deploy)"
        )
    return conv


def _round_behind(node: fx.Node, name: str, module: fx.GraphModule) -> None:
    with module.graph.inserting_after(node):
        rounded = module.graph.call_module(name, (node,))
    node.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
    for reader in rounded.users:
        part = _module_of(reader, module) if reader.op == "call_module" else None
        if getattr(part, "inplace", False):
            # What was rounded is needed for its gradient; the form's own module is left as it is.
            apart: Any = copy_module(cast(nn.Module, part))
            make_out_of_place(apart)
            set_submodule(module, str(reader.target), apart)


def node_of_group(group: str, places: Sequence[Place]) -> str | None:
    """Return the first node that gives a feature map of a group: its range is kept by that name."""
    return next((each.node for each in places if each.group == group and each.node is not None), None)


def rounded_maps(module: nn.Module) -> Iterator[tuple[str, RoundedFeatureMap]]:
    """Yield the rounded feature maps of a network, with the nodes of the deploy form behind which they stand."""
    for name, part in module.named_modules():
        if isinstance(part, RoundedFeatureMap):
            yield name.removeprefix(_PREFIX), part


def ranges_of(module: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the ranges of a rounded network."""
    return {name: part.range for name, part in rounded_maps(module)}


def set_ranges(module: nn.Module, ranges: Ranges) -> None:
    """Give a rounded network's feature maps their ranges, in place."""
    for name, part in rounded_maps(module):
        part.set_range(*ranges[name])


@torch.no_grad()
def measure_ranges(module: nn.Module, batches: Iterable[Sequence[Tensor]]) -> None:
    """Give each rounded feature map the range that its values have on some images: the mean over the batches.

    Args:
        module: a rounded network; its feature maps are not rounded meanwhile. It is run in the mode that it is in.
        batches: what the module takes, each: images [batch, channels, height, width], where the module is.
    """
    lows: dict[str, list[float]] = {}
    highs: dict[str, list[float]] = {}

    def note(name: str) -> Any:
        def hook(part: nn.Module, given: tuple[Tensor, ...]) -> None:
            low, high = given[0].aminmax()
            lows.setdefault(name, []).append(float(low))
            highs.setdefault(name, []).append(float(high))

        return hook

    maps = list(rounded_maps(module))
    for _, part in maps:
        part.set_range(0.0, 0.0)
    handles = [part.register_forward_pre_hook(note(name)) for name, part in maps]
    try:
        for values in batches:
            module(*values)
    finally:
        for handle in handles:
            handle.remove()
    for name, part in maps:
        part.set_range(sum(lows[name]) / len(lows[name]), sum(highs[name]) / len(highs[name]))
