"""``layerfold compress``: all steps, from a trained network to exported files and a report."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from layerfold.budget import check_one_given
from layerfold.cli._choices import OPTIMIZERS, parse_formats
from layerfold.cli._flags import add_flag, options_from_flags
from layerfold.cli._networks import add_drop_argument, add_limit_arguments, add_trace_arguments
from layerfold.cli._options import (
    add_backend_arguments,
    add_budget_arguments,
    add_command,
    add_former_name,
    add_result_arguments,
    backend_options,
    check_output_folder,
    whole,
)
from layerfold.cli._output import results_stream, show, show_json
from layerfold.cli._quantities import parse_alpha, parse_margin
from layerfold.cli._sources import (
    add_data_arguments,
    add_model_arguments,
    add_plan_scores_arguments,
    load_model_of,
    open_data_of,
)
from layerfold.cli._training import add_freezing_arguments
from layerfold.options import FinetuneOptions, ImportanceOptions, RunOptions
from layerfold.options.importance import SCORES

if TYPE_CHECKING:
    from layerfold.pipeline import CompressResult


def add_parser(subparsers: Any) -> None:
    """Add ``compress`` to the command line."""
    parser = add_command(
        subparsers,
        "compress",
        "compress a trained network to a latency budget: all steps",
        "Compress a trained CNN to a latency budget: trace, profile, importance, solve, verify, finetune, "
        "merge, export, bench. Interrupted, the same command goes on where it stopped.",
        "  layerfold compress timm:mobilenetv2_100 --weights net.pth --data folder:images --budget 4.5ms -o out\n"
        "  layerfold compress net.py:make --weights net.pth --data parquet:images --speedup 1.5 -o out",
    )
    add_model_arguments(parser)
    add_data_arguments(parser)
    budget = parser.add_argument_group("budget (one of the three)")
    add_budget_arguments(
        budget, "end-to-end latency, for example 4.5ms or 800us", "original latency / budget, for example 1.5"
    )
    budget.add_argument("--fastest", action="store_true", help="the least latency, whatever it does to the accuracy")
    add_backend_arguments(parser, precisions="float32 or float16")
    search = parser.add_argument_group("what may be merged, and what counts")
    add_trace_arguments(search)
    add_limit_arguments(search, max_growth=4.0)
    add_drop_argument(search)
    method = add_flag(
        search,
        ImportanceOptions,
        "method",
        help="shared (weights are trained once for all entries), recalibrate (no training, no labels "
        "needed), distill (segments alone are trained), finetune (the paper's), taylor, or adaptive "
        "(shared, then finetune near the budget)",
        default="shared; without labels or finetuning recalibrate",
    )
    add_former_name(search, method, "--importance")
    search.add_argument(
        "--score",
        choices=("auto", *SCORES),
        default="auto",
        metavar="NAME",
        help="loss, accuracy, agreement or kl, both with the original and without need of labels "
        "(default: loss, without labels kl)",
    )
    add_flag(
        search,
        ImportanceOptions,
        "holdout_images",
        "--importance-images",
        help="holdout images per score",
        default="all",
    )
    add_flag(
        search,
        ImportanceOptions,
        "steps",
        "--importance-steps",
        default="300 with finetune, 40 with distill, 2 with shared",
    )
    search.add_argument(
        "--alpha",
        type=parse_alpha,
        default=0.0,
        metavar="A",
        help="weight of the mean importance taken off each term (default: 0)",
    )
    add_plan_scores_arguments(search, default_steps="60, or 0 where that is more than a quarter of the finetuning")
    search.add_argument(
        "--margin",
        type=parse_margin,
        default="2",
        metavar="PCT",
        help="percent of the budget left free while a faster plan exists, so that measuring again "
        "confirms it (default: 2)",
    )
    train = parser.add_argument_group("finetuning")
    train.add_argument(
        "--epochs",
        type=whole(0),
        metavar="N",
        help="passes over the train split (default: 3); without labels the original's answers are learned",
    )
    train.add_argument("--no-finetune", action="store_true", help="merge the weights as they are")
    add_flag(train, FinetuneOptions, "learning_rate", metavar="R", help="highest learning rate")
    train.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="sgd", metavar="NAME", help="sgd or adamw (default: sgd)"
    )
    add_flag(
        train,
        RunOptions,
        "device",
        "--train-device",
        help="where networks are trained and scored: cpu, cuda, cuda:1, ...",
    )
    add_freezing_arguments(parser)
    out = parser.add_argument_group("output")
    out.add_argument("-o", "--output", required=True, metavar="FOLDER", help="everything is written here")
    out.add_argument(
        "--formats",
        type=parse_formats,
        metavar="LIST",
        help="onnx,tensorrt (default: onnx, and tensorrt where installed)",
    )
    out.add_argument("--overwrite", action="store_true", help="start over where the folder holds another run")
    add_flag(out, ImportanceOptions, "seed", help="of everything random")
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run all steps and print the result table; 3 if the last measurement is over the budget."""
    check_one_given(
        {f"--{name}": getattr(arguments, name) for name in ("budget", "speedup", "fastest")},
        "give one, for example --budget 4.5ms or --speedup 1.5",
    )
    check_output_folder(arguments.output)
    from layerfold.pipeline import CompressOptions, compress_network

    named = ("threads", "precision", "layout")
    options = options_from_flags(
        arguments,
        CompressOptions,
        budget_ms=arguments.budget,
        threads=1 if arguments.threads is None else arguments.threads,
        backend_options={name: value for name, value in backend_options(arguments).items() if name not in named},
        exclude=tuple(arguments.exclude),
        importance_method=arguments.method,
        importance_score=arguments.score,
        margin=arguments.margin / 100,
        finetune_epochs=0 if arguments.no_finetune else arguments.epochs,
    )
    loaded = load_model_of(arguments)
    data = open_data_of(arguments, loaded)
    result = compress_network(
        loaded,
        data,
        out=arguments.output,
        options=options,
        overwrite=arguments.overwrite,
        progress=not arguments.quiet,
        command="layerfold " + shlex.join(sys.argv[1:]),
    )
    return print_result(result, arguments)


def print_result(result: CompressResult, arguments: argparse.Namespace) -> int:
    """Print the table (or JSON) and the verdict; return the exit code."""
    from dataclasses import asdict

    from layerfold.report import result_table_text

    if arguments.json:
        rows = [asdict(row) for row in result.report.rows]
        facts = {
            "out": str(result.out),
            "is_budget_met": result.is_budget_met,
            "verdict": result.report.verdict,
            "budget_ms": result.report.budget_ms,
            "act_pos": list(result.solution.act_pos),
            "merge_pos": list(result.solution.merge_pos),
            "kept_layers": result.solution.kept_layers,
            "networks": rows,
        }
        show_json(facts)
    else:
        is_coloured = results_stream().isatty()
        show(result_table_text(result.report.rows, is_coloured=is_coloured), is_coloured=is_coloured)
        show(result.report.verdict)
        show(f"Report: {result.out / 'report.html'}")
    return 0 if result.is_budget_met else 3
