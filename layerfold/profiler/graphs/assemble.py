"""Whole networks as ONNX without training, merging or exporting: latency does not depend on the weights.

The graph outside the chains is exported once; for any plan the chains' merged convs are written directly between
its ends, with random weights. Any plan of a network can so be timed within a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from layerfold.errors import ProfilerError
from layerfold.graph.activations import activation_at, is_repeated
from layerfold.graph.description import Chain, Segment
from layerfold.graph.network import Network
from layerfold.graph.specs import ActivationSpec
from layerfold.profiler.graphs.light_weights import lightened
from layerfold.profiler.graphs.outside import OutsideGraph
from layerfold.profiler.graphs.segment import write_segment
from layerfold.profiler.graphs.writer import IR_VERSION, OPSET, OnnxWriter


def assemble_network(
    net: Network,
    outside: OutsideGraph,
    act_pos: Collection[int],
    merge_pos: Collection[int],
    dropped: Collection[int] = (),
    *,
    dtype: str = "float32",
    seed: int = 0,
) -> bytes:
    """Return the serialised ONNX graph of the network merged by a plan, with random weights in its chains.

    Args:
        net: the traced network.
        outside: what lies outside its chains (:func:`layerfold.profiler.graphs.outside.outside_graph`).
        act_pos: positions with an activation; a slot that is empty in the original gets its chain's commonest.
            A chain's end keeps what it has, listed or not.
        merge_pos: positions where merging stops; chain ends are implied.
        dropped: layers that are left out.
        dtype: ``float32`` or ``float16``, as of ``outside``.
        seed: of the weights.

    Raises:
        SolutionError: a segment crosses a residual.
        ExportError: an activation that has no ONNX form.
    """
    import onnx
    from onnx import helper

    writer = OnnxWriter(dtype=dtype, batch=outside.input_shapes[0][0], seed=seed, prefix="chain.", is_light=True)
    segments = net.segments_of(merge_pos, dropped)
    for chain, value, output in zip(net.chains, outside.chain_inputs, outside.chain_outputs, strict=True):
        _write_chain(writer, net, chain, value, act_pos, segments)
        writer.rename_last_output(output)

    nodes, initializers = list(writer.nodes), list(writer.initializers)
    opset, ir_version = OPSET, IR_VERSION
    if outside.onnx_bytes is not None:
        rest = onnx.load_from_string(lightened(outside.onnx_bytes))
        nodes += list(rest.graph.node)
        initializers += list(rest.graph.initializer)
        opset = next(entry.version for entry in rest.opset_import if entry.domain in ("", "ai.onnx"))
        ir_version = rest.ir_version
    inputs = [
        writer.value_info(name, shape) for name, shape in zip(outside.network_inputs, outside.input_shapes, strict=True)
    ]
    outputs = [
        writer.value_info(name, shape)
        for name, shape in dict(zip(outside.outputs, outside.output_shapes, strict=True)).items()
    ]
    graph = helper.make_graph(
        _sorted_nodes(nodes, {*outside.network_inputs, *(each.name for each in initializers)}),
        net.name,
        inputs,
        outputs,
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    return bytes(model.SerializeToString())


def _write_chain(
    writer: OnnxWriter,
    net: Network,
    chain: Chain,
    value: str,
    act_pos: Collection[int],
    segments: Sequence[Segment],
) -> str:
    """Append a chain's segments behind ``value``; return its last feature map, which is not ``value`` itself."""
    features = {chain.start: value}
    activations: dict[int, ActivationSpec | None] = {chain.start: None}
    for segment in segments:
        if chain.start <= segment.start < segment.end <= chain.end:
            spec = activation_at(net, chain, segment.end, act_pos)
            own = None if is_repeated(segment, spec, activations[segment.start]) else spec
            features[segment.end] = write_segment(writer, features[segment.start], segment, features, own)
            activations[segment.end] = spec
    output = features[chain.end]
    return writer.node("Identity", [output]) if output == value else output


def _sorted_nodes(nodes: list[Any], known: set[str]) -> list[Any]:
    """Return the nodes in topological order; ONNX asks for it."""
    producers = {output: index for index, node in enumerate(nodes) for output in node.output}
    ordered: list[Any] = []
    state = [0] * len(nodes)
    for root in range(len(nodes)):
        stack = [root]
        while stack:
            index = stack[-1]
            if state[index] == 2:
                stack.pop()
                continue
            waiting = [
                producers[name]
                for name in nodes[index].input
                if name and name not in known and state[_producer(producers, name)] != 2
            ]
            if not waiting:
                state[index] = 2
                ordered.append(nodes[stack.pop()])
            elif state[index] == 1:
                raise ProfilerError(f"the assembled graph has a cycle at {nodes[index].name!r}; report this network")
            else:
                state[index] = 1
                stack.extend(waiting)
    return ordered


def _producer(producers: dict[str, int], name: str) -> int:
    if name not in producers:
        raise ProfilerError(f"the assembled graph lacks the value {name!r}; report this network")
    return producers[name]
