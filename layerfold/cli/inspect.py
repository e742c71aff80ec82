"""``layerfold inspect``: what a network consists of, and what of it may be merged."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from layerfold.cli._networks import add_candidate_arguments, add_trace_arguments, candidates_of, trace_of
from layerfold.cli._options import add_command, add_result_arguments
from layerfold.cli._output import json_text, show
from layerfold.cli._output_files import Output, check_outputs
from layerfold.cli._sources import add_model_arguments, load_model_of
from layerfold.files import write_text


def add_parser(subparsers: Any) -> None:
    """Add ``inspect`` to the command line."""
    parser = add_command(
        subparsers,
        "inspect",
        "show a network's layers, chains, residuals and what may be merged",
        "Trace a network and show its layers, chains, residuals and barriers, and what of it may be merged.",
        "  layerfold inspect timm:mobilenetv2_100 --input 3x224x224 --svg network.svg",
    )
    add_model_arguments(parser)
    add_trace_arguments(parser)
    add_candidate_arguments(parser, max_growth=None)
    group = parser.add_argument_group("output")
    group.add_argument("--solution", metavar="JSON", help="also show and draw what this solution merges")
    group.add_argument("--svg", metavar="FILE", help="draw the network")
    group.add_argument("--brief", action="store_true", help="leave out the table of layers")
    group.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    add_result_arguments(parser, has_progress=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trace, then print."""
    from layerfold.report import network_svg
    from layerfold.solver import Solution

    check_outputs(args, Output(flag="--svg", path=args.svg, suffixes=(".svg",)))
    solution = None if args.solution is None else Solution.read(args.solution)
    loaded = load_model_of(args)
    net = trace_of(args, loaded, leads_to_network=False)
    if solution is not None:
        from layerfold.merge.train_form import check_solution

        check_solution(net, solution)
    options = candidates_of(args, net, loaded)
    candidates = [segment for segment in options if not segment.dropped]
    drops = [segment for segment in options if segment.dropped]
    # All is worked out before anything is written or printed: a solution that does not fit leaves no half result.
    if args.json:
        from layerfold.cli._inspect_json import inspect_json

        text = json_text(inspect_json(net, candidates, solution, loaded.source, drops))
    else:
        from layerfold.cli._inspect_text import inspect_text

        text = inspect_text(net, candidates, solution, loaded.source, drops, brief=args.brief)
    if args.svg is not None:
        svg = network_svg(net, solution, title=loaded.source, candidates=candidates)
        write_text(args.svg, svg)
        print(f"wrote {args.svg}", file=sys.stderr)
    show(text)
    return 0
