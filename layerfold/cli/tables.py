"""``layerfold tables``: check, merge, compare and draw table files."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import PICTURES, Output, check_outputs
from layerfold.cli._quantities import parse_percent, parse_whole
from layerfold.errors import TableError, UsageError
from layerfold.files import JsonObject

if TYPE_CHECKING:
    from layerfold.tables import ImportanceTable, LatencyTable


def add_parser(subparsers: Any) -> None:
    """Add ``tables`` and its actions to the command line."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "tables",
        help="check, merge, compare or draw latency and importance tables",
        description="Work on table files: CSV, with provenance in a .csv.json beside each.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="read tables and say what they hold; ends 2 at the first error")
    check.add_argument("files", nargs="+", metavar="CSV")
    check.add_argument("--against", metavar="CSV", help="a latency table that every importance table must cover")
    merge = actions.add_parser("merge", help="join parts that several machines of the same kind have filled")
    merge.add_argument("files", nargs="+", metavar="CSV")
    merge.add_argument("-o", "--output", required=True, metavar="CSV")
    merge.add_argument(
        "--tolerance",
        type=partial(parse_percent, argument="--tolerance", most=100.0, example="3"),
        default="0",
        metavar="PCT",
        help="percent by which two values of one segment may differ; their mean is kept (0)",
    )
    diff = actions.add_parser("diff", help="compare two tables, entry by entry")
    diff.add_argument("files", nargs=2, metavar="CSV")
    diff.add_argument(
        "--most",
        type=partial(parse_whole, argument="--most", least=0, most=9_999_999),
        default=10,
        metavar="N",
        help="largest differences to list (%(default)s)",
    )
    plot = actions.add_parser(
        "plot",
        help="draw a latency table: heat map, predicted against measured, where the time goes",
        description="Draw a latency table. `heatmap` shows every segment, start by end; `prediction` the plans that "
        "the table was fitted to, each predicted from the others, against what was measured; `time` where the "
        "time goes before and after a solution.",
    )
    plot.add_argument("file", metavar="CSV")
    plot.add_argument("-o", "--output", required=True, metavar="PNG", help="the picture: .png, .svg or .pdf")
    plot.add_argument(
        "--kind",
        choices=("heatmap", "prediction", "time"),
        default="heatmap",
        help="what to draw (default: %(default)s)",
    )
    plot.add_argument("--solution", metavar="JSON", help="for --kind time: a solution of `layerfold solve`")
    for each in (merge, plot):
        each.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    for each in (check, merge, diff):
        each.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run one action; what ``diff`` finds does not change the exit code."""
    if args.action == "check":
        return _check(args)
    if args.action == "plot":
        return _plot(args)
    return _merge(args) if args.action == "merge" else _diff(args)


def _check(args: argparse.Namespace) -> int:
    from layerfold.tables import LatencyTable, check_coverage, read_table

    against = None if args.against is None else LatencyTable.read(args.against)
    found = []
    for path in args.files:
        table = read_table(path)
        if against is not None and not isinstance(table, LatencyTable):
            check_coverage(against, table)
        found.append(_facts(path, table))
    if args.json:
        show_json(found)
    else:
        for facts in found:
            show(f"{facts.pop('file')}: " + ", ".join(f"{name} {value}" for name, value in facts.items() if value))
    return 0


def _facts(path: str, table: LatencyTable | ImportanceTable) -> JsonObject:
    from layerfold.tables import LatencyTable

    facts: JsonObject = {"file": path, "kind": "latency" if isinstance(table, LatencyTable) else "importance"}
    facts["entries"] = len(table)
    if isinstance(table, LatencyTable):
        facts["chains"] = " ".join(f"{start}..{end}" for start, end in table.chains)
        singles = all((at, at + 1) in table for start, end in table.chains for at in range(start, end))
        facts["original_ms"] = f"{table.original_ms:.6g}" if singles else "unknown (single layers are missing)"
    else:
        values = [entry.importance for entry in table.entries]
        facts["importance"] = f"{min(values):.4g} to {max(values):.4g}"
    provenance = table.provenance
    facts.update({name: getattr(provenance, name) for name in ("model", "device", "backend", "dtype", "date")})
    return facts


def _merge(args: argparse.Namespace) -> int:
    from layerfold.tables import merge_tables, read_table

    check_outputs(args, Output(flag="-o", path=args.output, suffixes=(".csv",), has_sidecar=True))
    # Parts alone may have gaps; only the whole must lead from end to end.
    merged = merge_tables([read_table(path, partial=True) for path in args.files], tolerance=args.tolerance)
    merged.write(args.output)
    print(f"wrote {args.output}", file=sys.stderr)
    facts = _facts(args.output, merged)
    text = f"{args.output}: {len(merged)} entries from {len(args.files)} files"
    if args.json:
        show_json(facts)
    else:
        show(text)
    return 0


def _diff(args: argparse.Namespace) -> int:
    from layerfold.tables import diff_tables, read_table

    first, second = (read_table(path) for path in args.files)
    if type(first) is not type(second):
        raise TableError(f"{args.files[0]} and {args.files[1]}: a latency and an importance table, expected two alike")
    difference = diff_tables(first, second)
    if args.json:
        show_json(difference.to_json())
    else:
        show("\n".join(difference.lines(args.most)))
    return 0


def _plot(args: argparse.Namespace) -> int:
    from layerfold.report import latency_plots
    from layerfold.solver import Solution
    from layerfold.tables import LatencyTable

    if (args.kind == "time") != (args.solution is not None):
        raise UsageError(
            f"--kind {args.kind}: "
            + (
                "needs --solution, whose time is drawn"
                if args.kind == "time"
                else "takes no --solution; add --kind time"
            )
        )
    check_outputs(args, Output(flag="-o", path=args.output, suffixes=PICTURES))
    table = LatencyTable.read(args.file)
    provenance = table.provenance
    title = ", ".join(text for text in (provenance.model, provenance.backend, provenance.device) if text)
    if args.kind == "heatmap":
        latency_plots.latency_heatmap_png(table, args.output, title=title)
    elif args.kind == "time":
        latency_plots.time_png(table, Solution.read(args.solution), args.output, title=title)
    else:
        from layerfold.profiler.plans.fitted import beliefs_of, plans_of

        if not plans_of(table):
            raise TableError(
                f"{args.file}: was not fitted to measured plans, so there is nothing to compare; "
                "profile with --method plans"
            )
        beliefs = beliefs_of(table)
        ratios = [
            (found.ratio, found.deviation, plan.ratio, plan.deviation)
            for found, plan in zip(beliefs.held_out, beliefs.measured, strict=True)
        ]
        points = latency_plots.points_of(ratios, table.original_ms)
        latency_plots.prediction_png(points, args.output, title=title, label="each predicted from the others")
    print(f"wrote {args.output}", file=sys.stderr)
    return 0
