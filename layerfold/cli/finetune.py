"""``layerfold finetune``: train a network in train form, with the original as teacher."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._networks import add_trace_arguments, note_random_weights, recipe_of, trace_of
from layerfold.cli._options import add_command, add_output_arguments, add_result_arguments, at_least, check_output
from layerfold.cli._sources import add_data_arguments, add_model_arguments, load_model_of, open_data_of
from layerfold.cli._text import facts
from layerfold.cli._training import add_training_arguments, history_text, training_of

if TYPE_CHECKING:
    from layerfold.finetune import FinetuneReport


def add_parser(subparsers: Any) -> None:
    """Add ``finetune`` to the command line."""
    parser = add_command(
        subparsers, "finetune", "train the network of a solution, with the original as teacher",
        "Bring a network into the train form of a solution and finetune it, with the original as teacher. The state is "
        "kept in OUTPUT.checkpoint until the end: a run that is stopped goes on where it was.",
        "  layerfold finetune timm:mobilenetv2_100 --weights weights.safetensors --data folder:images \\\n"
        "      --solution solution.json --epochs 20 -o finetuned.safetensors",
    )  # fmt: skip
    add_model_arguments(parser)
    add_trace_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument("--solution", required=True, metavar="JSON", help="a solution of `layerfold solve`")
    add_training_arguments(parser, epochs=10)
    parser.add_argument("--keep", choices=("last", "best"), default="last",
                        help="weights of the last epoch, or of the best on the holdout (default: %(default)s)")
    parser.add_argument("--fade", type=at_least(0, 1), default=0.0, metavar="X",
                        help="share of the steps over which the activations that go fade to nothing (default: at once)")
    parser.add_argument("--teacher-weights", metavar="FILE",
                        help="the original's weights, where --weights are others, such as those that `layerfold "
                        "search` ended with (default: those of --weights)")
    parser.add_argument("--no-test", action="store_true", help="do not score the test split in the end")
    add_output_arguments(parser, "FILE", "the finetuned train form (.safetensors); how to build it goes to FILE.json")
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, score, write the train form."""
    from layerfold.finetune import evaluate_network, finetune_network
    from layerfold.merge import add_fading, build_train_form, save_form
    from layerfold.solver import Solution

    check_output(args.output, suffix=".safetensors", overwrite=args.overwrite)
    solution = Solution.read(args.solution)
    loaded = load_model_of(args)
    note_random_weights(args)
    original = loaded if args.teacher_weights is None else load_model_of(args, weights=args.teacher_weights)
    net = trace_of(args, loaded)
    student = build_train_form(loaded.module, net, solution)
    fade = args.fade if args.fade and add_fading(student, loaded.module, net, solution) else 0.0
    data = open_data_of(args, loaded)
    checkpoint = Path(f"{args.output}.checkpoint")
    options = replace(training_of(args), keep=args.keep)
    report = finetune_network(
        student, data, teacher=None if args.no_teacher else original.module, **asdict(options), fade=fade,
        checkpoint_path=checkpoint, device=args.train_device, progress=not args.quiet,
    )
    test: dict[str, Any] = {}
    if not args.no_test:
        scores = evaluate_network(student, data.split("test"), teacher=original.module)
        before = evaluate_network(original.module, data.split("test"))
        test = {
            "num_images": scores.num_images, "original_accuracy_pct": before.accuracy_pct,
            "accuracy_pct": scores.accuracy_pct, "agreement_pct": scores.agreement_pct,
        }  # fmt: skip
    facts_kept = {"finetune": report.as_dict(), "data": data.describe(), "test": test,
                  "original_weights_sha256": original.weights_sha256, "fade": fade}
    save_form(student, args.output, kind="train", recipe=recipe_of(args, loaded, solution), facts=facts_kept)
    checkpoint.unlink(missing_ok=True)
    print(f"wrote {args.output}", file=sys.stderr)
    if args.json:
        print(json.dumps({"output": args.output, "finetune": report.as_dict(), "test": test}, indent=1))
    else:
        print(_as_text(report, test))
    return 0


def _as_text(report: FinetuneReport, test: dict[str, Any]) -> str:
    text = history_text(report)
    if test:
        text += "\n\n" + facts([
            ("test, original", f"{test['original_accuracy_pct']:.2f} %"),
            ("test, finetuned", f"{test['accuracy_pct']:.2f} %, agrees on {test['agreement_pct']:.2f} %"),
        ])
    return text
