"""Real networks are drawn whole: long chains, many chains, chains side by side, and gates."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from layerfold.graph import Network, Segment, trace_network
from layerfold.graph.squeeze_excitation import SqueezeExcitation, find_squeeze_excitations
from layerfold.models import load_model
from layerfold.report import layout, network_svg
from layerfold.report.placing import place


@dataclass(frozen=True)
class Positions:
    act_pos: tuple[int, ...]
    merge_pos: tuple[int, ...]


@cache
def _trace(name: str) -> Network:
    return trace_network(load_model(name).module, torch.zeros(1, 3, 96, 96))


def _longest(net: Network, candidates: list[Segment]) -> Positions:
    """Return a solution that takes the longest candidate from each start."""
    ends = {segment.start: segment.end for segment in candidates}
    merge_pos = []
    for chain in net.chains:
        position = chain.start
        while position < chain.end:
            position = ends[position]
            merge_pos.append(position)
    return Positions(act_pos=tuple(set(merge_pos) & set(net.original_act_pos)), merge_pos=tuple(merge_pos))


NETWORKS = {
    "torchvision:mobilenet_v2": (52, 1),
    "torchvision:squeezenet1_1": (26, 10),
    "torchvision:resnet18": (17, 2),
    "torchvision:densenet121": (181, 62),  # 61 lone norms
    "torchvision:googlenet": (57, 20),
    "timm:efficientnet_b0": (49, 26),  # without the two layers in each of 16 gates
    "timm:regnety_004": (53, 32),
}


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_residual_and_barrier_of_a_real_network_is_drawn(name: str) -> None:
    net = _trace(name)
    solution = _longest(net, net.candidates(max_kernel=7))
    svg = network_svg(net, solution)
    ET.fromstring(svg)
    placed = place(net, solution.merge_pos)
    gates = {index for gate in find_squeeze_excitations(net) for index in gate.layers}
    assert sorted(placed.boxes) == [layer.index for layer in net.layers if layer.index not in gates]
    assert svg.count('class="lf-arc') == len(net.residuals)
    assert (len(placed.boxes), len(placed.marks)) == NETWORKS[name]
    drawn = [item for mark in placed.marks for item in mark.items]
    barriers = [each for item in drawn for each in (item.barriers if isinstance(item, SqueezeExcitation) else (item,))]
    assert sorted(map(id, barriers)) == sorted(map(id, net.barriers))  # each once


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("name", [*NETWORKS, pytest.param("timm:hrnet_w18", marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_merged", [False, True])
def test_nothing_overlaps_and_all_stays_on_the_page(name: str, is_merged: bool) -> None:
    net = _trace(name)
    placed = place(net, _longest(net, net.candidates(max_kernel=7)).merge_pos if is_merged else None, top=70)
    tracks = placed.tracks
    areas = [
        (box.x, box.right, tracks[box.track].y - box.height / 2, tracks[box.track].y + box.height / 2)
        for box in placed.boxes.values()
    ]
    for mark in placed.marks:
        areas.append((mark.x - 9, mark.x + 9, *placed.extent(mark)))
    for left, right, top, bottom in areas:
        assert 0 <= left < right <= layout.MARGIN + layout.ROW_WIDTH + layout.MARGIN
        assert 70 - 4 <= top < bottom <= 70 + placed.height
    for one, other in itertools.combinations(areas, 2):
        assert one[0] >= other[1] or other[0] >= one[1] or one[2] >= other[3] or other[2] >= one[3]


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_branches_of_an_inception_block_stand_side_by_side() -> None:
    net = _trace("torchvision:googlenet")
    placed = place(net)
    heads = [
        layer.index
        for layer in net.layers
        if layer.name
        in {
            "inception3a.branch1.conv",
            "inception3a.branch2.0.conv",
            "inception3a.branch3.0.conv",
            "inception3a.branch4.1.conv",
        }
    ]
    assert len({placed.boxes[index].track for index in heads}) == 4
    (pool,) = [mark for mark in placed.marks if mark.items[0].name == "inception3a.branch4.0"]
    assert pool.tracks == (placed.boxes[heads[3]].track,) * 2  # in its own branch
    (joined,) = [mark for mark in placed.marks if mark.items[0].name == "cat"]
    assert joined.x > max(box.right for box in placed.boxes.values() if box.track in range(1, 5))


def test_each_gate_is_one_mark_and_its_layers_are_not_drawn() -> None:
    net = _trace("timm:efficientnet_b0")
    svg = network_svg(net)
    texts = [text.text for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("squeeze-excite") == 16
    assert "Why not more: 16 of 16 blocks end at squeeze-and-excitation" in svg
    assert "blocks.0.0.se (squeeze-and-excitation, layers 3, 4)" in svg
    assert "se.conv_reduce" not in svg
