"""Recognise activations that no table lists: modules and functions that treat each value by itself.

Found by trying: a permutation of the values must permute the results, a value's result must not change with the other
values, and the function must not be affine (an affine one is a scale, not an activation).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

Kwargs = dict[str, Any]
"""Arguments of a call in a graph, by name: a model's own code says which, and of what type."""
_SHAPE = (2, 3, 4, 5)
_known_modules: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_known_functions: dict[Any, bool] = {}


def is_elementwise_module(module: nn.Module) -> bool:
    """Say whether a module without parts and parameters is an elementwise nonlinearity in eval mode."""
    if module not in _known_modules:
        has_state = any(True for _ in module.children()) or bool(module.state_dict())
        # `forward`, since a call would be recorded where this is asked while tracing.
        _known_modules[module] = not has_state and _is_elementwise(module.forward)
    return _known_modules[module]


def is_elementwise_call(function: Any, args: tuple[Any, ...], kwargs: Kwargs) -> bool:
    """Say whether ``function(x, *args, **kwargs)`` with constant arguments is an elementwise nonlinearity in x.

    ``function`` is a callable, or the name of a method of a tensor.
    """
    key = (function, repr(args), repr(kwargs))
    if key not in _known_functions:
        call = getattr(torch.Tensor, function, None) if isinstance(function, str) else function
        _known_functions[key] = call is not None and _is_elementwise(lambda x: call(x, *args, **kwargs))
    return _known_functions[key]


def constants_of(module: nn.Module) -> tuple[tuple[str, float], ...]:
    """Return the numbers that a module without parameters was made with, by name."""
    return tuple(
        (name, float(value))
        for name, value in sorted(vars(module).items())
        if isinstance(value, (int, float)) and name not in ("training", "inplace") and not name.startswith("_")
    )


@torch.no_grad()
def _is_elementwise(function: Callable[[torch.Tensor], Any]) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(_SHAPE, generator=generator, dtype=torch.float64)
    order = torch.randperm(x.numel(), generator=generator)
    # Half of the values become others of another size and mean: no sum, maximum or median stays what it was.
    is_kept = torch.rand(_SHAPE, generator=generator) < 0.5
    changed = [torch.where(is_kept, x, 100 * x.roll(1) + shift) for shift in (-500, 500)]
    try:
        with warnings.catch_warnings():  # it is tried on what it may not be made for
            warnings.simplefilter("ignore")
            y, permuted = function(x.clone()), function(x.view(-1)[order].view(_SHAPE))
            others = [function(each.clone()) for each in changed]
            zero, one = function(torch.zeros_like(x)), function(torch.ones_like(x))
    except Exception:  # whatever it is, it does not take a lone feature map
        return False
    if not all(isinstance(each, torch.Tensor) and each.shape == x.shape for each in (y, permuted, *others, zero, one)):
        return False
    # A cast is no activation: what it gives is of another dtype.
    if y.dtype != x.dtype or not torch.equal(y.reshape(-1)[order], permuted.reshape(-1)):
        return False
    is_local = all(torch.equal(y[is_kept], each[is_kept]) for each in others)
    return is_local and not torch.allclose(y, zero + (one - zero) * x)
