"""Squeeze-and-excitation gates, found in a network's description.

A gate pools a feature map to one number per channel, runs those through one or two small layers and a sigmoid, and
multiplies the feature map by the result. In the description that is a pooling barrier, a chain of pointwise convs on
1x1 maps (or fully connected layers, which are barriers), and a multiplication: three things that a reader wants to
see as the one that they are.

Source: Hu et al., *Squeeze-and-Excitation Networks* (CVPR 2018, arXiv 1709.01507).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from layerfold.graph.description import Barrier, Chain, Layer
from layerfold.graph.network import Network

_POOLS = ("mean", "avgpool", "avg_pool")
_SIGMOIDS = ("sigmoid", "hardsigmoid", "hard_sigmoid")
_BETWEEN = (
    "linear",
    "flatten",
    "view",
    "reshape",
    "squeeze",
    "unsqueeze",
    "getitem",
    "expand",
    "identity",
    "relu",
    "silu",
    "swish",
    "gelu",
    "hardswish",
    "sigmoid",
    "sigmoid_",
    *_SIGMOIDS,
)


@dataclass(frozen=True, kw_only=True)
class SqueezeExcitation:
    """One squeeze-and-excitation gate.

    Attributes:
        name: qualified name of its module where its parts share one, else the name of its multiplication.
        after: index of the last layer before it; it stands behind that position.
        chains: the chains inside it.
        barriers: the barriers that it consists of, from its pooling to its multiplication.
    """

    name: str
    after: int
    chains: tuple[Chain, ...]
    barriers: tuple[Barrier, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers inside it, rising."""
        return tuple(index for chain in self.chains for index in range(chain.start + 1, chain.end + 1))


def find_squeeze_excitations(net: Network) -> tuple[SqueezeExcitation, ...]:
    """Return the squeeze-and-excitation gates of a network, in its order."""
    found = []
    for last, barrier in enumerate(net.barriers):
        if _is_product(barrier):
            first = last - 1
            while first >= 0 and _word(net.barriers[first]) in _BETWEEN:
                first -= 1
            if first >= 0 and any(word in _word(net.barriers[first]) for word in _POOLS):
                gate = _squeeze_excitation(net, net.barriers[first : last + 1])
                found.extend([] if gate is None else [gate])
    return tuple(found)


def chains_outside(net: Network) -> tuple[Chain, ...]:
    """Return the chains that lie in no gate: where merging could make the network shallower."""
    inside = {chain.start for gate in find_squeeze_excitations(net) for chain in gate.chains}
    return tuple(chain for chain in net.chains if chain.start not in inside)


def blocks_with_squeeze_excitation(net: Network, gates: tuple[SqueezeExcitation, ...]) -> tuple[int, int] | None:
    """Return (blocks with a gate, blocks in all), told by module names; None where the names do not tell.

    A block is the module that holds a gate's module; its like are the modules whose names differ from it only in
    numbers: ``blocks.0.1`` and ``blocks.3.0``.
    """
    gated = {gate.name.rpartition(".")[0] for gate in gates}
    patterns = {_numberless(block) for block in gated}
    blocks = {prefix for layer in net.layers for prefix in _prefixes(layer.name) if _numberless(prefix) in patterns}
    if "" in gated or len(gated) != len(gates) or not gated <= blocks:
        return None
    return len(gated), len(blocks)


def _squeeze_excitation(net: Network, barriers: tuple[Barrier, ...]) -> SqueezeExcitation | None:
    after, end = barriers[0].after, barriers[-1].after
    chains = tuple(chain for chain in net.chains if after <= chain.start and chain.end <= end)
    layers = [layer for chain in chains for layer in net.layers[chain.start : chain.end]]
    if not all(_is_on_vectors(layer) for layer in layers) or (len(layers) != end - after):
        return None
    has_sigmoid = any(_word(barrier) in _SIGMOIDS for barrier in barriers) or any(
        layer.activation is not None and layer.activation.kind in _SIGMOIDS for layer in layers
    )
    if not has_sigmoid or not (layers or any(_word(barrier) == "linear" for barrier in barriers)):
        return None
    # Modules carry qualified names, functions the name of a node, in which no dot can be.
    names = [layer.name for layer in layers] + [each.name for each in barriers if "." in each.name]
    return SqueezeExcitation(
        name=_common_module(names) or barriers[-1].name, after=after, chains=chains, barriers=barriers
    )


def _is_on_vectors(layer: Layer) -> bool:
    return layer.input_shape[1:] == (1, 1) and layer.conv.is_pointwise


def _is_product(barrier: Barrier) -> bool:
    return _word(barrier) in ("mul", "imul", "multiply", "mul_")


def _word(barrier: Barrier) -> str:
    return barrier.kind.lower()


def _common_module(names: list[str]) -> str:
    """Return the innermost module that holds all of ``names``."""
    parents = [name.split(".")[:-1] for name in names]
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return ".".join(parts[0] for parts in common)


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)
