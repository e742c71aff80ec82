"""What every small network is held to: both forms agree, at two input sizes, and the original plan is the original."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import layerfold as lf

TOLERANCE = 1e-9
_MOST = 12


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in float64 and eval mode, every parameter and every running statistic drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if not value.is_floating_point() or value.numel() == 0:
                continue
            drawn = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            if "running_var" in name:
                value.copy_(0.5 + drawn)
            elif value.dim() >= 4 and value.shape[1:].numel() > 1:
                value.copy_((drawn - 0.5) * 2 / value.shape[1:].numel() ** 0.5)
            elif "bias" in name or "running_mean" in name:
                value.copy_(drawn - 0.5)
            else:
                value.copy_(0.5 + drawn)
    return model


@torch.no_grad()
def relative_error(found: Any, expected: Any) -> float:
    """Return the largest difference over the largest expected value, over all tensors of an output; shapes agree."""
    ours, theirs = list(tensors(found)), list(tensors(expected))
    assert [each.shape for each in ours] == [each.shape for each in theirs]
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        worst = max(worst, float((one - other).abs().max()) / max(float(other.abs().max()), 1e-30))
    return worst


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


def all_positions(net: lf.Network) -> tuple[int, ...]:
    return tuple(range(1, len(net.layers) + 1))


def original_plan(net: lf.Network) -> lf.Solution:
    return lf.Solution(act_pos=net.original_act_pos, merge_pos=all_positions(net))


def solutions(net: lf.Network, most: int = _MOST, seed: int = 0) -> list[lf.Solution]:
    """Return every (A, S) if there are at most ``most``, else a random choice of them."""
    per_chain = []
    for chain in net.chains:
        ends: dict[int, list[int]] = {}
        for segment in net.candidates(max_kernel=1000):
            if chain.start <= segment.start < chain.end:
                ends.setdefault(segment.start, []).append(segment.end)
        paths: list[tuple[int, ...]] = []
        _walk(chain.start, chain.end, ends, (), paths)
        choices = []
        for path in paths:
            slots = [p for p in path if p < chain.end] if chain.activation is not None else []
            choices += [(path, acts) for size in range(len(slots) + 1) for acts in itertools.combinations(slots, size)]
        per_chain.append(choices)
    rng = random.Random(seed)
    total = 1
    for choices in per_chain:
        total *= len(choices)
    if total <= most:
        picked = list(itertools.product(*per_chain))
    else:
        picked = [tuple(rng.choice(choices) for choices in per_chain) for _ in range(most)]
    return [
        lf.Solution(
            act_pos=tuple(p for _, acts in parts for p in acts), merge_pos=tuple(p for path, _ in parts for p in path)
        )
        for parts in picked
    ]


def _walk(
    position: int, end: int, ends: dict[int, list[int]], way: tuple[int, ...], paths: list[tuple[int, ...]]
) -> None:
    if position == end:
        paths.append(way)
    elif len(paths) < 300:
        for following in ends[position]:
            _walk(following, end, ends, (*way, following), paths)


def check(
    model: nn.Module,
    *shapes: tuple[int, ...],
    merge_pooling: bool = False,
    exclude: tuple[str, ...] = (),
    larger: int = 3,
    most: int = _MOST,
) -> lf.Network:
    """Hold a network to the promise, and return its description for claims of the test's own.

    Args:
        shapes: of its inputs; the second size is ``larger`` pixels more.
    """
    randomise(model)
    generator = torch.Generator().manual_seed(1)
    sizes = [shapes, tuple((*shape[:2], shape[2] + larger, shape[3] + larger) for shape in shapes)]
    batches = [
        tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in inputs) for inputs in sizes
    ]
    net = lf.trace_network(model, batches[0], merge_pooling=merge_pooling, exclude=exclude)
    for layer in net.layers:
        assert layer.conv.output_shape(layer.input_shape) == layer.output_shape, layer
    with torch.no_grad():
        for solution in (original_plan(net), *solutions(net, most)):
            student = lf.build_train_form(model, net, solution)
            merged = lf.merge_network(student)
            for inputs in batches:
                outputs = student(*_copies(inputs))
                assert relative_error(merged(*_copies(inputs)), outputs) <= TOLERANCE, solution
                if solution == original_plan(net):
                    expected = model(*_copies(inputs))
                    assert relative_error(outputs, expected) <= TOLERANCE
    return net


def _copies(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Models may change their input in place."""
    return tuple(value.clone() for value in inputs)


def barriers(net: lf.Network) -> dict[str, str]:
    """Return the reason of each barrier by its kind."""
    return {barrier.kind: barrier.reason for barrier in net.barriers}


def chains(net: lf.Network) -> list[tuple[int, int]]:
    return [(chain.start, chain.end) for chain in net.chains]


def residuals(net: lf.Network) -> list[tuple[int, int, tuple[str, ...]]]:
    """Return (src, dst, kinds of the shortcut's layers)."""
    return [(each.src, each.dst, tuple(spec.kind for spec in each.shortcut)) for each in net.residuals]


def kinds(net: lf.Network) -> list[str]:
    return [layer.kind for layer in net.layers]


def activations(net: lf.Network) -> list[str | None]:
    return [None if layer.activation is None else layer.activation.kind for layer in net.layers]
