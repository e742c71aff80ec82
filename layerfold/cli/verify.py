"""``layerfold verify``: does the merged network keep its budget? Built with the weights at hand, and measured."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from layerfold.cli._flags import add_flags
from layerfold.cli._networks import add_trace_arguments, check_precision, check_table, note_needless, trace_of
from layerfold.cli._options import (
    add_backend_arguments,
    add_budget_arguments,
    add_command,
    add_result_arguments,
    open_backend,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import PICTURES, Output, check_outputs
from layerfold.cli._sources import add_model_arguments, load_model_of
from layerfold.cli._text import BATCH_NORM_TEXTS, facts, warn_of_conditions
from layerfold.errors import MissingEntryError, UsageError
from layerfold.options import VerifyOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerfold.profiler import Verification
    from layerfold.solver import Solution
    from layerfold.tables import LatencyTable

OVER_BUDGET = 3


def add_parser(subparsers: Any) -> None:
    """Add ``verify`` to the command line."""
    parser = add_command(
        subparsers,
        "verify",
        "measure a solution's merged network against prediction and budget",
        "Merge a network by a solution, with the weights at hand, and measure it in turns with the original: latency "
        "does not depend on the weights. Ends 3 if the upper end of the 95 % interval is over the budget.",
        "  layerfold verify timm:mobilenetv2_100 --input 3x224x224 --solution solution.json --budget 4.5ms",
    )
    add_model_arguments(parser)
    add_trace_arguments(parser)
    group = parser.add_argument_group("what to verify")
    group.add_argument("--solution", required=True, metavar="JSON", help="a solution of `layerfold solve`")
    group.add_argument(
        "--latency", metavar="CSV", help="latency table to predict from (default: the solution's own prediction)"
    )
    group.add_argument(
        "--plot",
        metavar="PNG",
        help="draw where the time goes before and after, with what was measured; needs --latency",
    )
    add_budget_arguments(
        group.add_mutually_exclusive_group(),
        "end-to-end budget, for example 4.5ms (default: the solution's)",
        "original latency / budget, for example 1.5",
    )
    add_backend_arguments(parser)
    add_flags(parser, VerifyOptions, "target", "cap_s")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 3 if the budget is not kept."""
    from layerfold.progress import progress_bar
    from layerfold.solver import Solution
    from layerfold.tables import LatencyTable

    if args.plot is not None and args.latency is None:
        raise UsageError(f"--plot {args.plot}: needs --latency, the table that says where the time goes")
    check_outputs(args, Output(flag="--plot", path=args.plot, suffixes=PICTURES))
    solution = Solution.read(args.solution)
    table = None if args.latency is None else LatencyTable.read(args.latency)
    backend = open_backend(args)  # what is missing shows before torch is loaded
    if table is not None:
        check_precision(table, args.latency, backend)
    from layerfold.graph.dropping import dropped_layers
    from layerfold.profiler import verify_solution
    from layerfold.profiler.benchmark import warnings_in

    net = trace_of(args, loaded := load_model_of(args))
    note_needless(net, solution)
    if table is not None:
        check_table(net, table, args.latency)
    options = VerifyOptions(
        batch=args.batch,
        budget_ms=args.budget,
        speedup=args.speedup,
        predicted_ms=None if table is None else table.predict_ms(solution),
        predicted_interval_ms=None
        if table is None
        else _interval_ms(table, solution, dropped_layers(net, solution.kept_layers)),
        target=args.target,
        cap_s=args.cap_s,
    )
    with progress_bar("verify: measure both networks", 1, enabled=not args.quiet) as bar:
        found = verify_solution(loaded.module, net, solution, backend, options=options)
        bar.advance()
    if args.plot is not None and table is not None:
        from layerfold.report.latency_plots import time_png

        time_png(
            table,
            solution,
            args.plot,
            title=f"{args.model}: where the time goes",
            measured_ms=(found.original_ms, found.measured_ms),
        )
        print(f"wrote {args.plot}", file=sys.stderr)
    if args.json:
        show_json(found.to_json())
    else:
        show(_as_text(found))
    warn_of_conditions(warnings_in(found.provenance))
    if found.is_within_budget is False:
        print(
            f"layerfold: over budget: {found.high_ms:.4g} ms (upper end of the interval) is above "
            f"{found.budget_ms:.4g} ms; solve again with a smaller budget",
            file=sys.stderr,
        )
        return OVER_BUDGET
    return 0


def _precision_text(found: Verification) -> str | None:
    """Return in what both networks ran, where it is not float32, and how they came to it."""
    from layerfold.profiler.backends.base import USUAL_PRECISION

    precision = str(found.provenance["options"].get("precision", USUAL_PRECISION))
    if precision == USUAL_PRECISION:
        return None
    return f"{precision}, original and merged" + (", with constant scales" if precision == "int8" else "")


def _interval_ms(table: LatencyTable, solution: Solution, dropped: Sequence[int]) -> tuple[float, float] | None:
    """Return the interval of a prediction; None where the table does not say which layers an entry stands for."""
    from layerfold.profiler.plans.fitted import predicted_interval_ms

    try:
        return predicted_interval_ms(table, solution.merge_pos, dropped, solution.changes)
    except MissingEntryError:
        if solution.kept_layers is None:
            raise
        return None


def _as_text(found: Verification) -> str:
    error = found.prediction_error
    interval = ""
    if found.predicted_low_ms is not None:
        interval = f" (95 % {found.predicted_low_ms:.4g} to {found.predicted_high_ms:.4g})"
    verdict = None
    if found.budget_ms is not None:
        verdict = f"{found.budget_ms:.4g} ms, {'met' if found.is_within_budget else 'NOT met'}"
    return facts(
        [
            (
                "original",
                f"{found.original_ms:.4g} ms (95 % {found.original_low_ms:.4g} to {found.original_high_ms:.4g})",
            ),
            (
                "merged",
                f"{found.measured_ms:.4g} ms (95 % {found.low_ms:.4g} to {found.high_ms:.4g}), "
                f"{1 / found.ratio:.3f}x as fast (95 % {1 / found.ratio_high:.3f} to {1 / found.ratio_low:.3f})",
            ),
            ("predicted", None if error is None else f"{found.predicted_ms:.4g} ms{interval} ({100 * error:+.1f} %)"),
            ("budget", verdict),
            ("BatchNorm", BATCH_NORM_TEXTS.get(found.batch_norm or "")),
            ("precision", _precision_text(found)),
            ("device", found.provenance.get("device")),
            ("note", None if found.is_settled else "the intervals did not reach their target; give more --cap-s"),
        ]
    )
