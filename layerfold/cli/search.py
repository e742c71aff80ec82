"""``layerfold search``: learn which activations go, or take a published pattern."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from layerfold.budget import check_one_given
from layerfold.cli._flags import add_flag, add_flags
from layerfold.cli._networks import add_trace_arguments, check_table, note_random_weights, trace_of
from layerfold.cli._options import (
    add_budget_arguments,
    add_command,
    add_former_name,
    add_output_arguments,
    add_result_arguments,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import Output, check_outputs, only_writer
from layerfold.cli._quantities import parse_number
from layerfold.cli._sources import add_data_arguments, add_model_arguments, load_model_of, open_data_of
from layerfold.cli._text import columns, facts
from layerfold.cli._training import (
    add_freezing_arguments,
    add_training_arguments,
    apply_freezing,
    check_training_data,
    history_text,
    training_of,
)
from layerfold.errors import UsageError, nearest_names
from layerfold.files import replacing
from layerfold.options import RunOptions, SearchOptions

if TYPE_CHECKING:
    from torch import Tensor

    from layerfold.graph import Network
    from layerfold.search import Granularity, SearchResult
    from layerfold.solver import Solution
    from layerfold.tables import LatencyTable


def add_parser(subparsers: Any) -> None:
    """Add ``search`` to the command line."""
    parser = add_command(
        subparsers,
        "search",
        "learn which activations go (DepthShrinker), to a number or to a latency budget",
        "Train a network with a gate on each activation until as many are left as asked for, or until the latency "
        "table predicts the budget for what is left; then merge what lies between as fast as can be. Or take a pattern "
        "that DepthShrinker published. The state is kept in OUTPUT.checkpoint until the end: a run that is stopped "
        "goes on where it was.",
        "  layerfold search timm:mobilenetv2_100 --weights weights.safetensors --data folder:images \\\n"
        "      --latency latency.csv --speedup 1.5 --epochs 20 -o solution.json\n"
        "  layerfold search timm:mobilenetv2_140 --pattern mobilenetv2_140-A --latency latency.csv -o solution.json",
    )
    add_model_arguments(parser)
    add_trace_arguments(parser)
    add_data_arguments(parser, required=False)
    group = parser.add_argument_group("what to reach")
    target = group.add_mutually_exclusive_group()
    gates = target.add_argument(
        "--keep-gates", type=_keep, metavar="N", help="gates that stay on: a count, or a share below 1"
    )
    add_former_name(target, gates, "--keep")
    add_budget_arguments(
        target,
        "end-to-end latency, for example 4.5ms; needs --latency",
        "the original's predicted latency / budget, for example 1.5; needs --latency",
    )
    target.add_argument(
        "--pattern",
        metavar="NAME",
        help="what DepthShrinker published: the activations of mobilenetv2_140-A to -F, without any "
        "training, or the search that was set for efficientnet_lite0 or mobilenetv2_140 (blocks, 0.4 "
        "of them)",
    )
    add_flag(group, SearchOptions, "granularity", is_left_open=True)
    group.add_argument(
        "--latency",
        metavar="CSV",
        help="latency table from which the merging follows (default: as few convs as can be)",
    )
    add_flags(group, SearchOptions, "max_kernel", "anneal")
    add_training_arguments(parser, epochs=10)
    add_freezing_arguments(parser)
    add_output_arguments(parser, "JSON", "the solution, for verify, finetune and merge")
    parser.add_argument(
        "--weights-out",
        metavar="FILE",
        help="write the weights that the search ended with (.safetensors), to finetune from "
        "(`layerfold finetune --weights FILE --teacher-weights ORIGINAL`)",
    )
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, or take a published pattern; write the solution."""
    with only_writer(args.output):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from layerfold.tables import LatencyTable

    # A run that is resumed may have been stopped after it had written some of its files.
    may_replace = args.overwrite or Path(f"{args.output}.checkpoint").exists()
    check_outputs(
        args,
        Output(flag="-o", path=args.output, suffixes=(".json",)),
        Output(flag="--weights-out", path=args.weights_out, suffixes=(".safetensors",)),
        overwrite=may_replace,
    )
    target = _target_of(args)
    table = None if args.latency is None else LatencyTable.read(args.latency)
    if args.pattern is not None and not target:
        return _take_pattern(args, table)
    if args.data is None:
        raise UsageError("--data: a search trains the network; name images, for example folder:PATH")
    return _search(args, target, table)


class _Target(TypedDict, total=False):
    """The target of a search, as ``search_activations`` takes it."""

    granularity: Granularity
    keep: float | None
    budget_ms: float | None
    speedup: float | None


def _target_of(args: argparse.Namespace) -> _Target:
    """Return the search's target and granularity; nothing for a pattern of activations."""
    from layerfold.search import PUBLISHED_PATTERNS, PUBLISHED_SEARCHES

    granularity: Granularity = args.granularity or "slot"
    if args.pattern is not None:
        published = PUBLISHED_SEARCHES.get(args.pattern)
        if published is not None:
            if args.granularity not in (None, published.granularity):
                raise UsageError(
                    f"--granularity {args.granularity}: --pattern {args.pattern} searches "
                    f"{published.granularity}s; leave --granularity out"
                )
            return {"granularity": published.granularity, "keep": published.keep}
        if args.pattern not in PUBLISHED_PATTERNS:
            known = (*PUBLISHED_PATTERNS, *PUBLISHED_SEARCHES)
            raise UsageError(
                f"--pattern {args.pattern}: must be one of {', '.join(known)}{nearest_names(args.pattern, known)}"
            )
        if args.weights_out is not None:
            raise UsageError(f"--weights-out {args.weights_out}: --pattern {args.pattern} trains nothing")
        return {}
    check_one_given(
        {
            "--keep-gates": args.keep_gates,
            "--budget": args.budget,
            "--speedup": args.speedup,
            "--pattern": args.pattern,
        },
        "give one of the four",
    )
    if args.keep_gates is None and args.latency is None:
        raise UsageError("--latency: a budget needs the network's latency table (`layerfold profile`)")
    return {"granularity": granularity, "keep": args.keep_gates, "budget_ms": args.budget, "speedup": args.speedup}


def _keep(text: str) -> float:
    """Return ``--keep-gates``: a count, or a share below 1."""
    value = parse_number(text, "--keep-gates", least=0, most=1e6, example="20 or 0.4")
    if 0 < value < 1:
        return value
    if value != int(value):
        raise UsageError(f"--keep-gates {text}: must be a whole number of gates, or a share of them below 1")
    return int(value)


def _take_pattern(args: argparse.Namespace, table: LatencyTable | None) -> int:
    from layerfold.search import published_pattern

    loaded = load_model_of(args)
    net = trace_of(args, loaded)
    if table is not None:
        check_table(net, table, args.latency)
    solution = published_pattern(args.pattern, net, table, model_name=loaded.source)
    solution.write(args.output)
    print(f"wrote {args.output}", file=sys.stderr)
    if args.json:
        show_json({"output": args.output, "solution": solution.to_json()})
    else:
        show(facts(_solution_facts(net, solution, table)))
    return 0


def _search(args: argparse.Namespace, target: _Target, table: LatencyTable | None) -> int:
    from layerfold.search import search_activations

    loaded = load_model_of(args)
    apply_freezing(args, loaded)
    note_random_weights(args)
    data = open_data_of(args, loaded)
    check_training_data(loaded, data, has_teacher=not args.no_teacher)
    net = trace_of(args, loaded)
    if table is not None:
        check_table(net, table, args.latency)
    checkpoint = Path(f"{args.output}.checkpoint")
    options = SearchOptions(
        **target,
        anneal=args.anneal,
        training=training_of(args),
        distill=not args.no_teacher,
        max_kernel=args.max_kernel,
        model_name=loaded.source,
    )
    where = RunOptions(device=args.train_device, checkpoint_path=checkpoint, progress=not args.quiet)
    found = search_activations(loaded.module, net, data, options, latency=table, run=where)
    if args.weights_out is not None:
        _write_weights(found.weights, Path(args.weights_out))
    found.solution.write(args.output)
    checkpoint.unlink(missing_ok=True)
    print(f"wrote {args.output}", file=sys.stderr)
    if args.json:
        show_json({"output": args.output, **found.as_dict()})
    else:
        show(_as_text(net, found, table))
    return 0


def _write_weights(weights: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with replacing(path) as partial:
        save_file({name: value.contiguous() for name, value in weights.items()}, partial)
    print(f"wrote {path}", file=sys.stderr)


def _as_text(net: Network, found: SearchResult, table: LatencyTable | None) -> str:
    from layerfold.report.words import positions_text

    rows = [
        (gate.name, positions_text(gate.positions), f"{gate.score:+.4f}", "stays" if gate.is_on else "goes")
        for gate in found.gates
    ]
    kept = sum(gate.is_on for gate in found.gates)
    return "\n\n".join(
        (
            columns(("gate", "positions", "score", ""), rows, right="score"),
            history_text(found.training),
            facts([("gates", f"{kept} of {len(found.gates)} stay"), *_solution_facts(net, found.solution, table)]),
        )
    )


def _solution_facts(net: Network, solution: Solution, table: LatencyTable | None) -> list[tuple[str, object]]:
    predicted = None
    if table is not None and solution.predicted_ms is not None:
        predicted = (
            f"{solution.predicted_ms:.4g} ms, {table.original_ms / solution.predicted_ms:.3f}x as fast as the "
            "original's prediction"
        )
    budget = None if solution.budget_ms is None else f"{solution.budget_ms:.4g} ms"
    return [
        ("activations", f"{len(net.original_act_pos)} -> {len(solution.act_pos)}"),
        ("layers", f"{len(net.layers)} -> {len(solution.merge_pos)}"),
        ("predicted", predicted),
        ("budget", budget),
    ]
