"""What ``layerfold inspect --json`` prints; ``docs/inspect.md`` says what each key holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from layerfold.files import JsonObject
from layerfold.graph.barrier_groups import group_barriers, why_not_more
from layerfold.graph.counts import count_merge_sets, count_plans, lean_candidates, mergeable_share, replaced_macs
from layerfold.graph.squeeze_excitation import find_squeeze_excitations

if TYPE_CHECKING:
    from layerfold.graph import Network, Segment
    from layerfold.solver import Solution


def inspect_json(
    net: Network,
    candidates: Sequence[Segment],
    solution: Solution | None,
    source: str,
    drops: Sequence[Segment] = (),
) -> JsonObject:
    """Return the whole description as plain data; see :func:`layerfold.cli._inspect_text.inspect_text`."""
    found: JsonObject = {
        "model": source,
        "network_hash": net.hash,
        "input_shape": list(net.input_shapes[0][1:]),
        "macs": net.macs,
        "num_params": net.num_params,
        "num_candidates": len(candidates),
        "num_drop_options": len(drops),
        "num_merge_sets": count_merge_sets(net, candidates),
        "num_plans": count_plans(net, candidates),
        "mergeable_share": mergeable_share(net, candidates),
        "lean_mergeable_share": mergeable_share(net, lean_candidates(net, candidates)),
        "why_not_more": why_not_more(net),
        "notes": list(net.notes),
        "layers": [
            {**asdict(layer), "kind": layer.kind, "macs": layer.conv.macs(layer.input_shape)} for layer in net.layers
        ],
        "chains": [asdict(chain) for chain in net.chains],
        "residuals": [asdict(residual) for residual in net.residuals],
        "barriers": [asdict(barrier) for barrier in net.barriers],
        "barrier_groups": [
            {
                "label": group.label,
                "reason": group.reason,
                "count": len(group.items),
                "positions": list(group.positions),
                "names": [item.name for item in group.items],
            }
            for group in group_barriers(net)
        ],
        "gates": [
            {
                "name": gate.name,
                "after": gate.after,
                "layers": list(gate.layers),
                "barriers": [barrier.name for barrier in gate.barriers],
            }
            for gate in find_squeeze_excitations(net)
        ],
        "candidates": [
            {
                "start": segment.start,
                "end": segment.end,
                "conv": asdict(segment.conv),
                "macs": segment.macs,
                "replaced_macs": replaced_macs(net, segment.start, segment.end),
            }
            for segment in candidates
        ],
        "drop_options": [
            {
                "start": segment.start,
                "end": segment.end,
                "merged": segment.merged,
                "kept": list(segment.kept),
                "macs": segment.macs,
                "replaced_macs": replaced_macs(net, segment.start, segment.end),
            }
            for segment in drops
        ],
    }
    if solution is not None:
        found["merged"] = _merged(net, solution)
    return found


def _merged(net: Network, solution: Solution) -> list[JsonObject]:
    from layerfold.report import merged_segments

    return [
        {**asdict(each), "raises_macs_by": max(each.after_macs - each.before_macs, 0)}
        for each in merged_segments(net, solution)
    ]
