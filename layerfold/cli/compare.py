"""``layerfold compare``: several solutions on one device, measured in turns, in one table and one picture."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._flags import add_flags
from layerfold.cli._networks import add_trace_arguments, check_precision, check_table, trace_of
from layerfold.cli._options import (
    add_backend_arguments,
    add_command,
    add_result_arguments,
    open_backend,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import PICTURES, Output, check_outputs
from layerfold.cli._sources import add_data_arguments, add_model_arguments, load_model_of, open_data_of
from layerfold.cli._text import columns
from layerfold.errors import ProvenanceMismatchError, UsageError
from layerfold.options import CompareOptions

if TYPE_CHECKING:
    from torch import nn

    from layerfold.graph import Network
    from layerfold.models import LoadedModel
    from layerfold.pipeline import SolutionComparison
    from layerfold.solver import Solution

_PATTERN = "pattern:"


def add_parser(subparsers: Any) -> None:
    """Add ``compare`` to the command line."""
    parser = add_command(
        subparsers,
        "compare",
        "measure several solutions on one device, with their accuracy where finetuned",
        "Merge a network by several solutions and measure all of them in turns with the original. A finetuned network "
        "is measured as it is, and scored with --data (without labels by its agreement with the original); without it, "
        "what `layerfold finetune` found is shown.",
        "  layerfold compare timm:mobilenetv2_140 ours=solution.json pattern:mobilenetv2_140-A --latency latency.csv\n"
        "  layerfold compare timm:mobilenetv2_100 --weights weights.safetensors --data folder:images \\\n"
        "      paper=paper.safetensors search=searched.safetensors --csv compare.csv --plot compare.png",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "solutions",
        nargs="+",
        metavar="[NAME=]SOLUTION",
        help="a solution (.json, or a published .pth), a finetuned or merged network (.safetensors of "
        "`layerfold finetune` or `merge`), or pattern:NAME of `layerfold search --pattern`",
    )
    add_trace_arguments(parser)
    add_data_arguments(parser, required=False)
    tables = parser.add_argument_group("tables")
    tables.add_argument(
        "--latency", metavar="CSV", help="latency table to predict from (default: each solution's own prediction)"
    )
    tables.add_argument(
        "--importance", metavar="CSV", help="importance table to sum from (default: each solution's own importance)"
    )
    add_backend_arguments(parser)
    add_flags(parser, CompareOptions, "target", "cap_s")
    output = parser.add_argument_group("output")
    output.add_argument("--csv", metavar="FILE", help="write the table")
    output.add_argument("--plot", metavar="FILE", help="draw accuracy against latency (.png, .svg or .pdf)")
    output.add_argument("--overwrite", action="store_true", help="replace files that are there already")
    add_result_arguments(parser)
    parser.set_defaults(run=run)


@dataclass(kw_only=True)
class _Given:
    """One solution as given: the finetuned network and its accuracies where there are."""

    solution: Solution
    network: nn.Module | None = None
    accuracy_pct: float | None = None
    original_accuracy_pct: float | None = None


def run(args: argparse.Namespace) -> int:
    """Measure, score, write and print."""
    from layerfold.tables import ImportanceTable, LatencyTable

    check_outputs(
        args,
        Output(flag="--csv", path=args.csv, suffixes=(".csv",)),
        Output(flag="--plot", path=args.plot, suffixes=PICTURES),
    )
    sources = _named_sources(args.solutions)
    latency = None if args.latency is None else LatencyTable.read(args.latency)
    importance = None if args.importance is None else ImportanceTable.read(args.importance)
    backend = open_backend(args)  # what is missing shows before torch is loaded
    if latency is not None:
        check_precision(latency, args.latency, backend)
    from layerfold.pipeline import compare_solutions

    loaded = load_model_of(args)
    net = trace_of(args, loaded)
    if latency is not None:
        check_table(net, latency, args.latency)
    if importance is not None and importance.provenance.network_hash not in ("", net.hash):
        raise ProvenanceMismatchError(
            f"{args.importance}: was estimated for a network of hash {importance.provenance.network_hash}, this one "
            f"has {net.hash}; estimate it for this model with the same --input and --exclude"
        )
    given = {name: _read(name, source, loaded, net) for name, source in sources.items()}
    known = {name: each.accuracy_pct for name, each in given.items() if each.accuracy_pct is not None}
    before = {each.original_accuracy_pct for each in given.values() if each.original_accuracy_pct is not None}
    if len(before) == 1:  # where files disagree on it, they were scored on other images
        known["original"] = before.pop()
    options = CompareOptions(
        batch=args.batch,
        latency=latency,
        importance=importance,
        accuracies_pct=known,
        target=args.target,
        cap_s=args.cap_s,
    )
    found = compare_solutions(
        loaded.module,
        net,
        {name: each.solution for name, each in given.items()},
        backend,
        options=options,
        networks={name: each.network for name, each in given.items() if each.network is not None},
        data=None if args.data is None else open_data_of(args, loaded),
        progress=not args.quiet,
    )
    if args.csv is not None:
        found.write_csv(args.csv)
        print(f"wrote {args.csv}", file=sys.stderr)
    if args.plot is not None:
        found.plot(args.plot, title=f"{args.model} on {found.provenance.get('device')}")
        print(f"wrote {args.plot}", file=sys.stderr)
    if args.json:
        show_json(found.to_json())
    else:
        show(_as_text(found))
    return 0


def _named_sources(texts: list[str]) -> dict[str, str]:
    """Return name -> file or pattern, in the order given; a file without a name has its own."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals:
            name, source = Path(text).stem if not text.startswith(_PATTERN) else text.removeprefix(_PATTERN), text
        if not name or not source:
            raise UsageError(f"SOLUTION {text}: give FILE, or NAME=FILE")
        if name in found or name == "original":
            raise UsageError(f"SOLUTION {text}: the name {name!r} is taken; give another, as NAME={source}")
        found[name] = source
    return found


def _read(name: str, source: str, loaded: LoadedModel, net: Network) -> _Given:
    from layerfold.merge import load_form, merge_network
    from layerfold.search import published_pattern
    from layerfold.solver import Solution

    if source.startswith(_PATTERN):
        return _Given(solution=published_pattern(source.removeprefix(_PATTERN), net, model_name=loaded.source))
    if Path(source).suffix != ".safetensors":
        return _Given(solution=Solution.read(source))
    form = load_form(source)
    if form.net.hash != net.hash:
        raise UsageError(
            f"SOLUTION {name}: {source} is of a network of hash {form.net.hash}, MODEL has {net.hash}; "
            "give the MODEL, --input and --exclude that it was made with"
        )
    if form.batch_norm == "original":
        print(
            f"layerfold: note: {name}: its BatchNorm statistics are the original's, so its accuracy is less than it "
            "could be; merge it with --data, or finetune it",
            file=sys.stderr,
        )
    test = form.facts.get("test")
    test = test if isinstance(test, dict) else {}
    return _Given(
        solution=form.recipe.solution,
        network=merge_network(form.module) if form.kind == "train" else form.module,
        accuracy_pct=test.get("accuracy_pct"),
        original_accuracy_pct=test.get("original_accuracy_pct"),
    )


def _as_text(found: SolutionComparison) -> str:
    from layerfold.report.words import count_text

    rows = []
    for each in found.networks:
        rows.append(
            (
                each.name,
                "" if each.predicted_ms is None else f"{each.predicted_ms:.4g}",
                f"{each.measured_ms:.4g}",
                f"{each.low_ms:.4g} to {each.high_ms:.4g}",
                f"{each.speedup:.3f}",
                "" if each.importance is None else f"{each.importance:+.2f}",
                "" if each.accuracy_pct is None else f"{each.accuracy_pct:.2f} %",
                "" if each.agreement_pct is None else f"{each.agreement_pct:.2f} %",
                each.num_activations,
                each.num_convs,
                count_text(each.num_params),
                count_text(each.macs),
            )
        )
    header = (
        "network",
        "predicted_ms",
        "measured_ms",
        "95 % interval",
        "speedup",
        "importance",
        "accuracy",
        "agreement",
        "acts",
        "convs",
        "params",
        "macs",
    )
    # What is known of no solution needs no column.
    shown = [place for place in range(len(header)) if any(row[place] != "" for row in rows[1:])]
    table = columns(
        [header[place] for place in shown],
        [[row[place] for place in shown] for row in rows],
        right="predicted_ms measured_ms speedup importance accuracy agreement acts convs params macs",
    )
    notes = [f"{each.name}: {each.note}" for each in found.networks if each.note]
    notes += [
        f"{each.name}: the interval did not reach its target; give more --cap-s"
        for each in found.networks
        if not each.is_settled
    ]
    where = f"{found.provenance.get('backend')} on {found.provenance.get('device')}"
    return "\n".join([table, "", where, *notes])
