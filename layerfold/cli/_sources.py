"""Arguments that several commands share: which model, which weights, which images."""

from __future__ import annotations

import argparse
import math
import re
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from layerfold.arguments import MOST_NUMBERS
from layerfold.cli._choices import INTERPOLATIONS
from layerfold.cli._options import BATCH, CLASSES, SEED, above, at_least, whole
from layerfold.cli._quantities import finite_number, parse_whole
from layerfold.errors import UsageError
from layerfold.options import DataOptions
from layerfold.terminal import one_line

if TYPE_CHECKING:
    from layerfold.data import ImageData
    from layerfold.models import LoadedModel


def parse_shape(text: str) -> tuple[int, int, int]:
    """Return (channels, height, width) of a text like ``3x224x224``.

    Raises:
        UsageError: not three whole numbers of at least 1.
    """
    parts = text.strip().lower().split("x")
    if len(parts) != 3 or not all(re.fullmatch("[0-9]{1,9}", part) and int(part) > 0 for part in parts):
        raise UsageError(f"--input {text}: give channels x height x width as whole numbers, for example 3x224x224")
    if math.prod(map(int, parts)) > MOST_NUMBERS:
        raise UsageError(
            f"--input {text}: is more than {MOST_NUMBERS:,} values per image, which no network here takes; "
            "give channels x height x width, for example 3x224x224"
        )
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def parse_channel_values(text: str, argument: str) -> tuple[float, ...]:
    """Return the numbers of a text like ``0.485,0.456,0.406``, one per channel.

    Args:
        text: one number, or several with commas between them.
        argument: the option's name, for the error.

    Raises:
        UsageError: not numbers.
    """
    found = tuple(finite_number(part) for part in text.split(","))
    if not all(map(math.isfinite, found)):
        raise UsageError(
            f"{argument} {text}: give one number per channel with commas between, for example 0.485,0.456,0.406"
        )
    return found


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, its weights, ``--num-classes`` and ``--input``; read them with ``load_model_of``."""
    group = parser.add_argument_group("model")
    group.add_argument("model", metavar="MODEL", help="timm:NAME, torchvision:NAME or path/to/file.py:factory")
    add_weights_arguments(group, "a .safetensors file, a saved state_dict or a checkpoint (default: random weights)")
    group.add_argument(
        "--num-classes",
        type=whole(1, CLASSES),
        metavar="N",
        help="outputs of the classifier (default: the model's own)",
    )
    group.add_argument(
        "--input",
        type=parse_shape,
        metavar="CxHxW",
        help="input shape, for example 3x224x224 (default: the model's own)",
    )


def add_weights_arguments(group: argparse._ArgumentGroup, weights_help: str) -> None:
    """Add ``--weights`` and ``--weights-key``."""
    group.add_argument("--weights", metavar="FILE", help=weights_help)
    group.add_argument(
        "--weights-key",
        metavar="KEY",
        help="which set of weights of that file, for example ema or state_dict.model "
        "(default: averaged weights where there are any, else the only ones that fit)",
    )


def add_preparation_arguments(group: argparse._ArgumentGroup) -> None:
    """Add what decides how an image is prepared for a network."""
    group.add_argument(
        "--mean",
        type=partial(parse_channel_values, argument="--mean"),
        metavar="M,M,M",
        help="mean of each channel, images in 0..1",
    )
    group.add_argument(
        "--std",
        type=partial(parse_channel_values, argument="--std"),
        metavar="S,S,S",
        help="standard deviation of each channel, images in 0..1",
    )
    group.add_argument(
        "--interpolation", choices=INTERPOLATIONS, metavar="NAME", help="how images are resized: bilinear, bicubic, ..."
    )
    group.add_argument(
        "--crop-pct", type=above(0, 1), metavar="P", help="share of the resized side that the centre crop keeps, 0..1"
    )


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool = True, trains: bool = True) -> None:
    """Add ``--data`` and how its images are prepared; read them with ``open_data_of``."""
    group = parser.add_argument_group("data", "how images are prepared is the model's own unless given")
    group.add_argument(
        "--data",
        required=required,
        metavar="DATA",
        help="folder:PATH, images:PATH (no labels), parquet:PATH, mnist5k, noisy15k, torch/NAME:FOLDER, hfds/NAME, "
        "wds/FOLDER or path/to/file.py:factory",
    )
    add_preparation_arguments(group)
    group.add_argument(
        "--holdout",
        type=at_least(0, 1e9),
        metavar="N",
        help="images drawn from train for choices on the way: a count, or a share below 1 (default: 0.1, at most 2000)",
    )
    group.add_argument(
        "--data-seed", type=whole(0, SEED), default=0, metavar="N", help="seed of that draw (default: 0)"
    )
    group.add_argument(
        "--image-cache",
        metavar="DIR|off",
        help="where decoded images are kept for the next run (default: images/ in the cache folder of the user)",
    )
    group.add_argument(
        "--download", action="store_true", help="let torch/ and hfds/ fetch data that is not on this machine"
    )
    if trains:
        group.add_argument(
            "--batch-size",
            type=whole(1, BATCH),
            default=128,
            metavar="N",
            help="images per step in training (default: 128)",
        )


def add_plan_scores_arguments(group: argparse._ArgumentGroup, *, default_steps: str) -> None:
    """Add ``--whole-plans`` and ``--finalist-steps``, of which ``default_steps`` says the default."""
    group.add_argument(
        "--whole-plans",
        type=partial(parse_whole, argument="--whole-plans", least=0, most=10_000),
        default=24,
        metavar="N",
        help="most plans near the solver's that are scored as whole networks, of which the best that "
        "keeps the budget is taken; 0 takes the solver's (default: %(default)s)",
    )
    group.add_argument(
        "--finalist-steps",
        type=partial(parse_whole, argument="--finalist-steps", least=0),
        metavar="N",
        help="where that leads to other plans than the solver's, steps for which each (four at most) "
        "is finetuned, to choose among them; 0 takes the one whose whole scores best (default: "
        f"{default_steps})",
    )


def load_model_of(arguments: argparse.Namespace, *, weights: str | None = None) -> LoadedModel:
    """Load the model that ``add_model_arguments`` read; its ``input_shape`` is that of ``--input`` if given.

    ``weights`` is a file to load in place of ``--weights``.
    """
    from layerfold.models import load_model

    shape = arguments.input
    loaded = load_model(
        arguments.model,
        weights=weights or arguments.weights,
        weights_key=arguments.weights_key if weights is None else None,
        num_classes=arguments.num_classes,
        in_channels=shape[0] if shape is not None else None,
    )
    if loaded.note:
        print(one_line(f"layerfold: note: {loaded.note}"), file=sys.stderr)
    return loaded if shape is None else replace(loaded, input_shape=shape)


def open_data_of(arguments: argparse.Namespace, loaded: LoadedModel) -> ImageData:
    """Open the images that ``add_data_arguments`` read, prepared as ``loaded`` expects them."""
    from layerfold.data import open_data

    options = DataOptions(
        mean=loaded.mean if arguments.mean is None else arguments.mean,
        std=loaded.std if arguments.std is None else arguments.std,
        interpolation=arguments.interpolation or loaded.interpolation,
        crop_pct=loaded.crop_pct if arguments.crop_pct is None else arguments.crop_pct,
        num_classes=loaded.num_classes,
        holdout=arguments.holdout,
        seed=arguments.data_seed,
        download=arguments.download,
    )
    return open_data(
        arguments.data,
        input_shape=loaded.input_shape,
        options=options,
        cache=arguments.image_cache,
        progress=not getattr(arguments, "quiet", False),
    )
