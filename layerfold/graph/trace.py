"""From a module to a Network: torch.fx tracing, one vocabulary, and a check that the graph is the module."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from layerfold.errors import LayerfoldError, UnsupportedGraphError, UsageError, nearest_names
from layerfold.graph.chains import describe_graph
from layerfold.graph.conv_forwards import computes_conv
from layerfold.graph.copying import copy_module
from layerfold.graph.examples import example_images, varied
from layerfold.graph.functional import make_functional
from layerfold.graph.graph_check import check_traced, first_trial, source_line
from layerfold.graph.network import Network
from layerfold.graph.normalise import take_apart
from layerfold.graph.proxies import UndecidedError
from layerfold.graph.rewrites import Install, rewrite_graph
from layerfold.graph.same_function import Images, run
from layerfold.graph.tracer import Tracer, argument_names
from layerfold.modules import inputs_like, public_call


def trace_module(model: nn.Module, inputs: Images) -> tuple[fx.GraphModule, tuple[Install, ...], tuple[str, ...]]:
    """Trace a normalised copy of ``model`` in eval mode; the model itself is left untouched.

    A part that cannot be traced stays whole, as one node: first the innermost module that fails, then, where the code
    around it cannot do with that, the module that holds it.

    Args:
        model: any module.
        inputs: what it runs on, of the dtype and on the device that it takes; their shapes are known to its code.

    Returns:
        The traced module, its nodes with shapes; what puts the constants that it made on a
        copy of the model; and one note for each part that stayed whole.

    Raises:
        UnsupportedGraphError: the model's own forward cannot be traced; names the line and the cause.
    """
    untraced = copy_module(model).eval()
    own_tensors: set[str] = set()
    opaque: dict[str, str] = {}
    while True:
        # Each time on a copy, less its parameters: the forward may keep what it is given, which is no tensor now.
        root = copy_module(untraced, shared=untraced.parameters())
        tracer = Tracer(inputs, opaque)
        take_apart(root, tracer.whole(root))
        for part in root.modules():
            if isinstance(part, nn.Conv2d):
                computes_conv(part)  # found by running it, which tracing would listen to
        own_tensors = {name for name, _ in (*root.named_parameters(), *root.named_buffers())}
        try:
            graph = tracer.trace(root)
            break
        except Exception as error:
            cause = " ".join(str(error).split())[:200]
            part_name = tracer.failed_in
            if not part_name or part_name in opaque:
                is_choice = isinstance(error, UndecidedError)
                other = ", or write it without control flow that depends on data" if is_choice else ""
                raise UnsupportedGraphError(
                    f"model {type(model).__name__} cannot be traced in its own forward{source_line(error)}: {cause}; "
                    f"move that code into a module of its own, which then stays whole{other}"
                ) from error
            opaque = {name: why for name, why in opaque.items() if not name.startswith(f"{part_name}.")}
            kind = type(root.get_submodule(part_name)).__name__
            opaque[part_name] = (
                f"{part_name} ({kind}) is kept whole, since it cannot be traced{source_line(error)}: {cause}"
            )
    take_apart(untraced, tracer.whole(untraced))
    installs = tuple(_constants(graph, root, own_tensors))
    for install in installs:
        install(untraced)
    module = fx.GraphModule(untraced, graph, class_name=type(model).__name__)
    if tracer.num_unknown:
        record_shapes(module, inputs)
    return module, installs, tuple(opaque.values())


def _constants(graph: fx.Graph, root: nn.Module, own: set[str]) -> Iterable[Install]:
    """Yield what puts the tensors that the forward made, for example ``torch.arange(8)``, on a copy of the model."""
    names = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr")
    for name in names:
        owner, _, own_name = name.rpartition(".")
        value = getattr(root.get_submodule(owner), own_name, None)
        if name not in own and not owner and isinstance(value, torch.Tensor):
            yield partial(_install_constant, name=name, value=value.detach().clone())


def _install_constant(root: nn.Module, *, name: str, value: torch.Tensor) -> None:
    if not hasattr(root, name):
        device = next((each.device for each in (*root.parameters(), *root.buffers())), value.device)
        root.register_buffer(name, value.detach().clone().to(device))


@public_call
def trace_network(
    model: nn.Module,
    example_input: torch.Tensor | tuple[torch.Tensor, ...],
    exclude: Iterable[str] = (),
    *,
    merge_pooling: bool = False,
) -> Network:
    """Trace a CNN into layers, chains, residuals and barriers (docs/design.md).

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

    Example:
        >>> net = lf.trace_network(model, torch.zeros(1, 3, 8, 8))
        >>> len(net.layers), [(chain.start, chain.end) for chain in net.chains]
        (3, [(0, 3)])
        >>> [(segment.start, segment.end) for segment in net.candidates() if segment.num_layers > 1]
        [(0, 2), (0, 3), (1, 3)]
    """
    names = {name for name, _ in model.named_modules()}
    excluded = tuple(exclude)
    for name in excluded:
        if name not in names or not name:
            raise UsageError(f"exclude={name!r}: the model has no module of that name{nearest_names(name, names)}")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    _check_count(model, inputs)
    inputs = inputs_like(model, inputs)
    shapes = tuple(tuple(value.shape) for value in inputs)
    chosen = tuple(varied(value, seed=number) for number, value in enumerate(inputs))
    trial = first_trial(model, chosen, is_varied=chosen[0] is inputs[0])
    # On copies: the values are worked out along the way, and a forward may change its input in place.
    module, constants, notes = trace_module(model, tuple(value.clone() for value in trial.batches[0]))
    try:
        found, rewrites = _normalise_graph(module, trial.batches[0])
    except LayerfoldError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split())[:200]
        raise UnsupportedGraphError(
            f"model {type(model).__name__} was traced, but its graph does not run ({type(error).__name__}: {cause}); "
            "move the code that it names into a module of its own, and report this model as a bug"
        ) from error
    network = describe_graph(
        module, (*constants, *rewrites), shapes, excluded=excluded, merge_pooling=merge_pooling, notes=notes
    )
    # Only now: shapes are those of the images that it was tried with, and this is what is remembered of the input.
    for node, value in zip((n for n in module.graph.nodes if n.op == "placeholder"), inputs, strict=True):
        node.meta |= {"shape": tuple(value.shape), "dtype": value.dtype}
    check_traced(model, trial, module, found, network.macs, network.graph.on)
    if not network.layers:
        raise UnsupportedGraphError(f"model {type(model).__name__} {_why_no_layers(model, module, network)}")
    return network


def trace_again(model: nn.Module, net: Network) -> Network:
    """Trace ``model``, in another process perhaps, as the one that ``net`` was traced from.

    Raises:
        UsageError: it is another network.
    """
    inputs = tuple(example_images(shape) for shape in net.input_shapes)
    again = trace_network(model, inputs, net.graph.excluded, merge_pooling=net.graph.merge_pooling)
    if again.hash != net.hash:
        raise UsageError(
            f"net of hash {net.hash} was not traced from this {type(model).__name__}, whose network has "
            f"{again.hash}; trace this one"
        )
    return again


def _why_no_layers(model: nn.Module, module: fx.GraphModule, network: Network) -> str:
    """Return why nothing of a model can be merged, and what would help."""
    num_convs = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    if network.notes:
        return f"has no conv in any chain, so there is nothing to merge ({'; '.join(network.notes)})"
    own = dict.fromkeys(type(part).__name__ for part in model.modules() if isinstance(part, nn.Conv2d))
    if not num_convs and own:
        return (
            f"has no conv in any chain, so there is nothing to merge: what {', '.join(own)} computes is no conv "
            "with constant weights; make its weight one that no input decides, as torch.nn.utils.parametrize does"
        )
    if any(isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes):
        return (
            "is a program of torch.export, whose layers are calls of torch.ops without modules; give the "
            "torch.nn.Module that it was exported from"
        )
    if not num_convs:
        return "has no conv in any chain, so there is nothing to merge; give a CNN"
    reasons = dict.fromkeys(each.reason for each in network.barriers if "conv" in each.kind.lower())
    return f"has no conv in any chain, so there is nothing to merge, though it holds {num_convs}: {'; '.join(reasons)}"


def _check_count(model: nn.Module, inputs: Images) -> None:
    """Raise UsageError unless there is a tensor for each argument of the model that has no default."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return
    names = argument_names(model, len(inputs))
    needed = sum(each.name in names and each.default is each.empty for each in parameters)
    if not needed <= len(inputs) <= len(names):
        raise UsageError(
            f"example_input holds {len(inputs)} tensors; {type(model).__name__} takes ({', '.join(names)}), "
            "give one for each, as a tuple"
        )


def _normalise_graph(module: fx.GraphModule, inputs: Images) -> tuple[Any, tuple[Install, ...]]:
    """Write a traced graph, in place, in one vocabulary, and record its shapes; return its outputs and the installs."""
    make_functional(module.graph, module)
    installs = rewrite_graph(module)
    return record_shapes(module, inputs), installs


class _ShapeRecorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            n.meta["shape"] = tuple(value.shape)
        return value


def record_shapes(module: fx.GraphModule, inputs: Images) -> Any:
    """Run once, store each node's output shape, return the output; weights and inputs stay as they are."""
    return run(_ShapeRecorder(module).run, inputs)
