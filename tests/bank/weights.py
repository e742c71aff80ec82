"""Random weights that show mistakes: no norm is neutral, no gain is zero, and values stay of one order of size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def randomise(model: nn.Module, image: torch.Tensor) -> None:
    """Give a model, in place, random weights and random BatchNorm statistics; seeded by ``torch.manual_seed``.

    Every BatchNorm gets a running mean and variance that are those of its input on ``image`` times random factors
    (0.5 to 2 for the variance), and weights of 0.5 to 1.5: with statistics from nowhere the values of a network of
    150 layers would leave float32. Factors that libraries start at zero (layer scale, the last norm of a block) get
    0.5 to 1.5 too.
    """
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] == "bias":
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif not any(size > 1 for size in parameter.shape[1:]) and parameter.abs().max() < 1e-3:
            parameter.copy_(torch.empty_like(parameter).uniform_(0.5, 1.5))
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
    x = inputs[0].transpose(0, 1).flatten(1)
    variance, mean = torch.var_mean(x, dim=1, correction=0)
    floor = 0.1 * variance.mean() + 1e-3  # a channel that is zero on this image would be blown up on another
    variance = variance.clamp_min(floor)
    norm.running_var.copy_(variance * torch.empty_like(variance).uniform_(0.5, 2.0))
    norm.running_mean.copy_(mean + 0.1 * variance.sqrt() * torch.randn_like(mean))
    if norm.weight is not None:
        norm.weight.copy_(torch.empty_like(norm.weight).uniform_(0.5, 1.5))
        norm.bias.copy_(0.1 * torch.randn_like(norm.bias))
