"""What a traced network looks like: layers, positions, chains, residuals, barriers, segments.

Words as in docs/design.md. A description only: no weights, no torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from layerfold.errors import SolutionError
from layerfold.graph.specs import ActivationSpec, ConvSpec, Kind, Shape
from layerfold.tables.kernel import IDENTITY, SegmentKey, kernel_text
from layerfold.tables.levers import DROP, Change


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A conv with the BatchNorm after it, if any; layer m ends at position m.

    Other linear operations on a chain are layers as well, written as convs: a BatchNorm that follows no conv (networks
    that normalise and activate before each conv), a multiplication by constants (layer scale), average pooling where
    asked for, and an addition that follows an activation.

    Attributes:
        index: 1..N in topological order over all chains.
        name: qualified name of the module, or of the node for an addition.
        conv: the conv, or the operation written as one; ``conv.kind`` says which.
        norm: qualified name of the norm module folded into it, or None.
        activation: what stands in the slot at position ``index``, or None for an empty slot.
        input_shape, output_shape: (channels, height, width) at the traced input.
        variant: the word of the lever that changed it; empty in the original.

    Example:
        >>> first = net.layers[0]
        >>> first.name, first.norm, first.activation.kind
        ('0', '1', 'relu')
        >>> first.input_shape, first.output_shape
        ((3, 8, 8), (8, 8, 8))
    """

    index: int
    name: str
    conv: ConvSpec
    norm: str | None
    activation: ActivationSpec | None
    input_shape: Shape
    output_shape: Shape
    variant: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return its fields; ``variant`` only if it has one, so that files and hashes of unchanged networks stay."""
        return {name: value for name, value in asdict(self).items() if value != "" or name != "variant"}

    @property
    def kind(self) -> Kind:
        """Operation that computes the layer where it stands alone; ``conv`` for nearly all."""
        return self.conv.kind


@dataclass(frozen=True, kw_only=True)
class Residual:
    """The feature map at ``src`` is added at ``dst``, before dst's activation.

    Attributes:
        src, dst: positions, src < dst.
        shortcut: the convs on the way, each with its norm folded; empty for an identity.
        shortcut_names: qualified names of those convs.
        source_shape: (channels, height, width) of the feature map at ``src``.

    Example:
        >>> from torchvision.models.resnet import BasicBlock
        >>> residual = lf.trace_network(BasicBlock(8, 8), torch.zeros(1, 8, 8, 8)).residuals[0]
        >>> residual.src, residual.dst, residual.is_identity
        (0, 2, True)
    """

    src: int
    dst: int
    shortcut: tuple[ConvSpec, ...] = ()
    shortcut_names: tuple[str, ...] = ()
    source_shape: Shape = (0, 0, 0)

    @property
    def is_identity(self) -> bool:
        return not self.shortcut


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Layers start+1..end, each feeding only the next.

    Attributes:
        start, end: positions; ``start`` is the chain's input.
        activation: the chain's commonest activation, which fills an empty slot; None if the chain has none.

    Example:
        >>> [(chain.start, chain.end, chain.activation.kind) for chain in net.chains]
        [(0, 3, 'relu')]
    """

    start: int
    end: int
    activation: ActivationSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Barrier:
    """Something that chains do not cross.

    Attributes:
        name: the node's name in the traced graph, or the module's qualified name.
        kind: what it is, for example ``max_pool2d``.
        reason: one clause that says why nothing merges across it.
        after: index of the last layer before it, 0 before the first.

    Example:
        >>> [(barrier.kind, barrier.after) for barrier in net.barriers]
        [('AdaptiveAvgPool2d', 3), ('Flatten', 3), ('Linear', 3)]
    """

    name: str
    kind: str
    reason: str
    after: int = 0


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Layers start+1..end, to be merged into ``conv``.

    Attributes:
        start, end: positions.
        conv: the merged conv.
        input_shape, output_shape: (channels, height, width).
        activation: the original activation at ``end``, or None.
        open_residuals: residuals that end at ``end`` and begin before ``start``: they stay as an addition
            behind the merged conv, with their shortcut convs.
        dropped: layers of it that are left out; where that is every one, ``conv`` is of kind ``identity``, unless a
            shortcut conv is left of a residual.
        variant: what a lever but ``drop`` changed of its layers; None for nothing.

    Example:
        >>> segment = net.segment(1, 3)
        >>> segment.num_layers, segment.merged, segment.macs
        (2, '5x5', 102400)
        >>> segment.is_changed
        True
    """

    start: int
    end: int
    conv: ConvSpec
    input_shape: Shape
    output_shape: Shape
    activation: ActivationSpec | None = None
    open_residuals: tuple[Residual, ...] = ()
    dropped: tuple[int, ...] = ()
    variant: Change | None = None

    @property
    def change(self) -> Change | None:
        """What a lever changed of its layers, dropped ones included; None for nothing."""
        return Change(DROP, self.dropped) if self.dropped else self.variant

    @property
    def num_layers(self) -> int:
        return self.end - self.start

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers that stay, rising."""
        return tuple(index for index in range(self.start + 1, self.end + 1) if index not in self.dropped)

    @property
    def is_changed(self) -> bool:
        """Whether it is anything else than one layer as it stands."""
        return self.num_layers > 1 or self.change is not None

    @property
    def is_identity(self) -> bool:
        """Whether nothing is computed but additions and the activation at its end."""
        return self.conv.kind == "identity"

    @property
    def is_free(self) -> bool:
        """Whether it takes no time: an identity without additions.

        An activation of a kind that changes nothing when it is applied again is left out behind an identity.
        """
        return (
            self.is_identity and not self.open_residuals and (self.activation is None or self.activation.is_idempotent)
        )

    @property
    def merged(self) -> str:
        """The merged kernel as tables write it (``layerfold.tables.kernel``), for example ``3x3 dw``."""
        if self.is_identity:
            return IDENTITY
        conv = self.conv
        text = kernel_text(
            conv.kernel_size,
            stride=conv.stride,
            dilation=conv.dilation,
            groups=conv.groups,
            is_depthwise=conv.is_depthwise,
        )
        return text if self.variant is None else f"{text} +{self.variant.word}"

    @property
    def key(self) -> SegmentKey:
        """Key in tables: (start, end), and its merged kernel where layers are changed."""
        return (self.start, self.end) if self.change is None else (self.start, self.end, self.merged)

    @property
    def macs(self) -> int:
        """Multiply-adds of the merged conv and of the shortcut convs that stay, for one image."""
        total = self.conv.macs(self.input_shape)
        for residual in self.open_residuals:
            total += shortcut_macs(residual)
        return total

    @property
    def signature(self) -> str:
        """Text of all that decides the segment's latency; equal signatures are measured once (docs/design.md)."""
        parts = [_shape_text(self.input_shape), _conv_text(self.conv), f"act:{self.activation or 'none'}"]
        for residual in self.open_residuals:
            convs = "+".join(_conv_text(conv) for conv in residual.shortcut) or "identity"
            parts.append(f"add:{_shape_text(residual.source_shape)}:{convs}")
        parts += [] if self.variant is None else [f"change:{self.variant.word}"]
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Description:
    """Parts of a traced network.

    Attributes:
        name: the model's class name.
        layers: layers 1..N.
        chains: in topological order; together they hold every layer once.
        residuals: those that lie inside a chain.
        barriers: what stands between and beside the chains, with reasons.
        notes: what a user should know of how it was read, for example parts that could not be traced.
        input_shapes: shape of each input, batch included.
        macs: multiply-adds of the whole network for one image (convs and linear layers).
        num_params: parameters of the whole network.
        graph: the torch.fx graph it was read from; private to ``graph`` and ``merge``.
    """

    name: str
    layers: tuple[Layer, ...]
    chains: tuple[Chain, ...]
    residuals: tuple[Residual, ...]
    barriers: tuple[Barrier, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    macs: int
    num_params: int
    notes: tuple[str, ...] = ()
    graph: Any = field(default=None, compare=False, repr=False)

    def layer(self, index: int) -> Layer:
        """Return layer ``index`` (1..N)."""
        return self.layers[index - 1]

    def chain_of(self, position: int) -> Chain:
        """Return the chain that holds layer ``position`` (1..N)."""
        for chain in self.chains:
            if chain.start < position <= chain.end:
                return chain
        raise SolutionError(f"position {position} lies in no chain; the network has positions 1..{len(self.layers)}")

    def has_activation(self, position: int) -> bool:
        """Say whether the slot at ``position`` is filled in the original."""
        return self.layer(position).activation is not None

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the description (no weights): what a solution or latency table was made for."""
        plain = asdict(replace(self, graph=None))
        for name in ("name", "notes"):
            plain.pop(name)
        plain["layers"] = [layer.to_json() for layer in self.layers]
        plain["input_shapes"] = [shape[1:] for shape in self.input_shapes]  # any batch size will do
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def original_act_pos(self) -> tuple[int, ...]:
        """Positions with an activation in the original network."""
        return tuple(layer.index for layer in self.layers if layer.activation is not None)


def shortcut_macs(residual: Residual) -> int:
    """Return the multiply-adds of a residual's shortcut convs for one image."""
    total, shape = 0, residual.source_shape
    for conv in residual.shortcut:
        total += conv.macs(shape)
        shape = conv.output_shape(shape)
    return total


def _shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _conv_text(conv: ConvSpec) -> str:
    (top, bottom), (left, right) = conv.padding
    return (
        f"{conv.kind}:o{conv.out_channels},k{conv.kernel_size[0]}x{conv.kernel_size[1]},"
        f"s{conv.stride[0]}x{conv.stride[1]},p{top}.{bottom}.{left}.{right},"
        f"d{conv.dilation[0]}x{conv.dilation[1]},g{conv.groups}"
    )
