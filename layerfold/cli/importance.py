"""``layerfold importance``: what the score loses when a segment is merged, into an importance table."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._executor import add_executor_arguments, executor_of
from layerfold.cli._flags import add_flag, add_flags, options_from_flags
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
from layerfold.files import JsonObject, as_json, parse_json
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
        "or adaptive (each entry cheaply, then those of the best plans expensively; needs --latency); here "
        "there are %(choices)s",
        default="shared, without labels or with --precision int8 recalibrate",
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
    add_flag(group, ImportanceOptions, "precision")
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
    options = options_from_flags(
        args,
        ImportanceOptions,
        refinement=Refinement(
            start_with=args.start_with,
            refine_with=args.refine_with,
            most=args.refine_most,
            budgets_ms=tuple(args.around),
        ),
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
    found = _Summary.of(args, table)
    if args.json:
        show_json(found.to_json())
    else:
        show(_as_text(found))
    return 0


@dataclass(frozen=True, kw_only=True)
class _Merge:
    """A segment that costs little to merge, without the layers that are ``dropped``."""

    start: int
    end: int
    start_act: int | None
    end_act: int | None
    dropped: tuple[int, ...]
    importance: float


@dataclass(frozen=True, kw_only=True)
class _Spent:
    """Entries that an adaptive estimate refined, and whether all plans stand on them."""

    rounds: int
    refined: int
    entries: int
    is_settled: bool


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Those of the table's options that are shown; see ``docs/importance.md``."""

    score: str
    original: dict[str, float]
    seconds: float
    spent: _Spent | None = None


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """Result of the command.

    Attributes:
        table: the file.
        model, method: as asked for.
        entries, left_out: how many.
        options: how it was estimated.
        best_merges: the segments that cost least to merge.
    """

    table: str
    model: str
    method: str
    entries: int
    left_out: int
    options: _Options
    best_merges: tuple[_Merge, ...]

    @classmethod
    def of(cls, args: argparse.Namespace, table: ImportanceTable) -> _Summary:
        """Return it for the table that was written."""
        merged = [entry for entry in table.entries if entry.change is not None or entry.end - entry.start > 1]
        merged.sort(key=lambda entry: (-entry.importance, entry.start, entry.end))
        return cls(
            table=args.output,
            model=table.provenance.model,
            method=args.method,
            entries=len(table.entries),
            left_out=len(table.provenance.left_out),
            options=parse_json(json.dumps(table.provenance.options), _Options, source=f"{args.output}: options"),
            best_merges=tuple(
                _Merge(
                    start=each.start,
                    end=each.end,
                    start_act=each.start_act,
                    end_act=each.end_act,
                    dropped=tuple(each.dropped),
                    importance=each.importance,
                )
                for each in merged[:5]
            ),
        )

    def to_json(self) -> JsonObject:
        """Return what ``--json`` prints."""
        return {
            "table": self.table,
            "model": self.model,
            "method": self.method,
            "score": self.options.score,
            "entries": self.entries,
            "left_out": self.left_out,
            "original": self.options.original,
            "seconds": self.options.seconds,
            "spent": None if self.options.spent is None else asdict(self.options.spent),
            "best_merges": [as_json(asdict(each)) for each in self.best_merges],
        }


def _as_text(found: _Summary) -> str:
    # Not every method knows every score of the original.
    texts = {"val_acc": "{:.2f} % correct", "val_loss": "loss {:.4g}"}
    scores = found.options.original
    original = ", ".join(text.format(scores[name]) for name, text in texts.items() if name in scores)
    known = [
        ("model", found.model),
        ("method", f"{found.method}, score {found.options.score}"),
        *([("original", f"{original} on the holdout")] if original else []),
        ("entries", f"{found.entries}; {found.left_out} segments left out, not faster merged"),
        ("spent", _spent_text(found.options)),
    ]
    rows = [(_layers(each), f"{each.importance:+.4g}") for each in found.best_merges]
    return facts(known) + (
        "\n\ncheapest to merge\n" + columns(("layers", "importance"), rows, right="importance", indent="  ")
        if rows
        else ""
    )


def _spent_text(found: _Options) -> str:
    text, spent = f"{found.seconds:.1f} s on estimates", found.spent
    if spent is not None:
        text += f"; {spent.refined} of {spent.entries} entries refined in {spent.rounds} rounds, "
        text += (
            "and the plans stand on these alone"
            if spent.is_settled
            else "then the limit came (--refine-most); some plans stand on cheap estimates"
        )
    return text


def _layers(found: _Merge) -> str:
    dropped = f" without {','.join(map(str, found.dropped))}" if found.dropped else ""
    return f"{found.start + 1}..{found.end}{dropped}"
