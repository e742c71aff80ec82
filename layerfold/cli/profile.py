"""``layerfold profile``: measure every candidate segment on a device, into a latency table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from layerfold.cli._executor import add_executor_arguments, executor_of
from layerfold.cli._flags import add_flag
from layerfold.cli._networks import add_candidate_arguments, add_trace_arguments, candidates_of, trace_of
from layerfold.cli._options import (
    add_backend_arguments,
    add_command,
    add_output_arguments,
    add_result_arguments,
    backend_options,
    open_backend,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import Output, check_outputs, only_writer
from layerfold.cli._sources import add_model_arguments, load_model_of
from layerfold.cli._text import facts, warn_of_conditions
from layerfold.errors import UsageError
from layerfold.files import parse_json, write_json
from layerfold.options import ProfileOptions

if TYPE_CHECKING:
    from layerfold.graph import Network
    from layerfold.profiler import Backend
    from layerfold.profiler.estimate import ProfileEstimate
    from layerfold.tables import LatencyTable
    from layerfold.tables.provenance import Provenance


def add_parser(subparsers: Any) -> None:
    """Add ``profile`` to the command line."""
    parser = add_command(
        subparsers,
        "profile",
        "measure every segment that may be merged, on a device",
        "Measure every segment that may be merged, and what lies outside the chains, into a latency table. Each "
        "measurement is kept in a cache at once: a run that is stopped goes on where it was.",
        "  layerfold profile timm:mobilenetv2_100 --input 3x224x224 -o latency.csv",
    )
    add_model_arguments(parser)
    add_trace_arguments(parser)
    add_candidate_arguments(parser, max_growth=4.0)
    add_backend_arguments(parser)
    measuring = parser.add_argument_group("how it is measured")
    add_flag(measuring, ProfileOptions, "method")
    add_flag(measuring, ProfileOptions, "target", default="by method")
    add_flag(measuring, ProfileOptions, "cap_s")
    cache = measuring.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache", metavar="FILE", help="file of finished measurements (default: in the user's cache folder)"
    )
    cache.add_argument("--no-cache", action="store_true", help="measure everything again and keep nothing")
    measuring.add_argument(
        "--retry-failed", action="store_true", help="try again what the backend refused to build before"
    )
    measuring.add_argument(
        "--dry-run",
        action="store_true",
        help="say how much would be measured, how much is known, about how long it takes, and stop",
    )
    add_executor_arguments(parser, has_threads=False)
    add_output_arguments(parser, "CSV", "the latency table; what was measured where goes to CSV.json", required=False)
    parser.add_argument(
        "--log",
        metavar="FILE",
        help="append a line for each measurement: median, interval, blocks, time to build, settled or not",
    )
    parser.add_argument(
        "--summaries",
        metavar="JSON",
        help="write what the cache keeps of each measurement: quantiles, outliers, conditions",
    )
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write the table, print a summary."""
    if args.output is None:
        return _run(args)
    with only_writer(args.output):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.output is None and not args.dry_run:
        raise UsageError("-o: name the table to write, for example -o latency.csv, or give --dry-run")
    check_outputs(
        args,
        Output(flag="-o", path=args.output, suffixes=(".csv",), has_sidecar=True),
        Output(flag="--summaries", path=args.summaries, suffixes=(".json",)),
        Output(flag="--log", path=args.log, is_appended=True),
        Output(flag="--cache", path=args.cache, has_own_check=True),
    )
    executor = executor_of(args)
    if not executor.is_here and args.no_cache:
        raise UsageError("--no-cache: several processes share what they measure through the cache; leave it out")
    if executor.devices and args.device is not None:
        raise UsageError(f"--device {args.device} and --devices {','.join(args.devices)}: give one of the two")
    if executor.is_here and executor.devices:
        args.device = executor.devices[0]
    if executor.is_here or args.dry_run:
        backend = open_backend(args)  # what is missing shows before torch is loaded
    from layerfold.profiler import profile_network
    from layerfold.profiler.store.cache import open_cache
    from layerfold.profiler.table.together import BackendChoice, MakeFiller, filled_together

    loaded = load_model_of(args)
    net = trace_of(args, loaded, leads_to_network=False)
    options = ProfileOptions(
        batch=args.batch,
        method=args.method,
        target=args.target,
        cap_s=args.cap_s,
        candidates=candidates_of(args, net, loaded),
        model_name=loaded.source,
    )
    if args.dry_run:
        there = replace(options, dtype=backend.precision, workers=args.workers or 1)
        return _print_plan(args, len(net.layers), _plan(args, net, backend, there))
    measures: Backend
    with ExitStack() as stack:
        if executor.is_here:
            log = stack.enter_context(open(args.log, "a", encoding="utf-8")) if args.log else None
            store = stack.enter_context(
                open_cache(
                    False if args.no_cache else args.cache, backend, batch=args.batch, dtype=backend.precision, log=log
                )
            )
            if args.retry_failed:
                store.forget_failures()
            measures, options = backend, replace(options, dtype=backend.precision)
        else:
            choice = BackendChoice(name=args.backend, device=args.device, options=backend_options(args))
            make_filler = MakeFiller.of(loaded.module, net, choice, executor, options, log=args.log)
            shared = stack.enter_context(
                filled_together(executor, make_filler, args.cache, retry_failed=args.retry_failed)
            )
            store = shared.store
            measures, options = shared.backend, replace(options, dtype=shared.dtype, workers=shared.workers)
        table = profile_network(loaded.module, net, measures, options=options, cache=store, progress=not args.quiet)
        table.write(args.output)
        if args.summaries:
            known = store.summaries([*store.report.new, *store.report.cached])
            write_json(args.summaries, known)
    print(f"wrote {args.output}", file=sys.stderr)
    return _print(args, _Summary.of(args.output, table), table.provenance)


def _plan(args: argparse.Namespace, net: Network, backend: Backend, options: ProfileOptions) -> ProfileEstimate:
    from layerfold.profiler.estimate import estimate_profile
    from layerfold.profiler.store.history import open_history

    # With --no-cache nothing is looked up: a file that is not there knows nothing.
    place = os.devnull if args.no_cache else args.cache
    history = open_history(place, backend, batch=options.batch, dtype=options.dtype)
    try:
        return estimate_profile(net, backend, history, options)
    finally:
        history.close()


def _print_plan(args: argparse.Namespace, num_layers: int, plan: ProfileEstimate) -> int:
    if args.json:
        show_json({"model": args.model, "layers": num_layers, **plan.to_json()})
        return 0
    further = [
        (words, f"{most} at most, {known} measured already")
        for words, most, known in (
            ("in their surroundings", plan.in_context, plan.in_context_cached),
            ("whole networks", plan.whole_networks, plan.whole_networks_cached),
        )
        if most
    ]
    show(
        facts(
            [
                ("model", args.model),
                ("segments", f"{plan.segments}, of which {plan.segments_merged} would merge layers"),
                ("distinct shapes", f"{plan.distinct_shapes}, {plan.cached} measured already"),
                *further,
                ("time", f"about {_duration(plan.estimate_s)} ({_BASES[plan.basis]})"),
            ]
        )
    )
    return 0


_BASES = {
    "history": "by earlier measurements on this device",
    "probe": "by measuring a few segments now",
    "nothing to do": "all of it is in the cache",
}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, kw_only=True)
class _NotBuilt:
    """A segment that the backend refused, and why."""

    st: int
    end: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class _Measurements:
    """Those facts of the table's measurements that are shown; see ``layerfold.profiler.store.report``."""

    measured: int
    cached: int
    unsettled: int
    blocks: int
    outlying_blocks: int
    disturbed_blocks: int
    not_built: list[_NotBuilt]


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """Result of the command.

    Attributes:
        table: the file.
        model, device, backend, dtype, batch: what was measured, and where.
        entries: of the table; measured: those that were, and not only bounded.
        original_ms, fixed_ms: the original, and what of it lies outside the chains.
        segments_merged, segments_faster: entries that merge or drop layers, and those worth it.
        segments_with_drops: entries that drop layers.
    """

    table: str
    model: str
    device: str
    backend: str
    dtype: str
    batch: int | None
    entries: int
    measured: int
    original_ms: float
    fixed_ms: float
    segments_merged: int
    segments_faster: int
    segments_with_drops: int

    @classmethod
    def of(cls, path: str, table: LatencyTable) -> _Summary:
        """Return it for the table that was written."""
        from layerfold.tables.kernel import IDENTITY

        provenance = table.provenance
        merged = [entry for entry in table.entries if entry.change is not None or entry.end - entry.start > 1]
        faster = {*table.useful_segments(), *table.useful_changes()}
        return cls(
            table=path,
            model=provenance.model,
            device=provenance.device,
            backend=provenance.backend,
            dtype=provenance.dtype,
            batch=provenance.batch,
            entries=len(table.entries),
            measured=sum(entry.runs > 0 or entry.merged == IDENTITY for entry in table.entries),
            original_ms=table.original_ms,
            fixed_ms=provenance.fixed_ms,
            segments_merged=len(merged),
            segments_faster=sum(entry.key in faster for entry in merged),
            segments_with_drops=sum(entry.drops for entry in merged),
        )


def _print(args: argparse.Namespace, found: _Summary, provenance: Provenance) -> int:
    if args.json:
        show_json({**asdict(found), "measurement": dict(provenance.measurement)})
        return 0
    seen = parse_json(json.dumps(dict(provenance.measurement)), _Measurements, source=f"{found.table}: measurement")
    bounded = found.entries - found.measured
    left = f", {bounded} plainly slow and not measured" if bounded else ""
    show(
        facts(
            [
                ("model", found.model),
                ("device", f"{found.device} ({found.backend}, {found.dtype}, batch {found.batch})"),
                ("entries", f"{found.measured} measured{left}"),
                ("measurements", f"{seen.measured} now, {seen.cached} from the cache"),
                ("not settled", _unsettled(seen)),
                ("odd blocks", _odd(seen)),
                ("not built", _not_built(seen.not_built)),
                ("original", f"{found.original_ms:.4g} ms, of which {found.fixed_ms:.4g} ms outside the chains"),
                (
                    "worth merging",
                    f"{found.segments_faster} of {found.segments_merged} segments are faster merged than in parts",
                ),
            ]
        )
    )
    warn_of_conditions(provenance.warnings)
    return 0


def _unsettled(seen: _Measurements) -> str | None:
    if not seen.unsettled:
        return None
    return f"{seen.unsettled} of {seen.measured + seen.cached} within --cap-s; used with the interval they have"


def _odd(seen: _Measurements) -> str | None:
    if not seen.outlying_blocks and not seen.disturbed_blocks:
        return None
    return (
        f"{seen.outlying_blocks} outlying of {seen.blocks} (kept), {seen.disturbed_blocks} run again "
        "or set aside because something else slowed the machine"
    )


def _not_built(failed: list[_NotBuilt]) -> str | None:
    if not failed:
        return None
    first = failed[0]
    more = "" if len(failed) == 1 else f"; reasons of all in the table's .json; first ({first.st}, {first.end})"
    return f"{len(failed)} segments, left out of the table{more}: {first.reason}"
