"""From a network and a solution to the train form: an ordinary module to finetune, then to merge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import fx, nn

from layerfold.errors import SolutionError
from layerfold.graph.activations import activation_at, is_repeated
from layerfold.graph.copying import copy_module
from layerfold.graph.description import Chain, Layer, Segment
from layerfold.graph.dropping import SegmentSteps, Step, segment_steps
from layerfold.graph.functional import make_out_of_place
from layerfold.graph.network import Network
from layerfold.graph.same_model import network_call
from layerfold.graph.specs import ActivationSpec, ConvSpec
from layerfold.graph.traced import TracedGraph
from layerfold.graph.vocabulary import make_activation
from layerfold.merge.segment import InnerResidual, LinearLayer, TrainSegment
from layerfold.tables.levers import DROP, lever_of

if TYPE_CHECKING:
    from layerfold.solver import Solution


@network_call
def build_train_form(model: nn.Module, net: Network, solution: Solution) -> fx.GraphModule:
    """Return a copy of ``model`` with the solution's activations and its segments in train form.

    Its BatchNorm statistics are still the model's, and do not fit a network without some of its activations: before it
    is merged it is to be finetuned, or its statistics measured again (:func:`layerfold.recalibrate_batch_norm`).

    Modules outside the merged segments keep their names. ``model`` is left untouched. The result computes what
    :func:`merge_network` of it will compute, and can be finetuned, saved and copied like any module.

    Layers that the solution drops are not in it: each is the identity, and where nothing of a residual's branch stays
    only the shortcut does (``layerfold.graph.dropping``). What other levers change stands in ``segments``; each lever
    says what becomes of a layer's module (``layerfold.tables.levers``).

    Args:
        model: the model that ``net`` was traced from.
        net: its description.
        solution: ``act_pos``, ``merge_pos``, ``kept_layers``, and in ``segments`` what levers change; a chain's end
            keeps what it has, whatever they say of it.

    Raises:
        UsageError: ``net`` was traced from another model.
        SolutionError: positions outside 1..N, a segment across a residual, a dropped layer that changes the shape, a
            segment's plan that no lever builds, or a solution of another network.

    Example:
        >>> form = lf.build_train_form(model, net, solution)
        >>> form(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 2])
        >>> [sum(isinstance(part, nn.ReLU) for part in each.modules()) for each in (model, form)]
        [3, 2]
    """
    segments = check_solution(net, solution)
    traced: TracedGraph = net.graph
    module = traced.on(model)
    editor = _Editor(module, net.changed(solution.changes), traced, frozenset(solution.act_pos))
    for chain, source in zip(net.chains, traced.inputs, strict=True):
        inside = [segment for segment in segments if chain.start <= segment.start < chain.end]
        editor.rebuild_chain(chain, source, inside)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
    return module


def check_solution(net: Network, solution: Solution) -> list[Segment]:
    """Return a solution's segments; raise SolutionError unless it fits the network."""
    if solution.network_hash and solution.network_hash != net.hash:
        raise SolutionError(
            f"the solution was made for a network of hash {solution.network_hash}, this one has {net.hash}; "
            "solve again for this model, input size and exclusions"
        )
    for name, positions in (("act_pos", solution.act_pos), ("merge_pos", solution.merge_pos)):
        for position in positions:
            # 0 is the first chain's start: published files list it among the positions.
            if not 0 <= position <= len(net.layers):
                raise SolutionError(f"{name} holds {position}; this network has positions 1..{len(net.layers)}")
    found = net.segments_in(solution)
    built = {(segment.start, segment.end, segment.variant) for segment in found}
    for each in solution.segments:
        if each.plan == DROP:
            is_built = bool(solution.changes_within(each.start, each.end))
        else:
            is_built = each.change is None or (each.start, each.end, each.change) in built
        if not is_built:
            raise SolutionError(
                f"segment ({each.start}, {each.end}): nothing is built that fits its plan {each.plan!r}: merge_pos, "
                "kept_layers or its layers say otherwise; solve again"
            )
    return found


class _Editor:
    """Rewrites the chains of one graph, from the front to the back."""

    def __init__(self, module: fx.GraphModule, net: Network, traced: TracedGraph, act_pos: frozenset[int]):
        self.module, self.net, self.traced, self.act_pos = module, net, traced, act_pos
        self.nodes = {node.name: node for node in module.graph.nodes}
        self.modules = dict(module.named_modules())
        for layer, names in zip(net.layers, traced.layers, strict=True):
            if layer.variant:
                self._change(layer, str(self.nodes[str(names.op)].target))

    def _change(self, layer: Layer, name: str) -> None:
        """Put what a lever makes of a layer in the place of its module."""
        if name not in self.modules:
            raise SolutionError(f"layer {layer.index} ({layer.name}) is no module, so {layer.variant} cannot change it")
        made = lever_of(layer.variant).make_layer(self.modules[name], layer)
        made.train(self.module.training)
        self.module.set_submodule(name, made)
        self.modules[name] = made

    def rebuild_chain(self, chain: Chain, source: str, segments: list[Segment]) -> None:
        """Write the chain's segments one after the other and hook the last one to the chain's readers."""
        last = self.nodes[self.traced.layers[chain.end - 1].feature]
        readers = list(last.users)
        features = {chain.start: self.nodes[source]}
        # What the activation at a position is; behind an identity the same one again may be nothing new.
        activations: dict[int, ActivationSpec | None] = {chain.start: None}
        for segment in segments:
            value = self._write_segment(segment, features)
            spec = activation_at(self.net, chain, segment.end, self.act_pos)
            if is_repeated(segment, spec, activations[segment.start]):
                features[segment.end] = value
            else:
                activated = self._activate(chain, segment.end, value)
                if activated is not value and value is features[segment.start] and activated.op == "call_module":
                    # Nothing was computed in front of it: others read its input too, so it must not change it.
                    make_out_of_place(self.module.get_submodule(str(activated.target)))
                features[segment.end] = activated
            activations[segment.end] = spec
        for reader in readers:
            reader.replace_input_with(last, features[chain.end])
        # The next chain may start from this node by its old name.
        self.nodes[last.name] = features[chain.end]

    def _write_segment(self, segment: Segment, features: dict[int, fx.Node]) -> fx.Node:
        parts = segment_steps(self.net, segment.start, segment.end, segment.dropped)
        value = features[segment.start]
        if parts.lone is not None:
            value = self._on_input(self._names(parts.lone), value)
        elif parts.steps:
            value = self._insert_segment(segment, parts, value)
        for number, residual in enumerate(self.net.residuals):
            if residual.dst == segment.end and residual.src < segment.start:
                value = self._reuse_addition(number, value, features[residual.src])
        return value

    def _names(self, step: Step) -> tuple[str | None, str | None]:
        """Return the nodes of a step's operation and of the norm behind it."""
        if step.shortcut is not None:
            number, index = step.shortcut
            return self.traced.residuals[number].shortcut[index]
        if step.layer is None:
            return None, None
        names = self.traced.layers[step.layer - 1]
        return names.op, names.norm

    def _on_input(self, names: Iterable[str | None], source: fx.Node) -> fx.Node:
        """Keep nodes of one input each, one behind the other, on a new source; return the last."""
        value = source
        for name in names:
            if name is not None:
                node = self.nodes[name]
                node.args, node.kwargs = (value,), {}
                value = self._placed(node, value)
        return value

    def _placed(self, node: fx.Node, after: fx.Node) -> fx.Node:
        """Keep a reused node where it is if that is behind its input, else move it there."""
        if not after < node:
            after.append(node)
        return node

    def _insert_segment(self, segment: Segment, parts: SegmentSteps, source: fx.Node) -> fx.Node:
        name = f"segment_{segment.start}_{segment.end}"
        self._add(name, self._make_segment(segment, parts))
        anchor = self.nodes[self.traced.layers[segment.end - 1].anchor]
        with self.module.graph.inserting_after(anchor if source < anchor else source):
            return self.module.graph.call_module(name, (source,))

    def _add(self, name: str, module: nn.Module) -> None:
        """Add a new module in the network's mode; parts taken over from the network keep their own."""
        taken_over = set(self.modules.values())
        for part in module.modules():
            if part not in taken_over:
                part.training = self.module.training
        self.module.add_submodule(name, module)

    def _make_segment(self, segment: Segment, parts: SegmentSteps) -> TrainSegment:
        residuals: list[InnerResidual] = []
        shortcuts: list[list[LinearLayer]] = []
        for src, dst, number in parts.residuals:
            convs = self.traced.residuals[number].shortcut
            specs = self.net.residuals[number].shortcut
            shortcuts.append(
                [self._linear_layer(op, norm, spec) for (op, norm), spec in zip(convs, specs, strict=True)]
            )
            residuals.append(InnerResidual(src=src, dst=dst, index=len(residuals)))
        return TrainSegment(
            start=segment.start,
            end=segment.end,
            merged=segment.conv,
            input_shape=segment.input_shape,
            layers=[self._linear_layer(*self._names(step), step.conv) for step in parts.steps],
            residuals=residuals,
            shortcuts=shortcuts,
        )

    def _module(self, node_name: str | None) -> nn.Module | None:
        return None if node_name is None else self.modules[str(self.nodes[node_name].target)]

    def _linear_layer(self, op: str | None, norm: str | None, spec: ConvSpec) -> LinearLayer:
        return LinearLayer(self._module(op), self._module(norm), spec)

    def _reuse_addition(self, number: int, value: fx.Node, source: fx.Node) -> fx.Node:
        """Keep a residual's addition and shortcut convs outside the segment, on new inputs."""
        names = self.traced.residuals[number]
        branch = self._on_input([name for pair in names.shortcut for name in pair], source)
        add: fx.Node = self.nodes[names.add]
        add.args = (value, branch)
        for operand in (value, branch):
            self._placed(add, operand)
        return add

    def _activate(self, chain: Chain, position: int, value: fx.Node) -> fx.Node:
        names = self.traced.layers[position - 1]
        is_on = self.net.has_activation(position) if position == chain.end else position in self.act_pos
        if not is_on:
            return value
        if names.activation is not None:
            node = self.nodes[names.activation]
            node.replace_input_with(node.all_input_nodes[0], value)
            return self._placed(node, value)
        if chain.activation is None:
            raise SolutionError(
                f"act_pos holds {position}, but its chain {chain.start}..{chain.end} has no activation to copy; "
                "leave the position out"
            )
        return self._new_activation(chain, chain.activation, position, value)

    def _new_activation(self, chain: Chain, spec: ActivationSpec, position: int, value: fx.Node) -> fx.Node:
        """Fill an empty slot: with a new module, or of a kind that no table lists with a copy of the chain's own."""
        graph = self.module.graph
        activation = make_activation(spec)
        if activation is None:
            layers = range(chain.start + 1, chain.end + 1)
            twin = next(index for index in layers if self.net.layer(index).activation == spec)
            node = self.nodes[str(self.traced.layers[twin - 1].activation)]
            if node.op != "call_module":
                with graph.inserting_after(value):
                    return graph.node_copy(node, lambda before: value)
            activation = copy_module(self.modules[str(node.target)])
        name = f"activation_{position}"
        self._add(name, self._like_weights(activation))
        with graph.inserting_after(value):
            return graph.call_module(name, (value,))

    def _like_weights(self, activation: nn.Module) -> nn.Module:
        """Put a new activation's own weights, if any (PReLU), where the network's are, in their dtype."""
        weights = next(self.module.parameters(), None)
        return activation if weights is None else activation.to(device=weights.device, dtype=weights.dtype)
