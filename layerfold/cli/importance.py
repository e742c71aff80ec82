"""``layerfold importance``: what the score loses when a segment is merged, into an importance table."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._executor import add_executor_arguments, executor_of
from layerfold.cli._flags import add_flag, add_flags
from layerfold.cli._networks import (
    add_candidate_arguments,
    add_trace_arguments,
    candidates_of,
    check_table,
    note_random_weights,
    trace_of,
)
from layerfold.cli._options import (
    add_command,
    add_output_arguments,
    add_result_arguments,
    check_output,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import Output, check_outputs, only_writer
from layerfold.cli._quantities import parse_ms
from layerfold.cli._sources import add_data_arguments, add_model_arguments, load_model_of, open_data_of
from layerfold.cli._text import columns, facts
from layerfold.cli._training import add_freezing_arguments
from layerfold.options import ImportanceOptions, Refinement

if TYPE_CHECKING:
    from layerfold.tables import ImportanceTable


def add_parser(subparsers: Any) -> None:
    """Add ``importance`` to the command line."""
    parser = add_command(
        subparsers,
        "importance",
        "estimate what the score loses when a segment is merged",
        "Estimate the importance of every segment worth merging: the change of a score on the holdout when the segment "
        "replaces its layers. Finished entries are kept in OUTPUT.journal until the table is written: a run that is "
        "stopped goes on where it was.",
        "  layerfold importance timm:mobilenetv2_100 --weights weights.safetensors --data folder:images \\\n"
        "      --latency latency.csv -o importance.csv",
    )
    add_model_arguments(parser)
    add_trace_arguments(parser)
    add_data_arguments(parser)
    add_candidate_arguments(parser, max_growth=4.0)
    group = parser.add_argument_group("estimate")
    group.add_argument(
        "--latency",
        metavar="CSV",
        help="latency table: its segments are taken, but for those that it says are not worth merging",
    )
    add_flag(
        group,
        ImportanceOptions,
        "method",
        help="shared (one set of weights is trained in the networks of all entries in turn), "
        "recalibrate (BatchNorm statistics only, no training), distill (the segment alone is trained), "
        "finetune (the whole network is, for each entry), taylor (one backward pass over the original) "
        "or adaptive (each entry cheaply, then those of the best plans expensively; needs --latency)",
        default="shared, without labels recalibrate",
    )
    add_flag(
        group,
        ImportanceOptions,
        "score",
        help="accuracy, loss, agreement or kl (divergence), both with the original and without need of labels",
        default="accuracy, without labels agreement",
    )
    group.add_argument(
        "--fill-slots",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="also try an activation where the original has none (default: only with finetune)",
    )
    add_flag(group, ImportanceOptions, "calibration_images")
    add_flag(group, ImportanceOptions, "holdout_images", default="the whole holdout")
    length = group.add_mutually_exclusive_group()
    add_flag(length, ImportanceOptions, "steps", default="300 with finetune, 40 with distill, 2 with shared")
    add_flag(length, ImportanceOptions, "epochs")
    add_flag(group, ImportanceOptions, "learning_rate", default="the method's")
    adaptive = parser.add_argument_group("with --method adaptive")
    add_flags(adaptive, Refinement, "start_with", "refine_with")
    add_flag(adaptive, Refinement, "most", "--refine-most", default="one in five, at least 16")
    adaptive.add_argument(
        "--around",
        type=partial(parse_ms, argument="--around"),
        metavar="BUDGET",
        action="append",
        default=[],
        help="refine for this budget, such as 1.2ms; may be given several times (default: the whole frontier)",
    )
    add_flag(group, ImportanceOptions, "seed")
    add_freezing_arguments(parser)
    add_executor_arguments(parser, has_threads=True)
    add_output_arguments(parser, "CSV", "the importance table; how it was made goes to CSV.json")
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Estimate, write the table, print a summary."""
    with only_writer(args.output):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from layerfold.importance import estimate_importance, remove_journal, weights_hash
    from layerfold.importance.journal import belongs_to, wrote_table
    from layerfold.tables import LatencyTable

    journal = Path(f"{args.output}.journal")
    # A run that is resumed may have been stopped between writing the table and removing the journal; a journal of
    # another run is no leave to replace a table.
    is_resumed = not args.overwrite and args.output is not None and wrote_table(journal, Path(args.output))
    check_outputs(
        args,
        Output(flag="-o", path=args.output, suffixes=(".csv",), has_sidecar=True),
        overwrite=args.overwrite or is_resumed,
    )
    executor = executor_of(args)
    latency = None if args.latency is None else LatencyTable.read(args.latency)
    loaded = load_model_of(args)
    note_random_weights(args)
    net = trace_of(args, loaded)
    if latency is not None:
        check_table(net, latency, args.latency)
    data = open_data_of(args, loaded)
    if is_resumed and not belongs_to(
        journal,
        network=net.hash,
        weights=weights_hash(loaded.module),
        data=data.fingerprint,
        seed=args.seed,
        holdout_images=args.holdout_images,
        calibration_images=args.calibration_images,
    ):
        check_output(args.output)
    options = ImportanceOptions(
        method=args.method,
        score=args.score,
        fill_slots=args.fill_slots,
        calibration_images=args.calibration_images,
        holdout_images=args.holdout_images,
        steps=args.steps,
        epochs=args.epochs,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
        refinement=Refinement(
            start_with=args.start_with,
            refine_with=args.refine_with,
            most=args.refine_most,
            budgets_ms=tuple(args.around),
        ),
        unfreeze=args.unfreeze,
        keep_frozen=args.keep_frozen,
        candidates=candidates_of(args, net, loaded) if latency is None else None,
        executor=executor,
        model_name=loaded.source,
    )
    table = estimate_importance(
        loaded.module, net, data, options=options, latency=latency, journal_path=journal, progress=not args.quiet
    )
    table.write(args.output)
    remove_journal(journal)
    print(f"wrote {args.output}", file=sys.stderr)
    found = _summary(args, table)
    if args.json:
        show_json(found)
    else:
        show(_as_text(found))
    return 0


def _summary(args: argparse.Namespace, table: ImportanceTable) -> dict[str, Any]:
    merged = [entry for entry in table.entries if entry.kept is not None or entry.end - entry.start > 1]
    merged.sort(key=lambda entry: (-entry.importance, entry.start, entry.end))
    return {
        "table": args.output,
        "model": table.provenance.model,
        "method": args.method,
        "score": table.provenance.options["score"],
        "entries": len(table.entries),
        "left_out": len(table.provenance.left_out),
        "original": dict(table.provenance.options["original"]),
        "seconds": table.provenance.options["seconds"],
        "spent": table.provenance.options.get("spent"),
        "best_merges": [
            {
                "start": e.start,
                "end": e.end,
                "start_act": e.start_act,
                "end_act": e.end_act,
                "dropped": list(e.dropped),
                "importance": e.importance,
            }
            for e in merged[:5]
        ],
    }


def _as_text(found: dict[str, Any]) -> str:
    # Not every method knows every score of the original.
    texts = {"val_acc": "{:.2f} % correct", "val_loss": "loss {:.4g}"}
    original = ", ".join(
        text.format(found["original"][name]) for name, text in texts.items() if name in found["original"]
    )
    known = [
        ("model", found["model"]),
        ("method", f"{found['method']}, score {found['score']}"),
        *([("original", f"{original} on the holdout")] if original else []),
        ("entries", f"{found['entries']}; {found['left_out']} segments left out, not faster merged"),
        ("spent", _spent_text(found)),
    ]
    rows = [(_layers(each), f"{each['importance']:+.4g}") for each in found["best_merges"]]
    return facts(known) + (
        "\n\ncheapest to merge\n" + columns(("layers", "importance"), rows, right="importance", indent="  ")
        if rows
        else ""
    )


def _spent_text(found: dict[str, Any]) -> str:
    text, spent = f"{found['seconds']:.1f} s on estimates", found["spent"]
    if spent is not None:
        text += f"; {spent['refined']} of {spent['entries']} entries refined in {spent['rounds']} rounds, "
        text += (
            "and the plans stand on these alone"
            if spent["is_settled"]
            else "then the limit came (--refine-most); some plans stand on cheap estimates"
        )
    return text


def _layers(found: dict[str, Any]) -> str:
    dropped = f" without {','.join(map(str, found['dropped']))}" if found["dropped"] else ""
    return f"{found['start'] + 1}..{found['end']}{dropped}"
