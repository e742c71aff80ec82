"""``layerfold finetune``: train a network in train form, with the original as teacher."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._networks import add_trace_arguments, note_random_weights, recipe_of, trace_of
from layerfold.cli._options import (
    above,
    add_command,
    add_output_arguments,
    add_result_arguments,
    at_least,
    check_output,
    whole,
)
from layerfold.cli._sources import add_data_arguments, add_model_arguments, load_model_of, open_data_of
from layerfold.cli._text import columns, facts

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
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=whole(1), default=10, metavar="N",
                        help="passes over the train split (default: %(default)s)")
    length.add_argument("--steps", type=whole(1), metavar="N", help="steps in all, instead of epochs")
    group.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="(default: %(default)s)")
    group.add_argument("--learning-rate", type=above(0), metavar="X",
                       help="the highest (default: 0.05 for sgd and 0.001 for adamw, at batch size 128)")
    group.add_argument("--weight-decay", type=at_least(0), metavar="X",
                       help="(default: 0.0001 for sgd, 0.02 for adamw)")
    group.add_argument("--warmup", type=at_least(0, 1), default=0.1, metavar="X",
                       help="share of the steps in which the learning rate rises (default: %(default)s)")
    group.add_argument("--label-smoothing", type=at_least(0, 1), default=0.0, metavar="X",
                       help="(default: %(default)s)")
    group.add_argument("--no-augment", action="store_true", help="no random crops and mirroring")
    group.add_argument("--keep", choices=("last", "best"), default="last",
                       help="weights of the last epoch, or of the best on the holdout (default: %(default)s)")
    group.add_argument("--mixed-precision", choices=("no", "bf16", "fp16"), default="no", help="(default: %(default)s)")
    group.add_argument("--train-device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cpu)")
    group.add_argument("--seed", type=whole(0), default=0, metavar="N",
                       help="of the order of images and augmentation (default: %(default)s)")
    teacher = parser.add_argument_group("teacher")
    teacher.add_argument("--no-teacher", action="store_true", help="learn from the labels only")
    teacher.add_argument("--distillation-weight", type=at_least(0, 1), default=0.5, metavar="X",
                         help="the teacher's share of the loss (default: %(default)s)")
    teacher.add_argument("--temperature", type=above(0), default=2.0, metavar="X",
                         help="softens both answers (default: %(default)s)")
    parser.add_argument("--no-test", action="store_true", help="do not score the test split in the end")
    add_output_arguments(parser, "FILE", "the finetuned train form (.safetensors); how to build it goes to FILE.json")
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, score, write the train form."""
    from layerfold.finetune import evaluate_network, finetune_network
    from layerfold.merge import build_train_form, save_form
    from layerfold.solver import Solution

    check_output(args.output, suffix=".safetensors", overwrite=args.overwrite)
    solution = Solution.read(args.solution)
    loaded = load_model_of(args)
    note_random_weights(args)
    net = trace_of(args, loaded)
    student = build_train_form(loaded.module, net, solution)
    data = open_data_of(args, loaded)
    checkpoint = Path(f"{args.output}.checkpoint")
    report = finetune_network(
        student, data, teacher=None if args.no_teacher else loaded.module, epochs=args.epochs, steps=args.steps,
        batch_size=args.batch_size, optimizer=args.optimizer, learning_rate=args.learning_rate,
        weight_decay=args.weight_decay, warmup=args.warmup, label_smoothing=args.label_smoothing,
        distillation_weight=args.distillation_weight, temperature=args.temperature, augment=not args.no_augment,
        keep=args.keep, mixed_precision=args.mixed_precision, seed=args.seed, checkpoint_path=checkpoint,
        device=args.train_device, progress=not args.quiet,
    )  # fmt: skip
    test: dict[str, Any] = {}
    if not args.no_test:
        scores = evaluate_network(student, data.split("test"), teacher=loaded.module)
        original = evaluate_network(loaded.module, data.split("test"))
        test = {
            "num_images": scores.num_images, "original_accuracy_pct": original.accuracy_pct,
            "accuracy_pct": scores.accuracy_pct, "agreement_pct": scores.agreement_pct,
        }  # fmt: skip
    facts_kept = {"finetune": report.as_dict(), "data": data.describe(), "test": test,
                  "original_weights_sha256": loaded.weights_sha256}
    save_form(student, args.output, kind="train", recipe=recipe_of(args, loaded, solution), facts=facts_kept)
    checkpoint.unlink(missing_ok=True)
    print(f"wrote {args.output}", file=sys.stderr)
    if args.json:
        print(json.dumps({"output": args.output, "finetune": report.as_dict(), "test": test}, indent=1))
    else:
        print(_as_text(report, test))
    return 0


def _as_text(report: FinetuneReport, test: dict[str, Any]) -> str:
    rows = [
        (row.epoch, row.steps, f"{row.train_loss:.4f}",
         "" if row.holdout_accuracy_pct is None else f"{row.holdout_accuracy_pct:.2f} %", f"{row.seconds:.1f}")
        for row in report.history
    ]
    text = columns(("epoch", "steps", "loss", "holdout", "seconds"), rows, right="epoch steps loss holdout seconds")
    if test:
        text += "\n\n" + facts([
            ("test, original", f"{test['original_accuracy_pct']:.2f} %"),
            ("test, finetuned", f"{test['accuracy_pct']:.2f} %, agrees on {test['agreement_pct']:.2f} %"),
        ])
    return text
