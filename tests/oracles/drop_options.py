"""Which layers may go, by trying every set of them; and random networks, described without weights, to try it on."""

from __future__ import annotations

import random
from itertools import combinations

from layerfold.errors import SolutionError
from layerfold.graph.description import Chain, Layer, Residual
from layerfold.graph.network import Network
from layerfold.graph.specs import ActivationSpec, ConvSpec, Shape

RELU = ActivationSpec(kind="relu")


def random_network(seed: int, *, most_layers: int = 7) -> Network:
    """Return one chain of a few convs, with residuals that nest, share ends, or have a conv of their own."""
    rng = random.Random(seed)
    shape: Shape = (4, 32, 32)
    layers: list[Layer] = []
    shapes = [shape]
    for index in range(1, rng.randint(2, most_layers) + 1):
        channels = shape[0] if rng.random() < 0.65 else rng.choice([4, 8])
        size = rng.choice([1, 1, 3, 3, 5])
        stride = 2 if rng.random() < 0.12 else 1
        groups = rng.choice([1, 1, 1, 2, shape[0]]) if channels % shape[0] == 0 else 1
        conv = ConvSpec(
            in_channels=shape[0],
            out_channels=channels,
            kernel_size=(size, size),
            stride=(stride, stride),
            padding=((size // 2, size // 2), (size // 2, size // 2)),
            groups=groups,
        )
        after = conv.output_shape(shape)
        layers.append(
            Layer(
                index=index,
                name=f"conv{index}",
                conv=conv,
                norm=None,
                input_shape=shape,
                output_shape=after,
                activation=RELU if rng.random() < 0.7 else None,
            )
        )
        shape = after
        shapes.append(shape)
    residuals: list[Residual] = []
    for _ in range(rng.randint(0, 3)):
        src, dst = sorted(rng.sample(range(len(layers) + 1), 2))
        way = _shortcut(shapes[src], shapes[dst])
        residuals.append(
            Residual(src=src, dst=dst, shortcut=way, shortcut_names=("shortcut",) * len(way), source_shape=shapes[src])
        )
    residuals.sort(key=lambda residual: residual.dst)
    return Network(
        name="random",
        layers=tuple(layers),
        chains=(Chain(start=0, end=len(layers), activation=RELU),),
        residuals=tuple(residuals),
        barriers=(),
        input_shapes=((1, *shapes[0]),),
        macs=0,
        num_params=0,
    )


def _shortcut(source: Shape, target: Shape) -> tuple[ConvSpec, ...]:
    if source == target:
        return ()
    stride = source[1] // target[1]
    return (ConvSpec(in_channels=source[0], out_channels=target[0], kernel_size=(1, 1), stride=(stride, stride)),)


def best_norms(net: Network, start: int, end: int, norms: dict[int, float]) -> dict[str, float]:
    """Return, by merged kernel, the greatest summed norm of the layers kept, over every set of layers dropped."""
    layers = range(start + 1, end + 1)
    found: dict[str, float] = {}
    for count in range(len(layers) + 1):
        for dropped in combinations(layers, count):
            try:
                segment = net.segment(start, end, dropped)
            except SolutionError:
                continue
            if segment.is_identity and dropped and _is_part_of_a_branch(net, start, end):
                continue
            norm = sum(norms[index] for index in layers if index not in dropped)
            found[segment.merged] = max(found.get(segment.merged, -1.0), norm)
    return found


def _is_part_of_a_branch(net: Network, start: int, end: int) -> bool:
    return any(
        residual.src <= start and end <= residual.dst and end - start < residual.dst - residual.src
        for residual in net.residuals
    )
