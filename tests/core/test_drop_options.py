"""Options with dropped layers: of each merged kernel the best layers to keep, as enumeration finds them."""

from __future__ import annotations

import random

import pytest

from layerfold.errors import SolutionError
from layerfold.graph.description import Segment
from layerfold.graph.drop_options import _best_of_each_kernel, _ways_from
from layerfold.graph.network import Network
from tests.oracles.drop_options import best_norms, random_network


def norms_of(net: Network, seed: int) -> dict[int, float]:
    rng = random.Random(seed)
    whole = rng.random() < 0.3  # ties
    return {layer.index: float(rng.randint(1, 3)) if whole else rng.random() for layer in net.layers}


def best_ways(net: Network, start: int, end: int, norms: dict[int, float]) -> dict[str, tuple[float, Segment]]:
    """Return, by merged kernel, the greatest summed norm of one segment and the segment that has it."""
    by_end = dict(_ways_from(net, net.chain_of(end), start, end, norms, 1_000_000))
    return _best_of_each_kernel(net, start, end, norms, by_end.get(end, []))


def test_kept_layers_have_the_greatest_norm_of_all_that_merge_into_the_same_kernel() -> None:
    compared = with_drops = 0
    for seed in range(160):
        net = random_network(seed)
        norms = norms_of(net, seed)
        for segment in net.candidates(max_kernel=99):
            expected = best_norms(net, segment.start, segment.end, norms)
            ways = best_ways(net, segment.start, segment.end, norms)
            found = {text: norm for text, (norm, _) in ways.items()}
            assert found == pytest.approx(expected), f"seed {seed}, segment ({segment.start}, {segment.end})"
            for norm, way in ways.values():
                assert norm == pytest.approx(sum(norms[index] for index in way.kept))
            compared += 1
            with_drops += len(expected) > 1
    assert compared > 800
    assert with_drops > 350


def test_options_hold_no_part_that_is_an_option_by_itself() -> None:
    """Together with the identities they reach what every option reaches."""
    for seed in range(100):
        net = random_network(seed)
        norms = norms_of(net, seed)
        whole = {(each.start, each.end) for each in net.candidates(max_kernel=99)}
        options = [each for each in net.candidates(max_kernel=99, layer_norms=norms) if each.dropped]
        keys = {each.key for each in options}
        assert len(keys) == len(options)
        for option in options:
            assert option.merged != net.segment(option.start, option.end).merged
            edges = [(option.start, stop) for stop in range(option.start + 1, option.end)]
            edges += [(stop, option.end) for stop in range(option.start + 1, option.end)]
            for start, end in edges:
                part = (start, end, "identity")
                inner, outer = (end, start) if start == option.start else (start, end)
                between = net.layer(inner).activation
                if between is not None and (outer == 0 or between != net.layer(outer).activation):
                    continue  # something new is activated between the two: another network
                if part in keys and (start, end) in whole:
                    lost = set(range(start + 1, end + 1))
                    assert not lost <= set(option.dropped) or any(
                        start <= residual.src < end < residual.dst
                        or residual.src < start < residual.dst <= end
                        or (residual.src, residual.dst) == (option.start, option.end)
                        for residual in net.residuals
                    ), f"seed {seed}: {option.key} holds {part}"


def test_limits_hold_for_options_with_drops() -> None:
    net = random_network(5)
    norms = norms_of(net, 5)
    for option in net.candidates(max_kernel=5, layer_norms=norms):
        assert option.num_layers == 1 or max(option.conv.kernel_size) <= 5
    dropped = [each for each in net.candidates(max_growth=1.0, layer_norms=norms) if len(each.kept) > 1]
    for option in dropped:
        assert option.macs <= sum(net.segment(index - 1, index).macs for index in option.kept)


def test_without_norms_no_layer_is_dropped() -> None:
    assert not any(each.dropped for each in random_network(1).candidates())


def test_layer_that_changes_the_shape_goes_only_with_its_branch() -> None:
    net = next(
        found
        for found in map(random_network, range(100))
        if any(layer.input_shape != layer.output_shape for layer in found.layers) and not found.residuals
    )
    layer = next(each for each in net.layers if each.input_shape != each.output_shape)
    with pytest.raises(SolutionError, match=f"kept_layers lacks layer {layer.index} .*changes .* to .*; keep it"):
        net.segment(layer.index - 1, layer.index, (layer.index,))
