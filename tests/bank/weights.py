"""Random weights that show mistakes: no norm is neutral, no factor is zero, and values stay of one order of size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def randomise(model: nn.Module, image: torch.Tensor) -> None:
    """Give a model, in place, random weights and random norms (:func:`randomise_norms`).

    Factors that libraries start at zero (layer scale, the gain of a branch without norms) get 0.1 to 0.4: they count,
    and no branch blows up the sum that it is added to.
    """
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "bias":
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif not any(size > 1 for size in parameter.shape[1:]) and parameter.abs().max() < 1e-3:
            parameter.copy_(torch.empty_like(parameter).uniform_(0.1, 0.4))
    randomise_norms(model, image)


@torch.no_grad()
def randomise_norms(model: nn.Module, image: torch.Tensor) -> None:
    """Give every BatchNorm of a model, in place, random weights and random statistics that fit the network.

    The running variance is the mean square of the norm's input on ``image`` times a random factor of 0.5 to 2 for each
    channel, so that values stay near 1 through any depth and any removal of activations. Over all channels, and without
    taking the real mean away: what fits a few pixels channel by channel leaves rounding errors on other images.
    """
    hooks = [
        module.register_forward_pre_hook(_set_statistics)
        for module in model.modules()
        if getattr(module, "running_mean", None) is not None
    ]
    model.eval()
    model(image)
    for hook in hooks:
        hook.remove()


def _set_statistics(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    square = float(inputs[0].square().mean()) + 1e-6
    norm.running_var.uniform_(0.5, 2.0).mul_(square)
    norm.running_mean.normal_().mul_(0.3 * square**0.5)
    if norm.weight is not None:
        norm.weight.copy_(torch.empty_like(norm.weight).uniform_(0.5, 1.5))
        norm.bias.copy_(0.1 * torch.randn_like(norm.bias))
