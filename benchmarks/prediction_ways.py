"""Other ways to make entries, for the comparison in docs/prediction.md: between neighbours, and in a whole network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import layerfold as lf
from layerfold.graph import Network, Segment
from layerfold.profiler.assemble import activation_at
from layerfold.profiler.backends import Backend
from layerfold.profiler.measure import MeasurePolicy
from layerfold.profiler.onnx_writer import OnnxWriter
from layerfold.profiler.segment_onnx import write_segment
from layerfold.profiler.turns import time_in_turns

_POLICY = MeasurePolicy(target=0.02, cap_s=0.25, block_ms=0.5, warmup_cap_s=0.1)


def changes_between_neighbours(
    net: Network, segments: Sequence[Segment], backend: Backend
) -> tuple[dict[tuple[int, int], float], float]:
    """Time each segment with one layer before and one behind it, merged and not, in turns.

    Returns:
        Segment -> latency merged less not merged, ms; and the seconds that all took.
    """
    began = time.perf_counter()
    found: dict[str, float] = {}
    changes = {}
    for segment in segments:
        chain = net.chain_of(segment.end)
        first, last = max(segment.start - 1, chain.start), min(segment.end + 1, chain.end)
        around = [net.segment(m - 1, m) for m in range(first + 1, segment.start + 1)]
        behind = [net.segment(m - 1, m) for m in range(segment.end + 1, last + 1)]
        apart = [net.segment(m - 1, m) for m in range(segment.start + 1, segment.end + 1)]
        signature = " | ".join(each.signature for each in [*around, segment, *behind, *apart])
        if signature not in found:
            runners = [backend.compile(_graph(net, [*around, *middle, *behind])) for middle in (apart, [segment])]
            try:
                turns = time_in_turns([runner.run for runner in runners], _POLICY, are_latencies_wanted=True)
            finally:
                for runner in runners:
                    runner.close()
            apart_ms = sorted(turns.values_ms[0])[turns.rounds // 2]
            found[signature] = apart_ms * (turns.ratios[0].median - 1)
        changes[segment.start, segment.end] = found[signature]
    return changes, time.perf_counter() - began


def _graph(net: Network, segments: Sequence[Segment]) -> bytes:
    """Return the graph of consecutive segments; what residuals bring from before them is an input."""
    writer = OnnxWriter(is_light=True)
    chain = net.chain_of(segments[-1].end)
    features = {segments[0].start: writer.add_input("x", segments[0].input_shape)}
    for segment in segments:
        for residual in segment.open_residuals:
            if residual.src not in features:
                features[residual.src] = writer.add_input(f"source_{residual.src}", residual.source_shape)
        activation = activation_at(net, chain, segment.end, net.original_act_pos)
        features[segment.end] = write_segment(writer, features[segment.start], segment, features, activation)
    writer.add_output(features[segments[-1].end], segments[-1].output_shape)
    return writer.model_bytes()


def ratios_of(changes: dict[tuple[int, int], float], table: lf.LatencyTable, plans: Sequence[Any]) -> list[float]:
    """Return the latency that changes predict for plans, relative to the original."""
    return [
        1 + sum(changes[pair] for pair in table.segments_of(plan.merge_pos) if pair in changes) / table.original_ms
        for plan in plans
    ]
