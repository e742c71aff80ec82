"""From a module to a Network: torch.fx tracing with the leaf rules of timm and torchvision."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from layerfold.errors import UnsupportedGraphError, UsageError, nearest_names
from layerfold.graph.chains import describe_graph
from layerfold.graph.elementwise import is_elementwise_module
from layerfold.graph.functional import make_functional
from layerfold.graph.network import Network
from layerfold.graph.normalise import NormBeforeAct, SyncNormBeforeAct, normalise_modules
from layerfold.graph.rewrites import Install, rewrite_graph
from layerfold.graph.weights import copy_module

_LEAF_NAMES = frozenset({"FrozenBatchNorm2d", "StochasticDepth", "DropPath", "DropBlock2d", "DropBlock2D"})
# timm keeps it whole since tracing loses its in-place multiplication; `make_functional` does not.
_TRACED_ANYWAY = frozenset({"NormFreeBlock"})


class _Tracer(fx.Tracer):
    """Keeps convs, norms and activations whole, and writes a fused norm-and-activation as two nodes.

    Attributes:
        failed_in: after a failure, the qualified name of the innermost module that was being traced.
    """

    def __init__(
        self,
        leaf_modules: tuple[type[nn.Module], ...],
        leaf_functions: tuple[Callable[..., Any], ...],
        opaque: Iterable[str],
    ) -> None:
        super().__init__(autowrap_functions=leaf_functions)
        self._leaf_modules, self._opaque = leaf_modules, frozenset(opaque)
        self.failed_in = ""
        self._split_off: list[nn.Module] = []

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        if qualified_name in self._opaque:
            return True
        if isinstance(module, (nn.Conv2d, nn.modules.batchnorm._BatchNorm, *self._leaf_modules)):
            return True
        if type(module).__name__ in _LEAF_NAMES or type(module).__module__.startswith("timm.layers.activations"):
            return True
        return super().is_leaf_module(module, qualified_name) or is_elementwise_module(module)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
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


def _leaf_rules() -> tuple[tuple[type[nn.Module], ...], tuple[Callable[..., Any], ...]]:
    """Return timm's own list of what must not be traced through; nothing where timm is absent."""
    try:
        from timm.models import _features_fx
    except ImportError:
        return (), ()
    rules: Any = _features_fx
    modules = tuple(kind for kind in rules.get_notrace_modules() if kind.__name__ not in _TRACED_ANYWAY)
    return modules, tuple(rules.get_notrace_functions())


def trace_module(model: nn.Module) -> tuple[fx.GraphModule, tuple[str, ...]]:
    """Trace a normalised copy of ``model`` in eval mode; the model itself is left untouched.

    A part that cannot be traced stays whole, as one node: first the innermost module that fails, then, where the code
    around it cannot do with that, the module that holds it.

    Returns:
        The traced module, and one note for each part that stayed whole.

    Raises:
        UnsupportedGraphError: the model's own forward cannot be traced; names the line and the cause.
    """
    root = normalise_modules(model).eval()
    leaf_modules, leaf_functions = _leaf_rules()
    opaque: dict[str, str] = {}
    while True:
        tracer = _Tracer(leaf_modules, leaf_functions, opaque)
        try:
            graph = tracer.trace(root)
            break
        except Exception as error:
            cause = " ".join(str(error).split())[:200]
            part = tracer.failed_in
            if not part or part in opaque:
                raise UnsupportedGraphError(
                    f"model {type(model).__name__} cannot be traced in its own forward{_source_line(error)}: {cause}; "
                    "move that code into a module of its own, which then stays whole, or write it without "
                    "control flow that depends on data"
                ) from error
            opaque = {name: why for name, why in opaque.items() if not name.startswith(f"{part}.")}
            kind = type(root.get_submodule(part)).__name__
            opaque[part] = f"{part} ({kind}) is kept whole, since it cannot be traced{_source_line(error)}: {cause}"
    return fx.GraphModule(root, graph, class_name=type(model).__name__), tuple(opaque.values())


def _source_line(error: Exception) -> str:
    """Return where in the model's own code tracing failed, for the error line; empty where that cannot be told."""
    own = Path(torch.__file__).parent, Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(Path(frame.filename).is_relative_to(folder) for folder in own) and frame.line:
            return f" ({Path(frame.filename).name}:{frame.lineno} `{frame.line.strip()}`)"
    return ""


def trace_network(
    model: nn.Module,
    example_input: torch.Tensor | tuple[torch.Tensor, ...],
    exclude: Iterable[str] = (),
    *,
    merge_pooling: bool = False,
) -> Network:
    """Trace a CNN into layers, chains, residuals and barriers (DESIGN.md, section 3).

    Args:
        model: any module that torch.fx can trace; left untouched. Submodules that it cannot trace are kept whole.
        example_input: [N, C, H, W], or a tuple of the model's inputs. Sizes in the result are those at this input.
        exclude: qualified names of modules whose convs stay out of every chain, with everything below them.
        merge_pooling: take average pooling over windows of one size as layers, so that it can be merged with convs,
            instead of as barriers between chains.

    Returns:
        A description only; it holds no weights.

    Raises:
        UnsupportedGraphError: the model cannot be traced, cannot run on the input, or has no conv to work on.
        UsageError: ``exclude`` names no module of the model, or ``example_input`` holds no tensors or too many.
    """
    names = {name for name, _ in model.named_modules()}
    excluded = tuple(exclude)
    for name in excluded:
        if name not in names or not name:
            raise UsageError(f"exclude={name!r}: the model has no module of that name{nearest_names(name, names)}")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    if not inputs or not all(isinstance(value, torch.Tensor) for value in inputs):
        found = ", ".join(type(value).__name__ for value in inputs) or "an empty tuple"
        raise UsageError(f"example_input: expected a tensor [N, C, H, W], or a tuple of tensors, got {found}")
    module, notes = trace_module(model)
    _check_count(model, module, inputs)
    installs = _normalise_graph(model, module, inputs)
    shapes = tuple(tuple(value.shape) for value in inputs)
    network = describe_graph(
        module, installs, shapes, excluded=excluded, merge_pooling=merge_pooling, notes=notes
    )
    if not network.layers:
        parts = f" ({'; '.join(notes)})" if notes else ""
        raise UnsupportedGraphError(
            f"model {type(model).__name__} has no conv in any chain, so there is nothing to merge{parts}; give a CNN"
        )
    return network


def trace_again(model: nn.Module, net: Network) -> Network:
    """Trace ``model``, in another process perhaps, as the one that ``net`` was traced from.

    Raises:
        UsageError: it is another network.
    """
    inputs = tuple(torch.zeros(shape) for shape in net.input_shapes)
    again = trace_network(model, inputs, net.graph.excluded, merge_pooling=net.graph.merge_pooling)
    if again.hash != net.hash:
        raise UsageError(f"net of hash {net.hash} was not traced from this {type(model).__name__}, whose network has "
                         f"{again.hash}; trace this one")
    return again


def _check_count(model: nn.Module, module: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> None:
    """Raise UsageError unless there is a tensor for each argument of the model that has no default."""
    arguments = [node for node in module.graph.nodes if node.op == "placeholder"]
    if any(str(node.target).startswith("*") for node in arguments):
        return
    needed = sum(not node.args for node in arguments)
    if not needed <= len(inputs) <= len(arguments):
        names = ", ".join(str(node.target) for node in arguments)
        raise UsageError(
            f"example_input holds {len(inputs)} tensors; {type(model).__name__} takes ({names}), "
            "give one for each, as a tuple"
        )


def _normalise_graph(
    model: nn.Module, module: fx.GraphModule, inputs: tuple[torch.Tensor, ...]
) -> tuple[Install, ...]:
    """Write a traced graph, in place, in one vocabulary, record its shapes, and check that it still is the model."""
    _record_shapes(module, inputs)
    make_functional(module.graph, module)
    installs = rewrite_graph(module)
    _check_same_output(model, module, inputs, _record_shapes(module, inputs))
    return installs


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


def _record_shapes(module: fx.GraphModule, inputs: tuple[torch.Tensor, ...]) -> Any:
    """Run once, store each node's output shape, return the output; weights and inputs stay as they are."""
    try:
        with torch.no_grad():
            return _ShapeRecorder(module).run(*(copy.deepcopy(value) for value in inputs))
    except Exception as error:
        shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs)
        cause = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UnsupportedGraphError(
            f"example_input of shape {shapes} does not run through {type(module).__name__}: {cause}; "
            "give the input size and channels that the model was made for"
        ) from error


def _check_same_output(model: nn.Module, module: fx.GraphModule, inputs: tuple[torch.Tensor, ...], found: Any) -> None:
    """Refuse a graph that does not compute the model: what fx did not see would be missing in every result.

    Raises:
        UnsupportedGraphError: the outputs differ.
    """
    with torch.no_grad():
        expected = copy_module(model).eval()(*(copy.deepcopy(value) for value in inputs))
    for ours, theirs in zip(_tensors(found), _tensors(expected), strict=False):
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        if ours.shape != theirs.shape or not torch.allclose(
            ours.double(), theirs.double(), rtol=0, atol=1e-3 * scale + 1e-12, equal_nan=True
        ):
            raise UnsupportedGraphError(
                f"model {type(model).__name__}: its traced graph computes something else on the example input; "
                "it changes tensors in place or depends on more than its input, rewrite that part"
            )


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for each in value for tensor in _tensors(each)] if isinstance(value, (list, tuple)) else []
