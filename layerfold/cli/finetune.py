"""``layerfold finetune``: train a network in train form, with the original as teacher."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._flags import add_flag, add_flags
from layerfold.cli._networks import add_trace_arguments, note_needless, note_random_weights, recipe_of, trace_of
from layerfold.cli._options import add_command, add_output_arguments, add_result_arguments, at_least, check_output
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import Output, check_outputs, only_writer
from layerfold.cli._sources import add_data_arguments, add_model_arguments, load_model_of, open_data_of
from layerfold.cli._text import facts
from layerfold.cli._training import (
    add_freezing_arguments,
    add_training_arguments,
    apply_freezing,
    check_training_data,
    history_text,
    training_of,
)
from layerfold.errors import UsageError
from layerfold.files import JsonObject
from layerfold.options import FinetuneOptions, RunOptions

if TYPE_CHECKING:
    from torch import fx, nn

    from layerfold.finetune import FinetuneReport
    from layerfold.merge.files import Kind

_FORMS = ("train", "deploy")


def add_parser(subparsers: Any) -> None:
    """Add ``finetune`` to the command line."""
    parser = add_command(
        subparsers,
        "finetune",
        "train the network of a solution, with the original as teacher",
        "Bring a network into the train form of a solution and finetune it, with the original as teacher. The state is "
        "kept in OUTPUT.checkpoint until the end: a run that is stopped goes on where it was. Each epoch is written to "
        "OUTPUT.log.csv, and all of them drawn in OUTPUT.png. `accelerate launch -m layerfold finetune ...` trains in "
        "several processes, with the same batches and the same loss. With --precision int8 the last steps compute as "
        "the quantised network will.",
        "  layerfold finetune timm:mobilenetv2_100 --weights weights.safetensors --data folder:images \\\n"
        "      --solution solution.json --epochs 20 -o finetuned.safetensors",
    )
    add_model_arguments(parser)
    add_trace_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument("--solution", required=True, metavar="JSON", help="a solution of `layerfold solve`")
    add_training_arguments(parser, epochs=10)
    add_freezing_arguments(parser)
    add_flags(parser, FinetuneOptions, "feature_weight", "keep", is_left_open=True)
    parser.add_argument(
        "--save-both",
        action="store_true",
        help="write the other of the two as well, to NAME.best.safetensors or NAME.last.safetensors",
    )
    parser.add_argument(
        "--fade",
        type=at_least(0, 1),
        default=0.0,
        metavar="X",
        help="share of the steps over which the activations that go fade to nothing (default: at once)",
    )
    group = parser.add_argument_group("int8")
    add_flags(group, FinetuneOptions, "precision", "int8_share", "int8_rate", is_left_open=True)
    group.add_argument(
        "--int8-form",
        choices=_FORMS,
        default=_FORMS[0],
        help="what the rounded steps train: the layers that merged kernels are made of (train), or the merged kernels "
        "(deploy); OUTPUT is in that form (default: %(default)s)",
    )
    parser.add_argument(
        "--teacher-weights",
        metavar="FILE",
        help="the original's weights, where --weights are others, such as those that `layerfold "
        "search` ended with (default: those of --weights)",
    )
    parser.add_argument("--no-test", action="store_true", help="do not score the test split in the end")
    add_flag(parser, RunOptions, "tensorboard_path", "--tensorboard")
    add_flag(parser, RunOptions, "checkpoint_every_s", "--checkpoint-every")
    add_output_arguments(parser, "FILE", "the finetuned train form (.safetensors); how to build it goes to FILE.json")
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, score, write the train form; of several processes the first one writes."""
    with only_writer(args.output):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    from layerfold.finetune import ending_together

    with ending_together():
        return _finetune(args)


def options_of(args: argparse.Namespace) -> FinetuneOptions:
    """Return how to train, by everything that was given."""
    given = {name: getattr(args, name) for name in ("keep", "feature_weight", "precision", "int8_share", "int8_rate")}
    return replace(training_of(args), **{name: value for name, value in given.items() if value is not None})


def _finetune(args: argparse.Namespace) -> int:
    from layerfold.finetune import (
        FINETUNED,
        evaluate_network,
        finetune_merged,
        finetune_network,
        float_checkpoint,
        is_main_process,
        recalibrate_batch_norm,
    )
    from layerfold.merge import add_fading, build_train_form, save_form, segment_ends
    from layerfold.report.training import training_png
    from layerfold.solver import Solution

    options = options_of(args)
    _check_int8(args, options)
    output = Path(args.output)
    checkpoint, log, plot = (Path(f"{output}.{name}") for name in ("checkpoint", "log.csv", "png"))
    other = output.with_suffix(f".{'last' if options.keep == 'best' else 'best'}.safetensors")
    # A run that is resumed may have been stopped anywhere, also after it had written some of its files.
    may_replace = args.overwrite or checkpoint.exists() or float_checkpoint(checkpoint).exists()
    check_outputs(args, Output(flag="-o", path=output, suffixes=(".safetensors",)), overwrite=may_replace)
    for path in (log, plot):
        check_output(path, overwrite=may_replace)
    if args.save_both:
        check_output(other, flag="--save-both", overwrite=may_replace)
    solution = Solution.read(args.solution)
    loaded = load_model_of(args)
    apply_freezing(args, loaded)
    if is_main_process():
        note_random_weights(args)
    original = loaded if args.teacher_weights is None else load_model_of(args, weights=args.teacher_weights)
    data = open_data_of(args, loaded)
    check_training_data(loaded, data, has_teacher=not args.no_teacher)
    net = trace_of(args, loaded)
    if is_main_process():
        note_needless(net, solution)
    student = build_train_form(loaded.module, net, solution)
    fade = args.fade if args.fade and add_fading(student, loaded.module, net, solution) else 0.0
    teacher, features = None if args.no_teacher else original.module, []
    if options.feature_weight and teacher is not None:
        teacher, features = net.graph.on(teacher), segment_ends(student, net, solution)
        if not features:
            raise UsageError(
                f"--feature-weight {options.feature_weight:g}: the solution merges nothing, so that there "
                "is no end of a segment to compare; leave it out"
            )
    run = RunOptions(
        device=args.train_device,
        keep_other=args.save_both,
        checkpoint_path=checkpoint,
        checkpoint_every_s=args.checkpoint_every,
        log_path=log,
        tensorboard_path=args.tensorboard,
        progress=not args.quiet,
    )
    if options.precision == "int8" and options.int8_share >= 1:
        recalibrate_batch_norm(student, data)  # the original's do not fit, and rounded steps leave them alone
    kind: Kind = args.int8_form if options.precision == "int8" else "train"
    form = student
    if kind == "deploy":
        form, report = finetune_merged(student, data, options, teacher=teacher, features=features, fade=fade, run=run)
    else:
        report = finetune_network(student, data, options, teacher=teacher, features=features, fade=fade, run=run)
    if not is_main_process():
        return 0
    test: _TestScores | None = None
    if not args.no_test:
        scores = evaluate_network(_as_deployed(form, options), data.split("test"), teacher=original.module)
        before = evaluate_network(original.module, data.split("test")).accuracy_pct if data.is_labelled else None
        test = _TestScores(
            num_images=scores.num_images,
            original_accuracy_pct=before,
            accuracy_pct=scores.accuracy_pct,
            agreement_pct=scores.agreement_pct,
        )
    recipe = recipe_of(args, loaded, net, solution)
    facts_kept: JsonObject = {
        "batch_norm": FINETUNED,
        "finetune": report.as_dict(),
        "data": data.describe(),
        "test": {} if test is None else test.to_json(),
        "original_weights_sha256": original.weights_sha256,
        "fade": fade,
    }
    save_form(form, output, kind=kind, recipe=recipe, facts=facts_kept)
    training_png(report.history, plot, kept_epoch=report.kept_epoch, title=f"{loaded.source}, {output.name}")
    written = [output, log, plot]
    if report.other_weights is not None:
        student.load_state_dict(report.other_weights)
        save_form(student, other, kind="train", recipe=recipe, facts={**facts_kept, "test": {}})
        written.append(other)
    for path in (checkpoint, float_checkpoint(checkpoint)):
        path.unlink(missing_ok=True)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    if args.json:
        show_json({"output": args.output, "finetune": report.as_dict(), "test": facts_kept["test"]})
    else:
        show(_as_text(report, test))
    return 0


def _check_int8(args: argparse.Namespace, options: FinetuneOptions) -> None:
    """Refuse flags of int8 without it, and those that make no sense with it."""
    if options.precision == "int8":
        if args.save_both:
            raise UsageError(
                "--save-both: for --precision int8 one set of weights is kept, with its ranges; leave one out"
            )
        return
    given = [flag for flag in ("int8_share", "int8_rate") if getattr(args, flag) is not None]
    if args.int8_form != _FORMS[0]:
        given.append("int8_form")
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')}: goes with --precision int8; say that too, or leave it out")


def _as_deployed(form: fx.GraphModule, options: FinetuneOptions) -> nn.Module:
    """Return what is scored: for int8 the network that computes as its quantised file does."""
    if options.precision != "int8":
        return form
    from layerfold.qat import fake_quantised

    return fake_quantised(form)


@dataclass(frozen=True, kw_only=True)
class _TestScores:
    """Number of test images, and scores of both networks on them; None where these are not known."""

    num_images: int
    original_accuracy_pct: float | None
    accuracy_pct: float | None
    agreement_pct: float | None

    def to_json(self) -> JsonObject:
        """Return what the form keeps, and ``--json`` prints."""
        return asdict(self)


def _as_text(report: FinetuneReport, test: _TestScores | None) -> str:
    text = history_text(report)
    if test is not None:
        agrees = f"agrees on {test.agreement_pct:.2f} %"
        known = (
            [("test, finetuned", agrees)]
            if test.accuracy_pct is None
            else [
                ("test, original", f"{test.original_accuracy_pct:.2f} %"),
                ("test, finetuned", f"{test.accuracy_pct:.2f} %, {agrees}"),
            ]
        )
        text += "\n\n" + facts(known)
    return text
