"""torch.fx tracing with the leaf rules of timm and torchvision, and with the example input's shape and kind known."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from layerfold.graph.conv_forwards import computes_conv, runs_class_forward
from layerfold.graph.elementwise import Kwargs, is_elementwise_module
from layerfold.graph.knowledge import Known, evaluate
from layerfold.graph.normalise import NormBeforeAct, SyncNormBeforeAct
from layerfold.graph.proxies import ValueProxy
from layerfold.graph.weights import derives_weight

_LEAF_NAMES = frozenset({"FrozenBatchNorm2d", "StochasticDepth", "DropPath", "DropBlock2d", "DropBlock2D"})
# timm keeps it whole since tracing loses its in-place multiplication; `make_functional` does not.
_TRACED_ANYWAY = frozenset({"NormFreeBlock"})
# They make tensors from sizes, and take no tensor by which a proxy could be noticed.
_FACTORIES = (
    "arange",
    "as_tensor",
    "empty",
    "eye",
    "finfo",
    "full",
    "linspace",
    "logspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
)
_TRACING = threading.RLock()


class Tracer(fx.Tracer):
    """Keeps convs, norms and activations whole, and writes a fused norm-and-activation as two nodes.

    Args:
        inputs: the example inputs, one for each argument of the model that becomes an input of the graph; further
            arguments have their defaults.
        opaque: qualified names of modules to keep whole.

    Attributes:
        failed_in: after a failure, the qualified name of the innermost module that was being traced.
        num_unknown: how many nodes have a value that is not known.
    """

    def __init__(self, inputs: tuple[torch.Tensor, ...], opaque: Iterable[str]) -> None:
        leaf_modules, leaf_functions = _leaf_rules()
        super().__init__(autowrap_functions=leaf_functions)
        self._leaf_modules, self._inputs, self._opaque = leaf_modules, inputs, frozenset(opaque)
        self.failed_in, self.num_unknown = "", 0
        self._split_off: list[nn.Module] = []
        self._thread = threading.get_ident()
        self._is_evaluating = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of a module; one trace at a time, since torch.fx changes ``nn.Module`` while it runs."""
        with _TRACING, torch.random.fork_rng(devices=[]), torch.no_grad(), _traceable_factories():
            return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._opaque:
            return True
        if isinstance(m, nn.Conv2d):
            return computes_conv(m) or derives_weight(m) or bool(m._forward_hooks or m._forward_pre_hooks)
        if isinstance(m, (nn.modules.batchnorm._BatchNorm, *self._leaf_modules)):
            return runs_class_forward(m)
        if type(m).__name__ in _LEAF_NAMES or type(m).__module__.startswith("timm.layers.activations"):
            return True
        is_leaf = super().is_leaf_module(m, module_qualified_name) or is_elementwise_module(m)
        return is_leaf and runs_class_forward(m)

    def whole(self, root: nn.Module) -> list[str]:
        """Return the names of modules with parts that will be called as one."""
        found = []
        for name, part in root.named_modules():
            is_called = type(part).forward is not nn.Module.forward  # a ModuleList only holds others
            if name and is_called and any(True for _ in part.children()) and self.is_leaf_module(part, name):
                found.append(name)
        return found

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make a placeholder for each input that is given; what has a default and is not given keeps the default."""
        names = [name for _, name in zip(self._inputs, argument_names(self.root, len(self._inputs)), strict=False)]
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in names]

        def run(root: nn.Module, *inputs: Any) -> Any:
            call: Any = root._call_impl
            return call(*inputs)  # with the hooks on the root, and whatever forward it has

        return run, [self.root, *proxies]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return ValueProxy(node, self)

    def create_arg(self, a: Any) -> Any:
        # Asked by its type: a proxy says that it is of the class of what it stands for.
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: Kwargs, *more: Any, **options: Any
    ) -> Any:
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *more, **options)
        if issubclass(type(proxy), ValueProxy):
            with self._plainly():
                proxy.known = self._known(kind, target, args, kwargs)
            self.num_unknown += proxy.known is None
            if proxy.known is not None and isinstance(proxy.known.value, torch.Tensor):
                proxy.node.meta["shape"] = tuple(proxy.known.value.shape)
        return proxy

    def _known(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: Kwargs) -> Known | None:
        if kind == "placeholder":
            value = self._inputs[sum(node.op == "placeholder" for node in self.graph.nodes) - 1]
            return Known.of(value, self._inputs[0].shape[0] if value.dim() else 0)
        if kind == "get_attr":
            return Known.of(operator.attrgetter(target)(self.root))
        if kind == "call_module":
            return evaluate(self.root.get_submodule(target), args, kwargs, name=target)
        if kind == "call_method":
            return evaluate(lambda own, *rest, **named: getattr(own, target)(*rest, **named), args, kwargs, name=target)
        return evaluate(target, args, kwargs)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Run modules as they are, for their values, while torch.fx listens to every call of one."""
        before, self._is_evaluating = self._is_evaluating, True
        try:
            yield
        finally:
            self._is_evaluating = before

    def _is_foreign(self) -> bool:
        """Say whether a call that torch.fx caught is none that it traces: one of another thread, for example."""
        return self._is_evaluating or threading.get_ident() != self._thread

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._is_foreign() else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Kwargs) -> Any:
        if self._is_foreign():
            return forward(*args, **kwargs)
        if any(m is each for each in self._split_off):
            return args[0]  # a container runs all that it holds; this one was called behind its norm
        try:
            value = super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise
        if isinstance(m, (NormBeforeAct, SyncNormBeforeAct)) and m.act_name:
            parent = self.root.get_submodule(self.path_of_module(m).rpartition(".")[0])
            activation = parent.get_submodule(m.act_name)
            self._split_off.append(activation)
            return super().call_module(activation, activation.forward, (value,), {})
        return value


def argument_names(module: nn.Module, count: int) -> list[str]:
    """Return the names of a module's arguments that tensors can be given to by position, at least ``count`` of them
    where it takes any number."""
    parameters = inspect.signature(module.forward).parameters.values()
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    for each in parameters:
        if each.kind is each.VAR_POSITIONAL:
            names += [f"{each.name}_{number}" for number in range(count - len(names))]
    return names


def _leaf_rules() -> tuple[tuple[type[nn.Module], ...], tuple[Callable[..., Any], ...]]:
    """Return timm's own list of what must not be traced through; nothing where timm is absent."""
    try:
        from timm.models import _features_fx
    except ImportError:
        return (), ()
    rules: Any = _features_fx
    modules = tuple(kind for kind in rules.get_notrace_modules() if kind.__name__ not in _TRACED_ANYWAY)
    return modules, tuple(rules.get_notrace_functions())


@contextmanager
def _traceable_factories() -> Iterator[None]:
    """Let ``torch.zeros(x.shape[0], 4, device=x.device)`` and its like be recorded."""
    originals = {name: getattr(torch, name) for name in _FACTORIES}
    try:
        for name, original in originals.items():
            setattr(torch, name, _recorded(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def _recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = _first_proxy((args, kwargs))
        return (
            function(*args, **kwargs)
            if proxy is None
            else proxy.tracer.create_proxy("call_function", function, args, kwargs)
        )

    return call


def _first_proxy(value: Any) -> Any:
    if issubclass(type(value), fx.Proxy):
        return value
    parts = value.values() if type(value) is dict else value if type(value) in (tuple, list) else ()
    return next((found for found in map(_first_proxy, parts) if found is not None), None)
