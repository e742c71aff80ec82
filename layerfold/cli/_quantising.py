"""``layerfold export --precision int8``: quantise a network with images, check it, write it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._flags import add_flag
from layerfold.cli._sources import add_data_arguments
from layerfold.errors import UsageError
from layerfold.files import JsonObject
from layerfold.options import DataOptions, QuantiseOptions
from layerfold.settings import merged

if TYPE_CHECKING:
    from layerfold.data import ImageData
    from layerfold.models import LoadedModel
    from layerfold.quantise import QuantisedCheck, QuantisedNetwork

_CHECKED = 512  # images on which the two networks are compared
_BATCH = 50
_OF_QUANTISING = ("calibration_images", "calibration", "weight_bits", "no_bias_correction", "no_equalisation")
_OF_IMAGES = ("mean", "std", "interpolation", "crop_pct")


def add_quantising_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and what calibration is asked; read with ``quantise_options``."""
    add_data_arguments(parser, required=False, trains=False)
    group = parser.add_argument_group("quantising", "with --precision int8, for a network that is in float32")
    add_flag(group, QuantiseOptions, "calibration_images", default="as many as there are, 300 at most")
    add_flag(group, QuantiseOptions, "method", "--calibration", is_left_open=True)
    add_flag(group, QuantiseOptions, "weight_bits", is_left_open=True)
    for name, text in (
        ("bias-correction", "do not correct biases, even where that helps"),
        ("equalisation", "do not even out channels, even where that helps"),
    ):
        group.add_argument(f"--no-{name}", action="store_true", help=text)


def quantise_options(args: argparse.Namespace) -> QuantiseOptions:
    """Return the options that were given."""
    given = {
        "calibration_images": args.calibration_images,
        "method": args.calibration,
        "weight_bits": args.weight_bits,
    }
    return merged(
        None,
        QuantiseOptions,
        {
            **{name: value for name, value in given.items() if value is not None},
            "bias_correction": not args.no_bias_correction,
            "equalisation": not args.no_equalisation,
        },
    )


def check_nothing_to_quantise(args: argparse.Namespace, why: str) -> None:
    """Refuse flags that only count where a network is quantised; ``why`` this command does not.

    Raises:
        UsageError: names the first one.
    """
    for name in _OF_QUANTISING:
        value = getattr(args, name)
        if value is not None and value is not False:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag}: says how a float32 network is quantised, and {why}; leave it out")


def prepared_as_asked(args: argparse.Namespace, preprocessing: JsonObject | None) -> JsonObject | None:
    """Return how images become a network's input with what flags say of it put in; None stays None."""
    if preprocessing is None:
        return None
    given = {name: getattr(args, name) for name in _OF_IMAGES}
    return {**preprocessing, **{name: value for name, value in given.items() if value is not None}}


def note_guessed_preparation(args: argparse.Namespace, loaded: LoadedModel) -> None:
    """Say on stderr where neither a model of one's own nor a flag says how images are normalised."""
    from layerfold.factories import is_factory_source

    said = getattr(loaded.module, "pretrained_cfg", None) or {}
    guessed = [
        f"{name} {','.join(f'{each:.4g}' for each in getattr(loaded, name))}"
        for name in ("mean", "std")
        if getattr(args, name) is None
        and (said.get(name) if isinstance(said, dict) else getattr(said, name, None)) is None
    ]
    if guessed and is_factory_source(loaded.source):
        print(
            f"layerfold: note: {loaded.source} does not say how its images are prepared; {' and '.join(guessed)} "
            "(ImageNet's) is taken: give --mean and --std if it was trained with others",
            file=sys.stderr,
        )


def open_images(args: argparse.Namespace, input_shape: tuple[int, ...], said: JsonObject) -> ImageData:
    """Open ``--data`` for a network.

    Args:
        args: of the command.
        input_shape: (channels, height, width).
        said: what is known of how its images are prepared, by field of ``DataOptions``.

    Raises:
        UsageError: no ``--data``, or neither the network nor the flags say how images are prepared.
    """
    from layerfold.data import open_data

    if args.data is None:
        raise UsageError(
            "--precision int8: needs images to calibrate a float32 network with; give --data, for example "
            "--data images:FOLDER (labels are not needed)"
        )
    known = {
        name: value if getattr(args, name) is None else getattr(args, name)
        for name in ("mean", "std", "interpolation", "crop_pct")
        if (value := said.get(name)) is not None or getattr(args, name) is not None
    }
    for name in ("mean", "std"):
        if name not in known:
            raise UsageError(f"--data {args.data}: nothing says how images are prepared; give --mean and --std")
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    options = merged(
        None,
        DataOptions,
        {
            **known,
            "num_classes": said.get("num_classes"),
            "holdout": args.holdout,
            "seed": args.data_seed,
            "download": args.download,
        },
    )
    channels, height, width = input_shape
    return open_data(
        args.data,
        input_shape=(channels, height, width),
        options=options,
        cache=args.image_cache,
        progress=not getattr(args, "quiet", False),
    )


def quantise(float_bytes: bytes, data: ImageData, options: QuantiseOptions) -> tuple[QuantisedNetwork, QuantisedCheck]:
    """Quantise a network with the training images of a data set (its holdout where it has none), check it on others."""
    from layerfold.pipeline.int8 import calibration_images, quantise_with
    from layerfold.quantise import check_quantised

    split, limit = calibration_images(data, options)
    print(f"layerfold: calibrating with {limit} images of {data.name}, {split}", file=sys.stderr)
    network = quantise_with(float_bytes, data, options)
    test = data.loader("test", _BATCH, limit=min(_CHECKED, len(data.split("test"))))
    return network, check_quantised(network.onnx_bytes, float_bytes, test)


def quantised_facts(path: Path, network: QuantisedNetwork, check: QuantisedCheck) -> list[tuple[str, object]]:
    """Return the lines about a quantised network."""
    helped = [
        *([f"channels evened out at {network.equalised_pairs} places"] if network.equalised_pairs else []),
        *(["biases corrected"] if network.is_bias_corrected else []),
    ]
    lines: list[tuple[str, object]] = [
        ("ONNX", f"{path}, {path.stat().st_size / 2**20:.1f} MiB, int8 (QDQ)"),
        ("calibrated", ", ".join([f"on {network.num_images} images", *helped])),
        (
            "check",
            f"same class as in float32 for {check.agreement_pct:.1f} % of {check.num_images} images; outputs differ by "
            f"{100 * check.relative_error:.1f} % of their size",
        ),
    ]
    if check.accuracy_pct is not None:
        lines.append(("accuracy", f"{check.accuracy_pct:.2f} %, {check.float_accuracy_pct:.2f} % in float32"))
    return lines


def quantised_json(network: QuantisedNetwork, check: QuantisedCheck) -> JsonObject:
    """Return what ``--json`` says of a quantised network."""
    facts: dict[str, Any] = {name: value for name, value in asdict(network).items() if name != "onnx_bytes"}
    return {**facts, "check": asdict(check)}
