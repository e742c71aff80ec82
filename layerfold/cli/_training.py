"""Arguments that the commands which train share."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from layerfold.cli._flags import add_flag, add_flags
from layerfold.cli._options import at_least
from layerfold.cli._quantities import finite_number
from layerfold.options import FinetuneOptions, RunOptions

if TYPE_CHECKING:
    from layerfold.data import ImageData
    from layerfold.finetune import FinetuneReport
    from layerfold.models import LoadedModel

_PRESETS = ("mobilenetv2-1.0", "mobilenetv2-1.4", "vgg19")
_OF_FINETUNE_ALONE = {"keep", "feature_weight", "precision", "int8_share", "int8_rate"}


def add_training_arguments(parser: argparse.ArgumentParser, *, epochs: int) -> None:
    """Add how to train, and what the teacher's part is; read them with ``training_of``.

    An option that is not given is None: it is left to the preset, or to the default that the help names.
    """
    # Added with the images, which other commands only score; here a preset may say it too.
    parser.set_defaults(default_epochs=epochs, batch_size=None)
    group = parser.add_argument_group("training")
    group.add_argument(
        "--preset",
        choices=_PRESETS,
        help="settings of Kim et al. 2023 for a network on ImageNet; what is given beside it counts",
    )
    length = group.add_mutually_exclusive_group()
    add_flag(length, FinetuneOptions, "epochs", is_left_open=True, default=str(epochs))
    add_flag(length, FinetuneOptions, "steps")
    add_flag(group, FinetuneOptions, "optimizer", is_left_open=True)
    add_flag(group, FinetuneOptions, "learning_rate", default="0.05 for sgd and 0.001 for adamw, at batch size 128")
    add_flag(group, FinetuneOptions, "weight_decay", default="0.0001 for sgd, 0.02 for adamw, 0 for others")
    add_flag(group, FinetuneOptions, "grad_clip_norm", "--grad-clip", is_left_open=True, type=at_least(0))
    add_flags(group, FinetuneOptions, "warmup", "schedule", "decay_rate", "decay_every", is_left_open=True)
    add_flag(group, FinetuneOptions, "milestones", is_left_open=True, type=_numbers)
    add_flag(group, FinetuneOptions, "decay_power", is_left_open=True)
    add_flag(group, FinetuneOptions, "ema_decay", "--ema")
    add_flag(group, FinetuneOptions, "mixed_precision", is_left_open=True, help="fp16 needs a GPU")
    add_flag(group, RunOptions, "device", "--train-device")
    add_flag(group, FinetuneOptions, "seed", is_left_open=True)
    images = parser.add_argument_group("images in training")
    augment = images.add_mutually_exclusive_group()
    add_flag(augment, FinetuneOptions, "augment", is_left_open=True, default="random crops and mirroring")
    augment.add_argument("--no-augment", action="store_true", help="no random crops and mirroring")
    add_flags(images, FinetuneOptions, "random_erasing", "mixup", "cutmix", "label_smoothing", is_left_open=True)
    teacher = parser.add_argument_group("teacher")
    teacher.add_argument("--no-teacher", action="store_true", help="learn from the labels only")
    add_flags(teacher, FinetuneOptions, "distillation_weight", "temperature", is_left_open=True)


def add_freezing_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--unfreeze`` and ``--keep-frozen``; apply them with ``apply_freezing``."""
    group = parser.add_argument_group("frozen parameters (requires_grad is False)").add_mutually_exclusive_group()
    group.add_argument("--unfreeze", action="store_true", help="train them too")
    group.add_argument("--keep-frozen", action="store_true", help="leave them as they are, and train the others")


def apply_freezing(arguments: argparse.Namespace, loaded: LoadedModel) -> None:
    """Unfreeze a loaded model where asked, in place; refuse one that is frozen where nothing was said.

    Raises:
        UsageError: nothing of it would train, or only a part.
    """
    from layerfold.finetune import check_trainable, unfreeze_parameters

    check_trainable(
        loaded.module, unfreeze=arguments.unfreeze, keep_frozen=arguments.keep_frozen, argument=f"MODEL {loaded.source}"
    )
    if arguments.unfreeze:
        unfreeze_parameters(loaded.module)


def check_training_data(loaded: LoadedModel, data: ImageData, *, has_teacher: bool) -> None:
    """Refuse images that a model cannot learn from, before anything is traced.

    Args:
        has_teacher: whether there is a network to learn from where images have no labels.

    Raises:
        DataError: nothing to learn from, no images for training, or more classes than the model has.
        UsageError: the model gives no logits.
    """
    from layerfold.errors import DataError
    from layerfold.finetune import check_answers, first_images

    data.split("train")
    if not data.is_labelled and not has_teacher:
        raise DataError(
            f"{data.name}: has no labels, and without a teacher there is nothing else to learn; leave out "
            "--no-teacher, or give labelled images"
        )
    check_answers(
        loaded.module,
        first_images(data),
        argument=f"MODEL {loaded.source}",
        num_classes=data.num_classes if data.is_labelled else None,
    )


def _numbers(text: str) -> tuple[float, ...]:
    found = tuple(finite_number(part) for part in text.split(","))
    if not all(0 <= each <= 1 for each in found):
        raise argparse.ArgumentTypeError(f"{text}: shares from 0 to 1 with commas are expected, such as 0.5,0.75")
    return found


def training_of(arguments: argparse.Namespace) -> FinetuneOptions:
    """Return how to train: what was given, over the preset, over the defaults."""
    from layerfold.finetune import preset

    base = FinetuneOptions(epochs=arguments.default_epochs) if arguments.preset is None else preset(arguments.preset)
    named = {field.name for field in fields(FinetuneOptions)} - _OF_FINETUNE_ALONE
    given: dict[str, Any] = {name: getattr(arguments, name) for name in named if hasattr(arguments, name)}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.no_augment:
        given["augment"] = False
    if arguments.ema is not None:
        given["ema_decay"] = arguments.ema
    if arguments.grad_clip is not None:
        given["grad_clip_norm"] = arguments.grad_clip or None
    return replace(base, **given)


def history_text(report: FinetuneReport) -> str:
    """Return the epochs as a table."""
    from layerfold.cli._text import columns

    rows = [
        (
            row.epoch,
            row.steps,
            f"{row.train_loss:.4f}",
            "" if row.score_pct is None else f"{row.score_pct:.2f} %",
            f"{row.seconds:.1f}",
        )
        for row in report.history
    ]
    return columns(("epoch", "steps", "loss", "holdout", "seconds"), rows, right="epoch steps loss holdout seconds")
