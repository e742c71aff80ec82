"""``layerfold profile``: measure every candidate segment on a device, into a latency table."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from layerfold.cli._networks import add_candidate_arguments, add_trace_arguments, candidates_of, trace_of
from layerfold.cli._options import (
    above,
    add_backend_arguments,
    add_command,
    add_output_arguments,
    add_result_arguments,
    check_output,
    open_backend,
)
from layerfold.cli._sources import add_model_arguments, load_model_of
from layerfold.cli._text import facts
from layerfold.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerfold.graph import Network, Segment
    from layerfold.tables import LatencyTable


def add_parser(subparsers: Any) -> None:
    """Add ``profile`` to the command line."""
    parser = add_command(
        subparsers, "profile", "measure every segment that may be merged, on a device",
        "Measure every segment that may be merged, and what lies outside the chains, into a latency table. Each "
        "measurement is kept in a cache at once: a run that is stopped goes on where it was.",
        "  layerfold profile timm:mobilenetv2_100 --input 3x224x224 -o latency.csv",
    )  # fmt: skip
    add_model_arguments(parser)
    add_trace_arguments(parser)
    add_candidate_arguments(parser, max_growth=4.0)
    add_backend_arguments(parser)
    measuring = parser.add_argument_group("how it is measured")
    measuring.add_argument("--dtype", choices=("float32", "float16"), default="float32",
                           help="of weights and feature maps (default: %(default)s)")
    measuring.add_argument("--method", choices=("plans", "in_network", "isolated"), default="plans",
                           help="fitted to whole networks under random plans, each segment in a whole network, or "
                           "segments alone: faster, less true (default: %(default)s)")
    measuring.add_argument("--target", type=above(0, 1), metavar="X",
                           help="half-width of the 95 %% intervals to stop at, relative (default: by method)")
    measuring.add_argument("--cap-s", type=above(0), default=0.25, metavar="S",
                           help="most seconds of timed running an entry (default: %(default)s)")
    cache = measuring.add_mutually_exclusive_group()
    cache.add_argument("--cache", metavar="FILE",
                       help="file of finished measurements (default: in the user's cache folder)")
    cache.add_argument("--no-cache", action="store_true", help="measure everything anew and keep nothing")
    measuring.add_argument("--dry-run", action="store_true", help="say what would be measured, and stop")
    add_output_arguments(parser, "CSV", "the latency table; what was measured where goes to CSV.json", required=False)
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write the table, print a summary."""
    if args.output is None and not args.dry_run:
        raise UsageError("-o: name the table to write, for example -o latency.csv, or give --dry-run")
    check_output(args.output, suffix=".csv", overwrite=args.overwrite)
    backend = open_backend(args)  # what is missing shows before torch is loaded
    from layerfold.profiler import profile_network

    loaded = load_model_of(args)
    net = trace_of(args, loaded)
    candidates = candidates_of(args, net)
    if args.dry_run:
        return _print(args, _plan(args, net, candidates))
    table = profile_network(
        loaded.module, net, backend, batch=args.batch, dtype=args.dtype, cache=False if args.no_cache else args.cache,
        candidates=candidates, method=args.method, target=args.target, cap_s=args.cap_s, model_name=loaded.source,
        progress=not args.quiet,
    )  # fmt: skip
    table.write(args.output)
    print(f"wrote {args.output}", file=sys.stderr)
    return _print(args, {"table": args.output, **_summary(table)})


def _plan(args: argparse.Namespace, net: Network, candidates: Sequence[Segment]) -> dict[str, Any]:
    signatures = {segment.signature for segment in candidates}
    merged = sum(segment.num_layers > 1 for segment in candidates)
    # Each shape is compiled and timed once alone, and each promising segment once more inside the network.
    rounds = len(signatures) + (merged if args.method == "in_network" else 0)
    return {
        "model": args.model, "layers": len(net.layers), "segments": len(candidates), "segments_merged": merged,
        "distinct_shapes": len(signatures), "at_most_s": round(rounds * 2 * args.cap_s),
    }  # fmt: skip


def _summary(table: LatencyTable) -> dict[str, Any]:
    provenance = table.provenance
    merged = [entry for entry in table.entries if entry.end - entry.start > 1]
    faster = set(table.useful_segments())
    return {
        "model": provenance.model, "device": provenance.device, "backend": provenance.backend,
        "dtype": provenance.dtype, "batch": provenance.batch, "entries": len(table.entries),
        "measured": sum(entry.runs > 0 for entry in table.entries), "original_ms": table.original_ms,
        "fixed_ms": provenance.fixed_ms, "segments_merged": len(merged),
        "segments_faster": sum((entry.start, entry.end) in faster for entry in merged),
    }  # fmt: skip


def _print(args: argparse.Namespace, found: dict[str, Any]) -> int:
    if args.json:
        print(json.dumps(found, indent=1))
    elif args.dry_run:
        print(facts([
            ("model", found["model"]),
            ("segments", f"{found['segments']}, of which {found['segments_merged']} would merge layers"),
            ("distinct shapes", found["distinct_shapes"]),
            ("time", f"at most about {found['at_most_s']} s without a cache; far less as a rule"),
        ]))
    else:
        bounded = found["entries"] - found["measured"]
        left = f", {bounded} plainly slow and not measured" if bounded else ""
        print(facts([
            ("model", found["model"]),
            ("device", f"{found['device']} ({found['backend']}, {found['dtype']}, batch {found['batch']})"),
            ("entries", f"{found['measured']} measured{left}"),
            ("original", f"{found['original_ms']:.4g} ms, of which {found['fixed_ms']:.4g} ms outside the chains"),
            ("worth merging", f"{found['segments_faster']} of {found['segments_merged']} segments are faster merged "
                              "than in parts"),
        ]))
    return 0
