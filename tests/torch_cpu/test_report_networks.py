"""Real networks are drawn whole."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import pytest
import torch
import torchvision

from layerfold.graph import trace_network
from layerfold.report import layout, network_svg


@dataclass(frozen=True)
class Positions:
    act_pos: tuple[int, ...]
    merge_pos: tuple[int, ...]


@pytest.mark.parametrize(
    ("name", "num_layers", "num_marks"), [("mobilenet_v2", 52, 1), ("squeezenet1_1", 26, 10), ("resnet18", 17, 2)]
)
def test_every_layer_residual_and_barrier_of_a_real_network_is_drawn(
    name: str, num_layers: int, num_marks: int
) -> None:
    net = trace_network(getattr(torchvision.models, name)(weights=None).eval(), torch.zeros(1, 3, 64, 64))
    candidates = {segment.start: segment for segment in net.candidates(max_kernel=7)}  # the longest from each start
    merge_pos = []
    for chain in net.chains:
        position = chain.start
        while position < chain.end:
            position = candidates[position].end
            merge_pos.append(position)
    solution = Positions(act_pos=tuple(set(merge_pos) & set(net.original_act_pos)), merge_pos=tuple(merge_pos))
    svg = network_svg(net, solution)
    ET.fromstring(svg)
    assert sorted(layout.place(net, merge_pos).boxes) == list(range(1, num_layers + 1))
    assert svg.count('class="lf-arc') == len(net.residuals)
    assert len(layout.place(net).marks) == num_marks
    for barrier in net.barriers:
        assert barrier.reason in svg
