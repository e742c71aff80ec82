"""What each merged segment saved, from the network, the solution and the latency table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from layerfold.graph.counts import replaced_macs
from layerfold.report.captions import conv_text
from layerfold.report.data import MergedSegment
from layerfold.report.drawing import is_merged, segments_of_solution
from layerfold.tables.kernel import SegmentKey

if TYPE_CHECKING:
    from layerfold.graph.network import Network
    from layerfold.report.layout import Positions
    from layerfold.tables import LatencyTable


def merged_segments(
    net: Network, solution: Positions, latency: LatencyTable | None = None, *, original_ms: float | None = None
) -> tuple[MergedSegment, ...]:
    """Return one item per merged segment, in the network's order.

    Args:
        net: the traced network.
        solution: anything with ``act_pos`` and ``merge_pos``.
        latency: the table that the latencies are read from; an entry that it lacks leaves them unknown.
        original_ms: what the original takes, ms, to which all are set in proportion; None for what the table says.
    """
    unit = 1.0 if latency is None or original_ms is None else original_ms / latency.original_ms
    found = []
    for segment in segments_of_solution(net, solution):
        if is_merged(net, segment):
            indices = range(segment.start + 1, segment.end + 1)
            found.append(
                MergedSegment(
                    start=segment.start,
                    end=segment.end,
                    layers=tuple(net.layer(index).name for index in indices),
                    dropped=tuple(net.layer(index).name for index in segment.dropped),
                    conv=conv_text(segment),
                    before_ms=_sum_ms(latency, [(index - 1, index) for index in indices], unit),
                    after_ms=_sum_ms(latency, [segment.key], unit),
                    before_macs=replaced_macs(net, segment.start, segment.end),
                    after_macs=segment.macs,
                )
            )
    return tuple(found)


def _sum_ms(latency: LatencyTable | None, keys: Sequence[SegmentKey], unit: float) -> float | None:
    if latency is None or any(key not in latency for key in keys):
        return None
    return unit * latency.provenance.scale * sum(latency.at(key).latency_ms for key in keys)
