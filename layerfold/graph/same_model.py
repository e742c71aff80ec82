"""That a description belongs to the model beside it: modules of the same names may be other networks all the same."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from layerfold.errors import UnsupportedGraphError, UsageError
from layerfold.graph.chains import describe_graph
from layerfold.graph.examples import example_images
from layerfold.graph.graph_check import first_trial, shake
from layerfold.graph.network import Network
from layerfold.graph.same_function import OTHER, Agreement, eval_copy, run
from layerfold.graph.trace import record_shapes
from layerfold.graph.traced import TracedGraph
from layerfold.modules import inputs_like, public_call

_P = ParamSpec("_P")
_R = TypeVar("_R")
_PLAIN = (bool, int, float, str, bytes, type(None), type, types.BuiltinFunctionType, torch.dtype, torch.device)
_OF_TORCH = frozenset(vars(nn.Module()))
_CHECKED: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[Network], list[Any]]] = weakref.WeakKeyDictionary()
"""The network that a model was last found to be the one of, and what its modules said then."""


class _UnknownError(Exception):
    """A value of which nobody here can say whether it is the same as before."""


def network_call(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a public function of a ``model`` and its ``net`` a :func:`public_call` that refuses another model's ``net``.

    Raises:
        UsageError: from the function, also where ``net`` was not traced from the ``model`` beside it.
    """
    return public_call(function, check=_check_pair)


def _check_pair(given: Mapping[str, Any]) -> None:
    net: Network = given["net"]
    if net.graph is not None and net.graph.graph is not None:  # a description alone cannot tell
        check_is_of(given["model"], net)


def check_is_of(model: nn.Module, net: Network) -> None:
    """Refuse a model that a network was not traced from.

    The graph is put on a copy of the model and run on two images, as the copy is: what its modules say must be what
    the network describes, and the outputs must agree. Weights may be others. A pair that was found to belong
    together is not run again as long as the modules say the same: public functions that are called in a loop each ask.

    Args:
        model: left untouched.
        net: with its graph.

    Raises:
        UsageError: another class, modules that the graph lacks or that say something else, or other outputs.
    """
    own = type(model).__name__
    if own != net.name:
        raise UsageError(f"net was traced from a {net.name}, not from this {own}; trace this one")
    said = _said_by(model)
    known, said_then = _CHECKED.get(model, (None, None))
    if said is not None and known is not None and known() is net and said == said_then:
        return
    difference = _difference(shake(eval_copy(model)), net, net.graph)
    if difference:
        raise UsageError(f"net was traced from another {own} than this one, which {difference}; trace this one")
    if said is None:
        _CHECKED.pop(model, None)
    else:
        _CHECKED[model] = weakref.ref(net), said


def _said_by(model: nn.Module) -> list[Any] | None:
    """Return what decides what a model computes, but for the values of its weights: to compare two moments.

    Nothing in it keeps the model alive. None where a module holds something that cannot be compared.
    """
    found: list[Any] = []
    places: dict[int, int] = {}
    try:
        for name, part in model.named_modules(remove_duplicate=False):
            place = places.setdefault(id(part), len(found))
            if place < len(found):
                found.append((name, place))  # a module that stands at an earlier place too
                continue
            own = {key: value for key, value in vars(part).items() if key not in _OF_TORCH}
            tensors = {**part._parameters, **part._buffers}
            hooks = (tuple(part._forward_pre_hooks), tuple(part._forward_hooks))  # numbers that torch gives out once
            found.append((name, type(part), _frozen(type(part).forward), _frozen(own), _frozen(tensors), hooks))
    except (_UnknownError, RecursionError):
        return None
    return found


def _frozen(value: Any) -> Any:
    """Return a value as something that equals the same at another time, if its parts were not changed in between."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_frozen(each) for each in value)
    if isinstance(value, dict):
        return type(value), tuple((_frozen(key), _frozen(each)) for key, each in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(_frozen(each) for each in value)
    if isinstance(value, functools.partial):
        return _frozen(value.func), _frozen(value.args), _frozen(value.keywords)
    if isinstance(value, types.FunctionType):
        return weakref.ref(value)
    raise _UnknownError


def _difference(model: nn.Module, net: Network, traced: TracedGraph) -> str:
    kinds = [node.meta for node in traced.graph.nodes if node.op == "placeholder"]
    inputs = inputs_like(model, tuple(example_images(kind["shape"], dtype=kind["dtype"]) for kind in kinds))
    on_model = traced.on(model).eval()
    try:
        trial = first_trial(model, inputs, is_varied=False)
    except UnsupportedGraphError:
        # Whole numbers may be an index, which random ones are not.
        return "does not run on that one's input" if all(each.is_floating_point() for each in inputs) else ""
    try:
        found = [record_shapes(on_model, trial.batches[0]), *(run(on_model, each) for each in trial.batches[1:])]
        again = describe_graph(
            on_model, traced.installs, net.input_shapes, excluded=traced.excluded, merge_pooling=traced.merge_pooling
        )
        is_other = Agreement(trial.reference, on_model).reason(trial.batches, trial.outputs, found) == OTHER
    except Exception:
        is_other = True
    if is_other:
        return "computes something else than that one's graph"
    for layer, known in zip(again.layers, net.layers, strict=False):
        if layer != known:
            return f"has another layer {known.name!r}"
    is_same = (again.layers, again.chains, again.residuals) == (net.layers, net.chains, net.residuals)
    return "" if is_same else "has other chains of layers"
