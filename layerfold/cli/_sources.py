"""Arguments that several commands share: which model, which weights, which images."""

from __future__ import annotations

import argparse

from layerfold.errors import UsageError


def parse_shape(text: str) -> tuple[int, int, int]:
    """Return (channels, height, width) of a text like ``3x224x224``.

    Raises:
        UsageError: not three whole numbers of at least 1.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--input {text!r}: give channels x height x width as whole numbers, for example 3x224x224")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def parse_channel_values(text: str, argument: str) -> tuple[float, ...]:
    """Return the numbers of a text like ``0.485,0.456,0.406``, one a channel.

    Args:
        text: one number, or several with commas between them.
        argument: the option's name, for the error.

    Raises:
        UsageError: not numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{argument} {text!r}: give one number a channel with commas between, for example 0.485,0.456,0.406"
        ) from None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, ``--weights``, ``--num-classes`` and ``--input``."""
    group = parser.add_argument_group("model")
    group.add_argument("model", metavar="MODEL", help="timm:NAME, torchvision:NAME or path/to/file.py:factory")
    group.add_argument(
        "--weights", metavar="FILE",
        help="a .safetensors file or a saved state_dict; without it the weights are random",
    )
    group.add_argument(
        "--num-classes", type=int, metavar="N",
        help="outputs of the classifier (default: the model's own)",
    )
    group.add_argument("--input", metavar="CxHxW", help="input shape, for example 3x224x224 (default: the model's own)")


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--data`` and how its images are prepared; defaults come from the model's own data config."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", required=required, metavar="DATA",
        help="folder:PATH, parquet:PATH, mnist5k or path/to/file.py:factory",
    )
    group.add_argument(
        "--mean", metavar="M,M,M",
        help="mean of each channel, images in 0..1 (default: the model's own)",
    )
    group.add_argument("--std", metavar="S,S,S", help="standard deviation of each channel (default: the model's own)")
    group.add_argument("--interpolation", metavar="NAME", help="bilinear, bicubic, ... (default: the model's own)")
    group.add_argument(
        "--crop-pct", type=float, metavar="P",
        help="share of the resized side that the centre crop keeps, above 0, at most 1",
    )
    group.add_argument(
        "--holdout", metavar="N",
        help="images taken from train as holdout: a count, or a share below 1 (default: 0.1, at most 2000)",
    )
    group.add_argument(
        "--data-seed", type=int, default=0, metavar="N",
        help="seed of the split into train and holdout (default: 0)",
    )
    group.add_argument(
        "--batch-size", type=int, default=128, metavar="N",
        help="images a step in training and scoring (default: 128)",
    )
