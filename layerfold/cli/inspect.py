"""``layerfold inspect``: what a network consists of, and what of it may be merged."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._networks import add_candidate_arguments, add_trace_arguments, candidates_of, trace_of
from layerfold.cli._options import add_command, add_result_arguments, check_output
from layerfold.cli._sources import add_model_arguments, load_model_of
from layerfold.cli._text import columns, facts, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerfold.graph import Network, Segment
    from layerfold.solver import Solution


def add_parser(subparsers: Any) -> None:
    """Add ``inspect`` to the command line."""
    parser = add_command(
        subparsers, "inspect", "show a network's layers, chains, residuals and what may be merged",
        "Trace a network and show its layers, chains, residuals and barriers, and what of it may be merged.",
        "  layerfold inspect timm:mobilenetv2_100 --input 3x224x224 --svg network.svg",
    )  # fmt: skip
    add_model_arguments(parser)
    add_trace_arguments(parser)
    add_candidate_arguments(parser, max_growth=None)
    group = parser.add_argument_group("output")
    group.add_argument("--solution", metavar="JSON", help="also show and draw what this solution merges")
    group.add_argument("--svg", metavar="FILE", help="draw the network")
    group.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    add_result_arguments(parser, has_progress=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trace, then print."""
    from layerfold.report import network_svg
    from layerfold.solver import Solution

    check_output(args.svg, flag="--svg", suffix=".svg", overwrite=args.overwrite)
    solution = None if args.solution is None else Solution.read(args.solution)
    loaded = load_model_of(args)
    net = trace_of(args, loaded)
    if solution is not None:
        from layerfold.merge.train_form import check_solution

        check_solution(net, solution)
    candidates = candidates_of(args, net)
    if args.svg is not None:
        Path(args.svg).parent.mkdir(parents=True, exist_ok=True)
        Path(args.svg).write_text(network_svg(net, solution, title=loaded.source), encoding="utf-8")
        print(f"wrote {args.svg}", file=sys.stderr)
    if args.json:
        print(json.dumps(_as_json(net, candidates, solution, loaded.source), indent=1))
    else:
        print(_as_text(net, candidates, solution, loaded.source))
    return 0


def count_merge_sets(net: Network, candidates: Sequence[Segment]) -> int:
    """Return how many sets of merge positions the candidates allow: paths through each chain, multiplied."""
    ends: dict[int, list[int]] = {}
    for segment in candidates:
        ends.setdefault(segment.start, []).append(segment.end)
    total = 1
    for chain in net.chains:
        paths = {chain.end: 1}
        for start in range(chain.end - 1, chain.start - 1, -1):
            paths[start] = sum(paths[end] for end in ends.get(start, ()))
        total *= paths[chain.start]
    return total


def _as_json(
    net: Network, candidates: Sequence[Segment], solution: Solution | None, source: str
) -> dict[str, Any]:
    from layerfold.report import merged_segments

    description = {
        "model": source, "network_hash": net.hash, "input_shape": list(net.input_shapes[0][1:]),
        "macs": net.macs, "num_params": net.num_params, "num_candidates": len(candidates),
        "num_merge_sets": count_merge_sets(net, candidates),
        "layers": [asdict(layer) for layer in net.layers], "chains": [asdict(chain) for chain in net.chains],
        "residuals": [asdict(residual) for residual in net.residuals],
        "barriers": [asdict(barrier) for barrier in net.barriers],
        "candidates": [{"start": segment.start, "end": segment.end, "macs": segment.macs} for segment in candidates],
    }  # fmt: skip
    if solution is not None:
        description["merged"] = [asdict(segment) for segment in merged_segments(net, solution)]
    return description


def _as_text(net: Network, candidates: Sequence[Segment], solution: Solution | None, source: str) -> str:
    from layerfold.report.words import count_text

    sets = count_merge_sets(net, candidates)
    merging = sum(segment.num_layers > 1 for segment in candidates)
    head = facts([
        ("model", source),
        ("input", "x".join(map(str, net.input_shapes[0][1:]))),
        ("layers", f"{len(net.layers)} in {plural(len(net.chains), 'chain')}"),
        ("parameters", count_text(net.num_params)),
        ("multiply-adds", f"{count_text(net.macs)} (one image)"),
        ("candidates", f"{merging} segments of several layers; {_large(sets)} ways to merge"),
        ("network hash", net.hash),
    ])
    parts = [head, _layers(net), _chains(net)]
    if net.residuals:
        rows = [(r.src, r.dst, "identity" if r.is_identity else ", ".join(r.shortcut_names)) for r in net.residuals]
        parts.append("residuals\n" + columns(("from", "to", "way"), rows, right="from to", indent="  "))
    if net.barriers:
        barriers = [(barrier.after, barrier.name, barrier.kind, barrier.reason) for barrier in net.barriers]
        parts.append("barriers: nothing merges across them\n" + columns(
            ("after", "name", "kind", "why"), barriers, right="after", indent="  "
        ))
    if solution is not None:
        parts.append(_merged(net, solution))
    return "\n\n".join(parts)


def _layers(net: Network) -> str:
    from layerfold.report import conv_text
    from layerfold.report.words import count_text

    rows = [
        (layer.index, layer.name, conv_text(layer), "" if layer.norm is None else layer.norm.rpartition(".")[2],
         layer.activation, "x".join(map(str, layer.output_shape)), count_text(layer.conv.macs(layer.input_shape)))
        for layer in net.layers
    ]
    return columns(("#", "layer", "conv", "norm", "activation", "output", "multiply-adds"), rows,
                   right="# output multiply-adds")


def _chains(net: Network) -> str:
    rows = [(f"{chain.start + 1}..{chain.end}", chain.activation or "none") for chain in net.chains]
    return "chains\n" + columns(("layers", "commonest activation"), rows, indent="  ")


def _merged(net: Network, solution: Solution) -> str:
    from layerfold.report import merged_segments
    from layerfold.report.words import count_text

    rows = [
        (f"{each.start + 1}..{each.end}", each.conv, count_text(each.before_macs), count_text(each.after_macs))
        for each in merged_segments(net, solution)
    ]
    if not rows:
        return "merged by the solution: nothing"
    return "merged by the solution\n" + columns(
        ("layers", "merged conv", "multiply-adds before", "after"), rows, indent="  "
    )


def _large(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"about 10^{math.floor(math.log10(number))}"
