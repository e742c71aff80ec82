"""Activations that a train form is without, put back to fade in the course of finetuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import fx, nn

from layerfold.graph.fading import FadingActivation, make_fading
from layerfold.graph.network import Network
from layerfold.graph.same_model import network_call
from layerfold.graph.traced import TracedGraph
from layerfold.merge.segment import LinearLayer, TrainSegment
from layerfold.merge.segment_ends import last_node

if TYPE_CHECKING:
    from layerfold.solver import Solution


@network_call
def add_fading(form: fx.GraphModule, model: nn.Module, net: Network, solution: Solution) -> int:
    """Put the activations that a solution removes back into its train form, in place, to fade while it is finetuned.

    They are there for ``finetune_network(form, ..., fade=...)`` alone, which takes them out in the end. Until then
    they count as gone. An activation goes at once where its segment drops layers, or where it is computed by a
    function that no table lists.

    Args:
        form: what ``build_train_form(model, net, solution)`` returned.
        model: the original; its activations are copied.
        net: its description.
        solution: what the form was built from.

    Returns:
        How many activations will fade.

    Example:
        >>> form = lf.build_train_form(model, net, solution)
        >>> lf.add_fading(form, model, net, solution)
        1
        >>> report = lf.finetune_network(form, data, steps=4, fade=0.5, progress=False)
        >>> report.steps
        4
    """
    net = net.changed(solution.changes)
    traced: TracedGraph = net.graph
    original = traced.on(model)
    modules = dict(original.named_modules())
    sources = {node.name: node for node in original.graph.nodes}

    def fading_at(position: int) -> FadingActivation | None:
        name = traced.layers[position - 1].activation
        if name is None or position in solution.act_pos:
            return None
        node = sources[name]
        module = modules[str(node.target)] if node.op == "call_module" else None
        return make_fading(net.layer(position).activation, module)

    chain_ends = {chain.end for chain in net.chains}
    before = form.training
    nodes = {node.name: node for node in form.graph.nodes}
    found = 0
    for part in [each for each in form.modules() if isinstance(each, TrainSegment)]:
        if _has_every_layer(part, net):
            for position in range(part.start + 1, part.end):
                fading = fading_at(position)
                if fading is not None:
                    part.fading[str(position - part.start)] = fading.train(before)
                    found += 1
    for segment in net.segments_in(solution):
        fading = None if segment.end in chain_ends else fading_at(segment.end)
        value = last_node(nodes, traced, segment.start, segment.end)
        if fading is not None and value is not None:
            name = f"fading_{segment.end}"
            form.add_submodule(name, fading.train(before))
            with form.graph.inserting_after(value):
                node = form.graph.call_module(name)
            value.replace_all_uses_with(node)
            node.args = (value,)
            found += 1
    form.graph.lint()
    form.recompile()
    return found


def _has_every_layer(segment: TrainSegment, net: Network) -> bool:
    """Say whether a segment consists of the network's layers start+1..end, each in its place."""
    specs = [cast(LinearLayer, layer).spec for layer in segment.layers]
    return specs == [layer.conv for layer in net.layers[segment.start : segment.end]]
