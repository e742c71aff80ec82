"""What lies outside the chains: the stem's pooling, the head, squeeze-and-excitation, concatenations.

Each chain is cut out of the traced graph: its output becomes an input of what remains, and what feeds it an output.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import fx, nn

from layerfold.export.onnx import export_onnx
from layerfold.graph import example_images
from layerfold.graph.network import Network


@dataclass(frozen=True, kw_only=True)
class OutsideGraph:
    """The network without its chains, as ONNX.

    Attributes:
        onnx_bytes: the graph; None where nothing lies outside.
        network_inputs: names of the network's own inputs, in order; shapes beside them, batch included.
        input_shapes: as above.
        chain_inputs: by chain, the name of the value that feeds it: a network input, another chain's output,
            or an output of this graph.
        chain_outputs: by chain, the name of its output: an input of this graph.
        outputs: names of the network's own outputs: outputs of this graph, of a chain, or network inputs.
        output_shapes: shapes beside them, batch included.
    """

    onnx_bytes: bytes | None
    network_inputs: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    chain_inputs: tuple[str, ...]
    chain_outputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int, ...], ...]


def outside_graph(model: nn.Module, net: Network, *, batch: int = 1, dtype: str = "float32") -> OutsideGraph:
    """Cut the chains out of a network and export what remains.

    Args:
        model: the module that ``net`` was traced from; left untouched.
        net: its description, graph included.
        batch: images in one forward pass, in place of the traced number.
        dtype: ``float32`` or ``float16``.
    """
    graph: fx.Graph = copy.deepcopy(net.graph.graph)
    nodes = {node.name: node for node in graph.nodes}
    own_inputs = [node for node in graph.nodes if node.op == "placeholder"]
    feeds = [nodes[name] for name in net.graph.inputs]
    ends = [nodes[net.graph.layers[chain.end - 1].feature] for chain in net.chains]
    stand_ins = _cut_chains(graph, own_inputs, ends)
    value_of = dict(zip(ends, stand_ins, strict=True))
    feeds = [value_of.get(node, node) for node in feeds]

    output = next(node for node in graph.nodes if node.op == "output")
    results = _flatten(output.args[0])
    given = {*own_inputs, *stand_ins}
    wanted = list(dict.fromkeys(node for node in (*feeds, *results) if node not in given))
    output.args = (tuple(wanted),)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in [node for node in inputs if not node.users]:
        graph.erase_node(node)
        inputs.remove(node)

    names = {node: f"chain{index}_output" for index, node in enumerate(stand_ins)}
    names |= {node: f"network_input{index}" for index, node in enumerate(own_inputs)}
    names |= {node: f"outside_output{index}" for index, node in enumerate(wanted)}
    onnx_bytes = None
    if wanted:
        torch_dtype = getattr(torch, dtype)
        module = net.graph.on(model, graph).eval().to(torch_dtype)
        examples = tuple(example_images(_shape(node, batch), dtype=torch_dtype) for node in inputs)
        onnx_bytes = export_onnx(
            module,
            examples,
            input_names=[names[node] for node in inputs],
            output_names=[names[node] for node in wanted],
        )
    return OutsideGraph(
        onnx_bytes=onnx_bytes,
        network_inputs=tuple(names[node] for node in own_inputs),
        input_shapes=tuple(_shape(node, batch) for node in own_inputs),
        chain_inputs=tuple(names[node] for node in feeds),
        chain_outputs=tuple(names[node] for node in stand_ins),
        outputs=tuple(names[node] for node in results),
        output_shapes=tuple(_shape(node, batch) for node in results),
    )


def _cut_chains(graph: fx.Graph, own_inputs: list[fx.Node], ends: list[fx.Node]) -> list[fx.Node]:
    """Replace each chain's last feature map by a new input, and return those."""
    stand_ins = []
    last = own_inputs[-1]
    for index, end in enumerate(ends):
        with graph.inserting_after(last):
            last = graph.placeholder(f"chain{index}")
        last.meta = dict(end.meta)
        end.replace_all_uses_with(last)
        stand_ins.append(last)
    return stand_ins


def _flatten(value: object) -> list[fx.Node]:
    """Return the nodes in a (nested) output value, in order."""
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, (tuple, list)):
        return [node for part in value for node in _flatten(part)]
    if isinstance(value, dict):
        return [node for part in value.values() for node in _flatten(part)]
    return []


def _shape(node: fx.Node, batch: int) -> tuple[int, ...]:
    return (batch, *node.meta["shape"][1:])
