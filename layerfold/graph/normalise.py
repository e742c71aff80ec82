"""What libraries pack into one module, taken apart: so that tracing sees convs, norms and activations."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from layerfold.graph.copying import copy_module

_FUSED = ("BatchNormAct2d", "SyncBatchNormAct", "FrozenBatchNormAct2d")


class NormBeforeAct(nn.BatchNorm2d):
    """The BatchNorm half of a fused norm-and-activation module, under the name of the whole.

    Attributes:
        act_name: name of the other half beside it, or empty where there is none.
        is_frozen: whether its statistics stay as they are in training too.
    """

    act_name: str = ""
    is_frozen: bool = False

    def train(self, mode: bool = True) -> NormBeforeAct:
        return super().train(mode and not self.is_frozen)


class SyncNormBeforeAct(nn.SyncBatchNorm):
    """As :class:`NormBeforeAct`, with statistics over all processes in training."""

    act_name: str = ""


def normalise_modules(model: nn.Module, whole: Collection[str] = ()) -> nn.Module:
    """Return a deep copy of ``model`` in which timm's fused norms and activations are taken apart.

    Args:
        model: left untouched.
        whole: names of modules that run by their own forward, which would not call the activation behind a norm: what
            is inside them stays as it is.
    """
    root = copy_module(model)
    take_apart(root, whole)
    return root


def take_apart(root: nn.Module, whole: Collection[str] = ()) -> None:
    """Do so in place."""
    inside = tuple(f"{name}." for name in whole)
    modules: list[tuple[str, Any]] = list(root.named_modules())
    for name, module in modules:
        if type(module).__name__ in _FUSED and _is_plain_drop(module) and not name.startswith(inside):
            parent, own_name = root.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
            norm = _norm_of(module)
            activation = getattr(module, "act", None)
            if not isinstance(activation, (nn.Identity, type(None))):
                norm.act_name = f"{own_name}_act"
                parent.add_module(norm.act_name, activation)
            setattr(parent, own_name, norm)


def _is_plain_drop(module: Any) -> bool:
    return isinstance(getattr(module, "drop", None), (nn.Identity, type(None)))


def _norm_of(fused: Any) -> NormBeforeAct | SyncNormBeforeAct:
    affine = getattr(fused, "weight", None) is not None
    norm_class = SyncNormBeforeAct if isinstance(fused, nn.SyncBatchNorm) else NormBeforeAct
    norm = norm_class(
        fused.num_features if hasattr(fused, "num_features") else fused.running_mean.shape[0],
        eps=fused.eps,
        momentum=getattr(fused, "momentum", 0.1),
        affine=affine,
        track_running_stats=True,
    )
    norm.running_mean, norm.running_var = fused.running_mean, fused.running_var
    norm.num_batches_tracked = getattr(fused, "num_batches_tracked", None)
    if affine:
        norm.weight, norm.bias = _as_parameter(fused.weight), _as_parameter(fused.bias)
    if isinstance(norm, NormBeforeAct):
        norm.is_frozen = not isinstance(fused, nn.modules.batchnorm._BatchNorm)
    norm.train(fused.training)
    return norm


def _as_parameter(value: torch.Tensor) -> nn.Parameter:
    return value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
