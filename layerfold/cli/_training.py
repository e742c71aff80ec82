"""Arguments that the commands which train share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from layerfold.cli._options import above, at_least, whole

if TYPE_CHECKING:
    from layerfold.finetune import FinetuneOptions, FinetuneReport


def add_training_arguments(parser: argparse.ArgumentParser, *, epochs: int) -> None:
    """Add how to train, and what the teacher's part is; read them with ``training_of``."""
    group = parser.add_argument_group("training")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=whole(1), default=epochs, metavar="N",
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


def training_of(arguments: argparse.Namespace) -> FinetuneOptions:
    """Return how to train; ``--keep`` where the command has it."""
    from layerfold.finetune import FinetuneOptions

    return FinetuneOptions(
        epochs=arguments.epochs, steps=arguments.steps, batch_size=arguments.batch_size,
        optimizer=arguments.optimizer, learning_rate=arguments.learning_rate, weight_decay=arguments.weight_decay,
        warmup=arguments.warmup, label_smoothing=arguments.label_smoothing,
        distillation_weight=arguments.distillation_weight, temperature=arguments.temperature,
        augment=not arguments.no_augment, mixed_precision=arguments.mixed_precision, seed=arguments.seed,
    )  # fmt: skip


def history_text(report: FinetuneReport) -> str:
    """Return the epochs as a table."""
    from layerfold.cli._text import columns

    rows = [
        (row.epoch, row.steps, f"{row.train_loss:.4f}",
         "" if row.holdout_accuracy_pct is None else f"{row.holdout_accuracy_pct:.2f} %", f"{row.seconds:.1f}")
        for row in report.history
    ]  # fmt: skip
    return columns(("epoch", "steps", "loss", "holdout", "seconds"), rows, right="epoch steps loss holdout seconds")
