"""Activations on their way out: each fades to the identity in the course of a training run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from layerfold.graph.copying import copy_module
from layerfold.graph.functional import make_out_of_place
from layerfold.graph.specs import ActivationSpec
from layerfold.graph.vocabulary import make_activation


class FadingActivation(nn.Module):
    """(1 - share) * activation(x) + share * x; of a ReLU that is the slope left of zero, from 0 to 1.

    Args:
        activation: what fades; its weights, if any, stay as they are.

    Attributes:
        share: how much of it is gone; 1 where nobody fades it.

    Source: Fu et al., *DepthShrinker* (ICML 2022, arXiv 2206.00843), section 3.3.
    """

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation.requires_grad_(False)
        self.share = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.share >= 1.0:
            return x
        activated: torch.Tensor = self.activation(x)
        return activated + self.share * (x - activated)


def make_fading(spec: ActivationSpec | None, module: nn.Module | None) -> FadingActivation | None:
    """Return an activation that fades: a copy of ``module``, or one of its kind where a function computes it.

    None where there is no activation, or one of a kind that no table lists, computed by a function.
    """
    activation: Any = copy_module(module) if module is not None else None
    if activation is None and spec is not None:
        activation = make_activation(spec)
    if activation is None:
        return None
    make_out_of_place(activation)
    return FadingActivation(activation)


def fading_activations(module: nn.Module) -> Iterator[FadingActivation]:
    """Yield the activations of a network that fade."""
    return (part for part in module.modules() if isinstance(part, FadingActivation))


def fade_to(module: nn.Module, share: float) -> None:
    """Set how much of each fading activation is gone, 0..1."""
    for part in fading_activations(module):
        part.share = share


def remove_fading(module: nn.Module) -> None:
    """Take the fading activations out, in place: the network computes what it does with all of them gone."""
    fade_to(module, 1.0)
    for part in list(module.modules()):
        if isinstance(part, fx.GraphModule):
            _erase_nodes(part)
        elif isinstance(part, nn.ModuleDict):
            for name in [name for name, each in part.items() if isinstance(each, FadingActivation)]:
                del part[name]


def _erase_nodes(module: fx.GraphModule) -> None:
    parts = dict(module.named_modules())
    found = [
        node
        for node in module.graph.nodes
        if node.op == "call_module" and isinstance(parts[str(node.target)], FadingActivation)
    ]
    for node in found:
        node.replace_all_uses_with(node.all_input_nodes[0])
        module.graph.erase_node(node)
        module.delete_submodule(str(node.target))
    if found:
        module.recompile()
