"""From a traced graph to chains and residuals (DESIGN.md, section 3).

The graph is read several times. Each reading assumes that every addition on a chain is a residual of that chain;
what proves otherwise becomes a barrier, and the graph is read again until nothing changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from layerfold.graph.network import Barrier, Chain, Layer, Network, Residual
from layerfold.graph.specs import ActivationSpec, ConvSpec, Shape
from layerfold.graph.vocabulary import Role, activation_spec, barrier_reason, conv_spec, role_of


@dataclass(frozen=True, kw_only=True)
class LayerNodes:
    """Names of the graph nodes that belong to one layer; what ``merge`` edits.

    Attributes:
        conv: the conv node; norm: the norm node or None.
        adds: additions behind the layer, in order; activation: the activation node or None.
        feature: the node whose value the next layer reads.
    """

    conv: str
    norm: str | None
    adds: tuple[str, ...]
    activation: str | None
    feature: str


@dataclass(frozen=True, kw_only=True)
class ResidualNodes:
    """Names of one residual's nodes: its addition, and the (conv, norm) pairs of its shortcut."""

    add: str
    shortcut: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, kw_only=True)
class TracedGraph:
    """The torch.fx graph behind a Network, and which node is what.

    Attributes:
        graph: the normalised graph.
        layers: by layer index - 1; residuals: as ``Network.residuals``.
        inputs: by chain, the node that feeds its first layer.
    """

    graph: fx.Graph
    layers: tuple[LayerNodes, ...]
    residuals: tuple[ResidualNodes, ...]
    inputs: tuple[str, ...]


@dataclass(eq=False)
class _Layer:
    conv: fx.Node
    norm: fx.Node | None
    out: fx.Node
    source: fx.Node
    adds: list[fx.Node] = field(default_factory=list)
    activation: fx.Node | None = None
    feature: fx.Node = None  # type: ignore[assignment]


class _Reader:
    """One reading of the graph under the present barriers."""

    def __init__(self, module: fx.GraphModule, excluded: tuple[str, ...]):
        self.modules = dict(module.named_modules())
        self.nodes = list(module.graph.nodes)
        self.order = {node: i for i, node in enumerate(self.nodes)}
        self.roles = {node: role_of(node, self.modules) for node in self.nodes}
        self._bar_shared_modules(excluded)
        self.depth: dict[fx.Node, int] = {}
        for node in self.nodes:
            below = max((self.depth[arg] for arg in node.all_input_nodes), default=0)
            self.depth[node] = below + (self.roles[node] is Role.CONV)
        self.barrier_adds: set[fx.Node] = set()
        self.cuts: set[fx.Node] = set()

    def _bar_shared_modules(self, excluded: tuple[str, ...]) -> None:
        uses = Counter(str(node.target) for node in self.nodes if node.op == "call_module")
        identities = Counter(id(self.modules[name]) for name in uses)
        for node in self.nodes:
            if self.roles[node] in (Role.CONV, Role.NORM):
                name = str(node.target)
                shared = uses[name] > 1 or identities[id(self.modules[name])] > 1
                if shared or any(name == e or name.startswith(f"{e}.") for e in excluded):
                    self.roles[node] = Role.OTHER
            if self.roles[node] in (Role.CONV, Role.NORM, Role.ACTIVATION, Role.PASS) and not _is_feature_map(node):
                self.roles[node] = Role.OTHER

    def origin(self, node: fx.Node) -> fx.Node:
        """Step back over nodes that do nothing."""
        while self.roles[node] is Role.PASS:
            node = node.all_input_nodes[0]
        return node

    def consumers(self, node: fx.Node) -> list[fx.Node]:
        """Return who reads a value, stepping over nodes that do nothing."""
        found: list[fx.Node] = []
        for user in node.users:
            found.extend(self.consumers(user) if self.roles[user] is Role.PASS else [user])
        return found

    def read(self) -> tuple[list[list[_Layer]], dict[fx.Node, tuple[_Layer, _Layer | None, list[_Layer]]]]:
        """Return chains (lists of layers), and per residual addition (dst, src or None for chain start, shortcut)."""
        while True:
            layers = self._layers()
            shortcuts = self._shortcuts(layers)
            in_shortcut = {layer for found in shortcuts.values() for layer in found[0]}
            chains = self._link([layer for layer in layers if layer not in in_shortcut])
            residuals = self._settle(chains, shortcuts)
            if residuals is not None:
                return chains, residuals

    def _layers(self) -> list[_Layer]:
        layers = []
        for node in self.nodes:
            if self.roles[node] is Role.CONV:
                norm = None
                after = self.consumers(node)
                if len(after) == 1 and self.roles[after[0]] is Role.NORM:
                    norm = after[0]
                layer = _Layer(conv=node, norm=norm, out=norm or node, source=self.origin(node.all_input_nodes[0]))
                self._walk_tail(layer)
                layers.append(layer)
        return layers

    def _walk_tail(self, layer: _Layer) -> None:
        """Follow a layer's value over its additions and its activation to the feature map that others read."""
        current = layer.out
        while True:
            readers = self.consumers(current)
            if len(readers) != 1:
                break
            reader = readers[0]
            if self.roles[reader] is Role.ADD and reader not in self.barrier_adds and self._main(reader) is current:
                layer.adds.append(reader)
                current = reader
                continue
            if self.roles[reader] is Role.ACTIVATION:
                layer.activation = current = reader
            break
        layer.feature = current

    def _operands(self, add: fx.Node) -> list[fx.Node]:
        return [self.origin(node) for node in add.args if isinstance(node, fx.Node)]

    def _main(self, add: fx.Node) -> fx.Node:
        """Return the operand on the longer path: the chain; the other one is the residual.

        Equal paths (RepVGG) go to the larger kernel, then to the earlier node.
        """
        return max(self._operands(add), key=lambda node: (self.depth[node], self._kernel(node), -self.order[node]))

    def _kernel(self, node: fx.Node) -> int:
        while self.roles[node] in (Role.NORM, Role.PASS):
            node = node.all_input_nodes[0]
        if self.roles[node] is not Role.CONV:
            return 0
        kernel = self.modules[str(node.target)].kernel_size
        return int(kernel[0]) * int(kernel[1])

    def _shortcuts(self, layers: list[_Layer]) -> dict[fx.Node, tuple[list[_Layer], fx.Node]]:
        """Return, for each addition, the convs of its shortcut and the value that the shortcut starts from."""
        by_out = {layer.out: layer for layer in layers}
        found = {}
        for layer in layers:
            for add in layer.adds:
                main = self._main(add)
                value = next(node for node in self._operands(add) if node is not main)
                convs: list[_Layer] = []
                while value in by_out and len(self.consumers(value)) == 1:
                    convs.insert(0, by_out[value])
                    value = by_out[value].source
                found[add] = (convs, value)
        return found

    def _link(self, layers: list[_Layer]) -> list[list[_Layer]]:
        readers: dict[fx.Node, list[_Layer]] = {}
        for layer in layers:
            readers.setdefault(layer.source, []).append(layer)
        following = {
            layer: readers[layer.feature][0]
            for layer in layers
            if layer.feature not in self.cuts and len(readers.get(layer.feature, ())) == 1
        }
        heads = [layer for layer in layers if layer not in set(following.values())]
        chains = []
        for head in heads:
            chain = [head]
            while chain[-1] in following:
                chain.append(following[chain[-1]])
            chains.append(chain)
        return chains

    def _settle(
        self, chains: list[list[_Layer]], shortcuts: dict[fx.Node, tuple[list[_Layer], fx.Node]]
    ) -> dict[fx.Node, tuple[_Layer, _Layer | None, list[_Layer]]] | None:
        """Check what the reading assumed; None after adding a barrier, so that the graph is read again."""
        residuals: dict[fx.Node, tuple[_Layer, _Layer | None, list[_Layer]]] = {}
        known: set[fx.Node] = set()
        for chain in chains:
            features: dict[fx.Node, _Layer | None] = {chain[0].source: None}
            for layer in chain:
                for add in layer.adds:
                    convs, value = shortcuts[add]
                    if value not in features:
                        self.barrier_adds.add(add)
                        return None
                    residuals[add] = (layer, features[value], convs)
                    known.add(add)
                    known.update(conv.conv for conv in convs)
                features[layer.feature] = layer
        # Additions of layers that ended up inside no chain (their layer is someone's shortcut) cannot be kept.
        for add in shortcuts:
            if add not in residuals:
                self.barrier_adds.add(add)
                return None
        for chain in chains:
            members = {layer.conv for layer in chain} | self._own_branches(chain, residuals)
            for layer in chain[:-1]:
                if any(reader not in members for reader in self.consumers(layer.feature)):
                    self.cuts.add(layer.feature)
                    return None
        return residuals

    @staticmethod
    def _own_branches(
        chain: list[_Layer], residuals: dict[fx.Node, tuple[_Layer, _Layer | None, list[_Layer]]]
    ) -> set[fx.Node]:
        """Return the nodes by which a chain's residuals read its feature maps."""
        found: set[fx.Node] = set()
        for add, (dst, _, convs) in residuals.items():
            if dst in chain:
                found.add(convs[0].conv if convs else add)
        return found


def _is_feature_map(node: fx.Node) -> bool:
    return len(node.meta.get("shape", ())) == 4


def _shape(node: fx.Node) -> Shape:
    channels, height, width = node.meta["shape"][1:]
    return channels, height, width


def describe_graph(
    module: fx.GraphModule, excluded: tuple[str, ...], input_shapes: tuple[tuple[int, ...], ...]
) -> Network:
    """Return the Network of a traced module whose nodes carry their shapes (``node.meta["shape"]``)."""
    reader = _Reader(module, excluded)
    chains, residuals = reader.read()
    index = {layer: i for i, layer in enumerate((layer for chain in chains for layer in chain), start=1)}
    layers = [_describe_layer(reader, layer, index[layer]) for chain in chains for layer in chain]
    described_chains, found, found_nodes = [], [], []
    for chain in chains:
        first, last = index[chain[0]], index[chain[-1]]
        described_chains.append(
            Chain(start=first - 1, end=last, activation=_commonest(layers[first - 1 : last]))
        )
        for layer in chain:
            for add in layer.adds:
                _, src, convs = residuals[add]
                position = first - 1 if src is None else index[src]
                found.append(_describe_residual(reader, position, index[layer], convs, chain[0].source, src))
                found_nodes.append(ResidualNodes(add=add.name, shortcut=tuple(_conv_and_norm(c) for c in convs)))
    return Network(
        name=type(module).__name__,
        layers=tuple(layers),
        chains=tuple(described_chains),
        residuals=tuple(found),
        barriers=tuple(_barriers(reader, chains, residuals)),
        input_shapes=input_shapes,
        macs=sum(_macs(node, reader.modules) for node in reader.nodes),
        num_params=sum(parameter.numel() for parameter in module.parameters()),
        graph=TracedGraph(
            graph=module.graph,
            layers=tuple(
                LayerNodes(
                    conv=layer.conv.name,
                    norm=layer.norm.name if layer.norm else None,
                    adds=tuple(add.name for add in layer.adds),
                    activation=layer.activation.name if layer.activation else None,
                    feature=layer.feature.name,
                )
                for chain in chains
                for layer in chain
            ),
            residuals=tuple(found_nodes),
            inputs=tuple(chain[0].source.name for chain in chains),
        ),
    )


def _spec(reader: _Reader, conv: fx.Node) -> ConvSpec:
    shape = _shape(conv.all_input_nodes[0])
    return conv_spec(reader.modules[str(conv.target)], shape[1:])


def _conv_and_norm(layer: _Layer) -> tuple[str, str | None]:
    return layer.conv.name, layer.norm.name if layer.norm else None


def _describe_layer(reader: _Reader, layer: _Layer, index: int) -> Layer:
    activation = activation_spec(layer.activation, reader.modules) if layer.activation else None
    return Layer(
        index=index,
        name=str(layer.conv.target),
        conv=_spec(reader, layer.conv),
        norm=str(layer.norm.target) if layer.norm else None,
        activation=activation,
        input_shape=_shape(layer.source),
        output_shape=_shape(layer.out),
    )


def _describe_residual(
    reader: _Reader, src: int, dst: int, convs: list[_Layer], chain_input: fx.Node, source: _Layer | None
) -> Residual:
    return Residual(
        src=src,
        dst=dst,
        shortcut=tuple(_spec(reader, layer.conv) for layer in convs),
        shortcut_names=tuple(str(layer.conv.target) for layer in convs),
        source_shape=_shape(source.feature if source else chain_input),
    )


def _commonest(layers: list[Layer]) -> ActivationSpec | None:
    counts = Counter(layer.activation for layer in layers if layer.activation is not None)
    return counts.most_common(1)[0][0] if counts else None


def _barriers(
    reader: _Reader,
    chains: list[list[_Layer]],
    residuals: dict[fx.Node, tuple[_Layer, _Layer | None, list[_Layer]]],
) -> Iterator[Barrier]:
    inside: set[fx.Node] = set()
    for layer in [layer for chain in chains for layer in chain] + [c for r in residuals.values() for c in r[2]]:
        inside.update(node for node in (layer.conv, layer.norm, layer.activation, *layer.adds) if node is not None)
    index = {layer.conv: i for i, layer in enumerate((layer for chain in chains for layer in chain), start=1)}
    after = 0
    for node in reader.nodes:
        after = max(after, index.get(node, 0))
        if node in inside or node.op in ("placeholder", "output", "get_attr") or reader.roles[node] is Role.PASS:
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
    outputs = int(torch.tensor(shape[1:]).prod())
    if isinstance(module, nn.Conv2d):
        kernel = module.kernel_size[0] * module.kernel_size[1]
        return outputs * module.in_channels // module.groups * kernel
    return outputs * module.in_features if isinstance(module, nn.Linear) else 0
