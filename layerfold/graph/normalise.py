"""What libraries pack into one module, taken apart: so that tracing sees convs, norms and activations."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class NormBeforeAct(nn.BatchNorm2d):
    """The BatchNorm half of a fused norm-and-activation module, under the name of the whole.

    Attributes:
        act_name: name of the other half beside it, or empty where there is none.
    """

    act_name: str = ""


def normalise_modules(model: nn.Module) -> nn.Module:
    """Return a deep copy of ``model`` in which timm's ``BatchNormAct2d`` is taken apart; ``model`` stays as it is."""
    root = copy.deepcopy(model)
    modules: list[tuple[str, Any]] = list(root.named_modules())
    for name, module in modules:
        if type(module).__name__ == "BatchNormAct2d" and _is_plain_drop(module):
            parent, own_name = root.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            norm = _norm_of(module)
            if not isinstance(module.act, nn.Identity):
                norm.act_name = f"{own_name}_act"
                parent.add_module(norm.act_name, module.act)
            setattr(parent, own_name, norm)
    return root


def _is_plain_drop(module: Any) -> bool:
    return isinstance(getattr(module, "drop", None), (nn.Identity, type(None)))


def _norm_of(fused: Any) -> NormBeforeAct:
    affine = getattr(fused, "weight", None) is not None
    norm = NormBeforeAct(
        fused.num_features if hasattr(fused, "num_features") else fused.running_mean.shape[0],
        eps=fused.eps,
        momentum=getattr(fused, "momentum", 0.1),
        affine=affine,
        track_running_stats=True,
    )
    norm.running_mean, norm.running_var = fused.running_mean, fused.running_var
    norm.num_batches_tracked = getattr(fused, "num_batches_tracked", torch.tensor(0))
    if affine:
        norm.weight, norm.bias = _as_parameter(fused.weight), _as_parameter(fused.bias)
    norm.train(fused.training)
    return norm


def _as_parameter(value: torch.Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
