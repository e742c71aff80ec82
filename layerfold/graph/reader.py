"""Read chains and residuals off a traced graph (docs/design.md).

The graph is read several times. Each reading assumes that every addition on a chain is a residual of that chain;
what proves otherwise becomes a barrier, and the graph is read again until nothing changes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import fx

from layerfold.graph.rewrites.sums import conv_depths
from layerfold.graph.vocabulary import Role, conv_obstacle, role_of

_LINEAR = (Role.CONV, Role.NORM, Role.POOL, Role.SLICE)


@dataclass(eq=False)
class ReadLayer:
    """A layer being read: its nodes.

    Attributes:
        op: the linear operation, None for a lone addition; norm: the norm node folded into it.
        source: the feature map that it reads; out: its value before additions and activation.
        adds, activation, feature: as of ``LayerNodes``.
    """

    op: fx.Node | None
    norm: fx.Node | None
    source: fx.Node
    out: fx.Node
    adds: list[fx.Node] = field(default_factory=list)
    activation: fx.Node | None = None
    feature: fx.Node = None  # type: ignore[assignment]

    @property
    def entry(self) -> fx.Node:
        """The node by which the layer reads its source."""
        return self.op or self.adds[0]

    def nodes(self) -> list[fx.Node]:
        """Return the nodes that belong to the layer."""
        return [node for node in (self.op, self.norm, self.activation, *self.adds) if node is not None]


@dataclass(frozen=True)
class ReadResidual:
    """An addition on a chain: behind ``dst``, of the feature map of ``src`` (None: the chain's input)."""

    dst: ReadLayer
    src: ReadLayer | None
    shortcut: list[ReadLayer]


Residuals = dict[fx.Node, ReadResidual]


class Reader:
    """Reads one graph under barriers that grow until the reading holds.

    Attributes:
        roles: of each node, under the present barriers; passes: the nodes that do nothing, wherever they are.

    Args:
        module: traced, its nodes with shapes.
        excluded: names of modules that stay out of every chain, with all below them.
        merge_pooling: whether average pooling is a layer.
    """

    def __init__(self, module: fx.GraphModule, excluded: tuple[str, ...], *, merge_pooling: bool) -> None:
        self.modules = dict(module.named_modules())
        self.nodes = list(module.graph.nodes)
        self.roles = {node: role_of(node, self.modules) for node in self.nodes}
        self.passes = {node for node in self.nodes if self.roles[node] is Role.PASS}
        self._order = {node: i for i, node in enumerate(self.nodes)}
        self._depths = conv_depths(module.graph, self.modules)
        self._barrier_adds: set[fx.Node] = set()
        self._cuts: set[fx.Node] = set()
        self._bar(excluded, merge_pooling)

    def _bar(self, excluded: tuple[str, ...], merge_pooling: bool) -> None:
        """Take the linear role from modules that are shared or excluded, and from what is no feature map."""
        uses = Counter(str(node.target) for node in self.nodes if node.op == "call_module")
        identities = Counter(id(self.modules[name]) for name in uses)
        for node in self.nodes:
            if self.roles[node] in _LINEAR and node.op == "call_module":
                name = str(node.target)
                is_shared = uses[name] > 1 or identities[id(self.modules[name])] > 1
                if is_shared or any(name == e or name.startswith(f"{e}.") for e in excluded):
                    self.roles[node] = Role.OTHER
            if self.roles[node] is Role.POOL and not merge_pooling:
                self.roles[node] = Role.OTHER
            if self.roles[node] in (*_LINEAR, Role.ACTIVATION, Role.PASS) and not _is_feature_map(node):
                self.roles[node] = Role.OTHER
        # The norm of a conv that could be on a chain but is kept out stays with it: it is folded there for nothing.
        for node in self.nodes:
            if self.roles[node] is Role.NORM:
                before = self.origin(node.all_input_nodes[0])
                is_conv = before.op == "call_module" and conv_obstacle(self.modules[str(before.target)]) is None
                if is_conv and self.roles[before] is Role.OTHER and len(self.consumers(before)) == 1:
                    self.roles[node] = Role.OTHER
            if self.roles[node] is Role.ADD and len(set(self._operands(node))) < 2:
                self.roles[node] = Role.OTHER  # of one feature map twice, once perhaps through a dropout

    def read(self) -> tuple[list[list[ReadLayer]], Residuals]:
        """Return chains, as lists of layers, and the residual of each addition on them."""
        while True:
            layers = self._layers()
            shortcuts = self._shortcuts(layers)
            in_shortcut = {layer for convs, _ in shortcuts.values() for layer in convs}
            chains = self._link([layer for layer in layers if layer not in in_shortcut])
            residuals = self._residuals(chains, shortcuts)
            if residuals is not None and self._holds(chains, residuals):
                return chains, residuals

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

    def _layers(self) -> list[ReadLayer]:
        layers: list[ReadLayer] = []
        taken: set[fx.Node] = set()
        for node in self.nodes:
            if node in taken:
                continue
            layer = None
            if self.roles[node] in _LINEAR:
                layer = self._linear_layer(node)
            elif self.roles[node] is Role.ADD and node not in self._barrier_adds:
                main = self._main(node)
                if self.roles[main] is Role.ACTIVATION and self.consumers(main) == [node]:
                    layer = ReadLayer(op=None, norm=None, source=main, out=main)
            if layer is not None:
                self._walk_tail(layer)
                layers.append(layer)
                taken.update(layer.nodes())
        return layers

    def _linear_layer(self, node: fx.Node) -> ReadLayer:
        norm = None
        after = self.consumers(node)
        if self.roles[node] is Role.CONV and len(after) == 1 and self.roles[after[0]] is Role.NORM:
            norm = after[0]
        return ReadLayer(op=node, norm=norm, source=self.origin(node.all_input_nodes[0]), out=norm or node)

    def _walk_tail(self, layer: ReadLayer) -> None:
        """Follow a layer's value over its additions and its activation to the feature map that others read."""
        current = layer.out
        while True:
            readers = self.consumers(current)
            if len(readers) != 1:
                break
            reader = readers[0]
            if self.roles[reader] is Role.ADD and reader not in self._barrier_adds and self._main(reader) is current:
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
        """Return the operand on the longer path: the chain; the other one is the residual."""
        return max(self._operands(add), key=self._length)

    def _length(self, node: fx.Node) -> tuple[int, int, int, int]:
        """Rank branches: more convs, then the larger last kernel (RepVGG), then more norms, then the earlier node.

        A sum ranks as the longest of what it adds.
        """
        node = self.origin(node)
        if self.roles[node] is Role.ADD:
            return max(self._length(operand) for operand in self._operands(node))
        convs, others = self._depths[node]
        return convs, self._kernel(node), others, -self._order[node]

    def _kernel(self, node: fx.Node) -> int:
        while self.roles[node] in (Role.NORM, Role.PASS):
            node = node.all_input_nodes[0]
        if self.roles[node] is not Role.CONV:
            return 0
        kernel = self.modules[str(node.target)].kernel_size
        return int(kernel[0]) * int(kernel[1])

    def _shortcuts(self, layers: list[ReadLayer]) -> dict[fx.Node, tuple[list[ReadLayer], fx.Node]]:
        """Return, for each addition, the layers of its shortcut and the value that the shortcut starts from."""
        by_out = {layer.out: layer for layer in layers if layer.op is not None}
        found = {}
        for layer in layers:
            for add in layer.adds:
                main = self._main(add)
                value = next(node for node in self._operands(add) if node is not main)
                way: list[ReadLayer] = []
                while value in by_out and len(self.consumers(value)) == 1:
                    way.insert(0, by_out[value])
                    value = by_out[value].source
                found[add] = (way, value)
        return found

    def _link(self, layers: list[ReadLayer]) -> list[list[ReadLayer]]:
        readers: dict[fx.Node, list[ReadLayer]] = {}
        for layer in layers:
            readers.setdefault(layer.source, []).append(layer)
        following = {
            layer: readers[layer.feature][0]
            for layer in layers
            if layer.feature not in self._cuts and len(readers.get(layer.feature, ())) == 1
        }
        followers = set(following.values())
        chains = []
        for head in [layer for layer in layers if layer not in followers]:
            chain = [head]
            while chain[-1] in following:
                chain.append(following[chain[-1]])
            chains.append(chain)
        return chains

    def _residuals(
        self, chains: list[list[ReadLayer]], shortcuts: dict[fx.Node, tuple[list[ReadLayer], fx.Node]]
    ) -> Residuals | None:
        """Return what each addition adds; None after making barriers of those that add from outside their chain."""
        found: Residuals = {}
        for chain in chains:
            features: dict[fx.Node, ReadLayer | None] = {chain[0].source: None}
            for layer in chain:
                for add in layer.adds:
                    way, value = shortcuts[add]
                    if value in features:
                        found[add] = ReadResidual(layer, features[value], way)
                features[layer.feature] = layer
        # Additions of layers that ended up inside no chain (their layer is someone's shortcut) cannot be kept either.
        bad = [add for add in shortcuts if add not in found]
        self._barrier_adds.update(bad)
        return None if bad else found

    def _holds(self, chains: list[list[ReadLayer]], residuals: Residuals) -> bool:
        """Check what the reading assumed of each chain; False after adding barriers."""
        branches: dict[ReadLayer, list[fx.Node]] = {}
        for add, residual in residuals.items():
            entry = residual.shortcut[0].entry if residual.shortcut else add
            branches.setdefault(residual.dst, []).append(entry)
        holds = True
        for chain in chains:
            if all(layer.op is None or self.roles[layer.op] is not Role.CONV for layer in chain):
                self._dissolve(chain, residuals)
                holds = False
                continue
            members = {layer.entry for layer in chain}
            members.update(entry for layer in chain for entry in branches.get(layer, ()))
            for layer in chain[:-1]:
                if any(reader not in members for reader in self.consumers(layer.feature)):
                    self._cuts.add(layer.feature)
                    holds = False
        return holds

    def _dissolve(self, chain: list[ReadLayer], residuals: Residuals) -> None:
        """Make barriers of a chain that has no conv: there is nothing to merge on it."""
        for layer in chain:
            way = [other for add in layer.adds for other in residuals[add].shortcut]
            for each in (layer, *way):
                if each.op is not None:
                    self.roles[each.op] = Role.OTHER
            self._barrier_adds.update(layer.adds)


def _is_feature_map(node: fx.Node) -> bool:
    return len(node.meta.get("shape", ())) == 4
