"""From a network and a solution to the train form: an ordinary module to finetune, then to merge."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import fx, nn

from layerfold.errors import SolutionError
from layerfold.graph.candidates import inner_residuals
from layerfold.graph.network import Chain, Network, Segment
from layerfold.graph.specs import ActivationSpec, ConvSpec
from layerfold.graph.traced import TracedGraph
from layerfold.graph.vocabulary import make_activation
from layerfold.merge.segment import InnerResidual, LinearLayer, TrainSegment

if TYPE_CHECKING:
    from layerfold.solver import Solution


def build_train_form(model: nn.Module, net: Network, solution: Solution) -> fx.GraphModule:
    """Return a copy of ``model`` with the solution's activations and its segments in train form.

    Modules outside the merged segments keep their names. ``model`` is left untouched. The result computes what
    :func:`merge_network` of it will compute, and can be finetuned, saved and copied like any module.

    Args:
        model: the model that ``net`` was traced from.
        net: its description.
        solution: ``act_pos`` and ``merge_pos``; a chain's end keeps what it has, whatever they say of it.

    Raises:
        SolutionError: positions outside 1..N, a segment across a residual, or a solution of another network.
    """
    check_solution(net, solution)
    traced: TracedGraph = net.graph
    module = traced.on(model)
    editor = _Editor(module, net, traced, frozenset(solution.act_pos))
    stops = set(solution.merge_pos)
    for chain, source in zip(net.chains, traced.inputs, strict=True):
        editor.rebuild_chain(chain, source, stops)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
    return module


def check_solution(net: Network, solution: Solution) -> None:
    """Raise SolutionError unless the solution fits the network."""
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


class _Editor:
    """Rewrites the chains of one graph, from the front to the back."""

    def __init__(self, module: fx.GraphModule, net: Network, traced: TracedGraph, act_pos: frozenset[int]):
        self.module, self.net, self.traced, self.act_pos = module, net, traced, act_pos
        self.nodes = {node.name: node for node in module.graph.nodes}
        self.modules = dict(module.named_modules())

    def rebuild_chain(self, chain: Chain, source: str, stops: set[int]) -> None:
        """Write the chain's segments one after the other and hook the last one to the chain's readers."""
        last = self.nodes[self.traced.layers[chain.end - 1].feature]
        readers = list(last.users)
        features = {chain.start: self.nodes[source]}
        start = chain.start
        for position in range(chain.start + 1, chain.end + 1):
            if position in stops or position == chain.end:
                features[position] = self._write_segment(chain, self.net.segment(start, position), features)
                start = position
        for reader in readers:
            reader.replace_input_with(last, features[chain.end])
        # The next chain may start from this node by its old name.
        self.nodes[last.name] = features[chain.end]

    def _write_segment(self, chain: Chain, segment: Segment, features: dict[int, fx.Node]) -> fx.Node:
        inside = inner_residuals(self.net, segment.start, segment.end)
        source = features[segment.start]
        if segment.num_layers == 1 and not inside:
            value = self._reuse_layer(segment.end, source)
        else:
            value = self._insert_segment(segment, source)
        for number, residual in enumerate(self.net.residuals):
            if residual.dst == segment.end and residual.src < segment.start:
                value = self._reuse_addition(number, value, features[residual.src])
        return self._activate(chain, segment.end, value)

    def _reuse_layer(self, index: int, source: fx.Node) -> fx.Node:
        names = self.traced.layers[index - 1]
        return self._on_input((names.op, names.norm), source)

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

    def _insert_segment(self, segment: Segment, source: fx.Node) -> fx.Node:
        name = f"segment_{segment.start}_{segment.end}"
        self._add(name, self._make_segment(segment))
        with self.module.graph.inserting_after(self.nodes[self.traced.layers[segment.end - 1].anchor]):
            return self.module.graph.call_module(name, (source,))

    def _add(self, name: str, module: nn.Module) -> None:
        """Add a new module in the network's mode; parts taken over from the network keep their own."""
        taken_over = set(self.modules.values())
        for part in module.modules():
            if part not in taken_over:
                part.training = self.module.training
        self.module.add_submodule(name, module)

    def _make_segment(self, segment: Segment) -> TrainSegment:
        layers = []
        for index in range(segment.start + 1, segment.end + 1):
            layer, names = self.net.layer(index), self.traced.layers[index - 1]
            layers.append(self._linear_layer(names.op, names.norm, layer.conv))
        residuals: list[InnerResidual] = []
        shortcuts: list[list[LinearLayer]] = []
        for number, residual in enumerate(self.net.residuals):
            if segment.start <= residual.src and residual.dst <= segment.end:
                convs = self.traced.residuals[number].shortcut
                shortcuts.append(
                    [
                        self._linear_layer(op, norm, spec)
                        for (op, norm), spec in zip(convs, residual.shortcut, strict=True)
                    ]
                )
                residuals.append(
                    InnerResidual(
                        src=residual.src - segment.start, dst=residual.dst - segment.start, index=len(residuals)
                    )
                )
        return TrainSegment(
            start=segment.start,
            end=segment.end,
            merged=segment.conv,
            input_shape=segment.input_shape,
            layers=layers,
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
            activation = copy.deepcopy(self.modules[str(node.target)])
        name = f"activation_{position}"
        self._add(name, self._like_weights(activation))
        with graph.inserting_after(value):
            return graph.call_module(name, (value,))

    def _like_weights(self, activation: nn.Module) -> nn.Module:
        """Put a new activation's own weights, if any (PReLU), where the network's are, in their dtype."""
        weights = next(self.module.parameters(), None)
        return activation if weights is None else activation.to(device=weights.device, dtype=weights.dtype)
