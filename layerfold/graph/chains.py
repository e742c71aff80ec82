"""From a traced graph to a Network: chains and residuals, described without weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from torch import fx, nn

from layerfold.graph.description import Barrier, Chain, Layer, Residual
from layerfold.graph.network import Network
from layerfold.graph.reader import Reader, ReadLayer, Residuals
from layerfold.graph.rewrites import Install
from layerfold.graph.specs import ActivationSpec, ConvSpec, Shape
from layerfold.graph.traced import LayerNodes, ResidualNodes, TracedGraph
from layerfold.graph.vocabulary import activation_spec, barrier_reason, linear_spec


def describe_graph(
    module: fx.GraphModule,
    installs: tuple[Install, ...],
    input_shapes: tuple[tuple[int, ...], ...],
    *,
    excluded: tuple[str, ...] = (),
    merge_pooling: bool = False,
    notes: tuple[str, ...] = (),
) -> Network:
    """Return the Network of a traced module whose nodes carry their shapes (``node.meta["shape"]``)."""
    reader = Reader(module, excluded, merge_pooling=merge_pooling)
    chains, residuals = reader.read()
    index = {layer: i for i, layer in enumerate((layer for chain in chains for layer in chain), start=1)}
    layers = [_describe_layer(reader, layer, index[layer]) for chain in chains for layer in chain]
    described_chains, found, found_nodes = [], [], []
    for chain in chains:
        first, last = index[chain[0]], index[chain[-1]]
        described_chains.append(Chain(start=first - 1, end=last, activation=_commonest(layers[first - 1 : last])))
        for layer in chain:
            for add in layer.adds:
                residual = residuals[add]
                source = chain[0].source if residual.src is None else residual.src.feature
                found.append(
                    Residual(
                        src=first - 1 if residual.src is None else index[residual.src],
                        dst=index[layer],
                        shortcut=tuple(_spec(reader, each) for each in residual.shortcut),
                        shortcut_names=tuple(_name(each) for each in residual.shortcut),
                        source_shape=_shape(source),
                    )
                )
                found_nodes.append(
                    ResidualNodes(add=add.name, shortcut=tuple(_op_and_norm(each) for each in residual.shortcut))
                )
    return Network(
        name=type(module).__name__,
        layers=tuple(layers),
        chains=tuple(described_chains),
        residuals=tuple(found),
        barriers=tuple(_barriers(reader, chains, residuals)),
        input_shapes=input_shapes,
        macs=sum(_macs(node, reader.modules) for node in reader.nodes),
        num_params=sum(parameter.numel() for parameter in module.parameters()),
        notes=notes,
        graph=TracedGraph(
            graph=module.graph,
            installs=installs,
            layers=tuple(_layer_nodes(layer) for chain in chains for layer in chain),
            residuals=tuple(found_nodes),
            inputs=tuple(chain[0].source.name for chain in chains),
            excluded=tuple(excluded),
            merge_pooling=merge_pooling,
            whole=tuple(_whole(reader)),
        ),
    )


def _whole(reader: Reader) -> Iterator[str]:
    for node in reader.nodes:
        if node.op == "call_module" and any(True for _ in reader.modules[str(node.target)].children()):
            yield str(node.target)


def _shape(node: fx.Node) -> Shape:
    channels, height, width = node.meta["shape"][1:]
    return channels, height, width


def _spec(reader: Reader, layer: ReadLayer) -> ConvSpec:
    shape = _shape(layer.source)
    if layer.op is None:
        return ConvSpec.channelwise(shape[0], "add")
    return linear_spec(reader.modules[str(layer.op.target)], shape)


def _name(layer: ReadLayer) -> str:
    return layer.adds[0].name if layer.op is None else str(layer.op.target)


def _op_and_norm(layer: ReadLayer) -> tuple[str, str | None]:
    assert layer.op is not None
    return layer.op.name, layer.norm.name if layer.norm else None


def _layer_nodes(layer: ReadLayer) -> LayerNodes:
    return LayerNodes(
        op=layer.op.name if layer.op else None,
        norm=layer.norm.name if layer.norm else None,
        adds=tuple(add.name for add in layer.adds),
        activation=layer.activation.name if layer.activation else None,
        feature=layer.feature.name,
    )


def _describe_layer(reader: Reader, layer: ReadLayer, index: int) -> Layer:
    activation = activation_spec(layer.activation, reader.modules) if layer.activation else None
    return Layer(
        index=index,
        name=_name(layer),
        conv=_spec(reader, layer),
        norm=str(layer.norm.target) if layer.norm else None,
        activation=activation,
        input_shape=_shape(layer.source),
        output_shape=_shape(layer.out),
    )


def _commonest(layers: list[Layer]) -> ActivationSpec | None:
    counts = Counter(layer.activation for layer in layers if layer.activation is not None)
    return counts.most_common(1)[0][0] if counts else None


def _barriers(reader: Reader, chains: list[list[ReadLayer]], residuals: Residuals) -> Iterator[Barrier]:
    layers = [layer for chain in chains for layer in chain]
    inside = {node for layer in layers for node in layer.nodes()}
    inside.update(node for residual in residuals.values() for each in residual.shortcut for node in each.nodes())
    index = {layer.op: i for i, layer in enumerate(layers, start=1) if layer.op is not None}
    after = 0
    for node in reader.nodes:
        after = max(after, index.get(node, 0))
        if node in inside or node.op in ("placeholder", "output", "get_attr") or node in reader.passes:
            continue
        if len(node.meta.get("shape", ())) < 2:
            continue
        kind, reason = barrier_reason(node, reader.modules)
        name = str(node.target) if node.op == "call_module" else node.name
        yield Barrier(name=name, kind=kind, reason=reason, after=after)


def _macs(node: fx.Node, modules: dict[str, nn.Module]) -> int:
    """Return the multiply-adds of a conv or linear node for one image."""
    if node.op != "call_module" or "shape" not in node.meta:
        return 0
    module, shape = modules[str(node.target)], node.meta["shape"]
    outputs: int = math.prod(shape[1:])
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        return outputs * module.in_channels // module.groups * kernel
    return outputs * module.in_features if isinstance(module, nn.Linear) else 0
