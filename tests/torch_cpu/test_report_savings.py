"""What the report says that merging saved is what network and table say."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import resnet18

from layerfold import LatencyEntry, LatencyTable, Network, Solution, trace_network
from layerfold.report import merged_segments


@pytest.fixture(scope="module")
def net() -> Network:
    return trace_network(resnet18(weights=None).eval(), torch.zeros(1, 3, 64, 64))


def _solution(net: Network, merged: tuple[int, int]) -> Solution:
    start, end = merged
    stops = [position for position in range(1, len(net.layers) + 1) if not start < position < end]
    return Solution(act_pos=(), merge_pos=tuple(stops))


def test_latencies_are_the_tables(net: Network) -> None:
    singles = [LatencyEntry(start=i, end=i + 1, latency_ms=0.1 * (i + 1)) for i in range(17)]
    table = LatencyTable([*singles, LatencyEntry(start=1, end=3, latency_ms=0.4)])
    (saved,) = merged_segments(net, _solution(net, (1, 3)), table)
    assert (saved.start, saved.end) == (1, 3)
    assert saved.layers == ("layer1.0.conv1", "layer1.0.conv2")
    assert saved.conv == "5×5, 64→64"
    assert saved.before_ms == pytest.approx(0.2 + 0.3)
    assert saved.after_ms == 0.4


def test_multiply_adds_count_a_shortcut_that_is_taken_in(net: Network) -> None:
    (saved,) = merged_segments(net, _solution(net, (5, 7)))
    pixels = 8 * 8
    assert saved.before_macs == pixels * (64 * 128 * 9 + 128 * 128 * 9 + 64 * 128)
    assert saved.after_macs == pixels * 64 * 128 * 49
    assert saved.before_ms is None


def test_network_left_as_it_is_saves_nothing(net: Network) -> None:
    assert merged_segments(net, Solution(act_pos=(), merge_pos=tuple(range(1, 18)))) == ()


def test_missing_table_entry_leaves_a_latency_unknown(net: Network) -> None:
    table = LatencyTable([LatencyEntry(start=i, end=i + 1, latency_ms=0.1) for i in range(17)])
    (saved,) = merged_segments(net, _solution(net, (1, 3)), table)
    assert (saved.before_ms, saved.after_ms) == (pytest.approx(0.2), None)
