"""A deep copy of whatever module a caller has, so that the original is left untouched."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from layerfold.errors import UsageError
from layerfold.terminal import one_line

_AnyModule = TypeVar("_AnyModule", bound=nn.Module)
_DEEPEST = 4


def copy_module(module: _AnyModule, *, shared: Iterable[torch.Tensor] = (), is_apart: bool = False) -> _AnyModule:
    """Return a deep copy, also of a module that holds what Python or torch cannot copy.

    Tensors with a history (hooks leave them as attributes) are copied without it. What cannot be copied at all, such as
    locks, generators and open files, is shared with the original.

    Args:
        module: left untouched.
        shared: its tensors that the copy has, too.
        is_apart: the copy is to be changed, so it shares no parameter, not even one that a copy shares otherwise
            (:func:`layerfold.importance.sharing.share_parameters`).

    Raises:
        UsageError: the module refuses to be copied.
    """
    own = {id(each): each for each in shared}
    if is_apart:
        own |= {
            id(each): nn.Parameter(each.detach().clone(), requires_grad=each.requires_grad)
            for each in module.parameters()
            if type(each).__deepcopy__ is not nn.Parameter.__deepcopy__
        }
    try:
        return copy.deepcopy(module, _without_history(module) | own)
    except Exception:  # whatever an attribute of the caller's own raises
        try:
            return copy.deepcopy(module, _without_history(module) | _uncopied(module) | own)
        except Exception as error:
            cause = one_line(str(error), most=200) or type(error).__name__
            raise UsageError(
                f"model of class {type(module).__name__} cannot be copied ({cause}); give it a "
                "__deepcopy__, or build it without that part"
            ) from error


def _without_history(module: nn.Module) -> dict[int, Any]:
    """Return copies of the tensors that have a history, for ``deepcopy``, which refuses them, by their id."""
    found: dict[int, Any] = {}
    for part in module.modules():
        for value in _leaves(vars(part), _DEEPEST):
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                found[id(value)] = value.detach().clone()
    return found


def _uncopied(module: nn.Module) -> dict[int, Any]:
    """Return the attributes that cannot be copied, as they are, by their id."""
    own: dict[int, Any] = {id(each): each for each in module.modules()}
    own |= {id(each): each for each in [*module.parameters(), *module.buffers()]} | _without_history(module)
    found = {}
    for part in module.modules():
        for value in _leaves(vars(part), _DEEPEST):
            if id(value) not in own:
                try:
                    copy.deepcopy(value, dict(own))
                except Exception:
                    found[id(value)] = value
    return found


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    """Yield what a container holds, and what containers in it hold; deep ones whole."""
    if depth and isinstance(value, dict):
        value = list(value.values())
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            yield from _leaves(each, depth - 1)
    else:
        yield value
