"""That a description belongs to the model beside it: modules of the same names may be other networks all the same."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

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
_PLAIN = (bool, int, float, str, type(None), type, types.FunctionType, types.BuiltinFunctionType)
_CHECKED: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[Network], list[Any]]] = weakref.WeakKeyDictionary()
"""The network that a model was last found to be the one of, and what its modules said then."""


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
    if known is not None and known() is net and said == said_then:
        return
    difference = _difference(shake(eval_copy(model)), net, net.graph)
    if difference:
        raise UsageError(f"net was traced from another {own} than this one, which {difference}; trace this one")
    _CHECKED[model] = weakref.ref(net), said


def _said_by(model: nn.Module) -> list[Any]:
    """Return what decides what a model computes, but for the values of its weights: to compare two moments."""
    return [
        (
            name,
            type(part),
            [(key, value) for key, value in vars(part).items() if _is_plain(value) and key != "training"],
            [(key, None if each is None else each.shape) for key, each in part._parameters.items()],
            [(key, None if each is None else each.shape) for key, each in part._buffers.items()],
            [*part._forward_pre_hooks.values(), *part._forward_hooks.values()],
        )
        for name, part in model.named_modules()
    ]


def _is_plain(value: Any) -> bool:
    """Say whether a value compares with another one by what it is."""
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, _PLAIN)


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
