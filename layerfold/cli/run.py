"""``layerfold run``: an exported network on images, to see that the file works."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._inputs import check_readable
from layerfold.cli._options import (
    add_backend_arguments,
    add_command,
    add_former_name,
    add_result_arguments,
    open_backend,
    whole,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._sources import add_preparation_arguments
from layerfold.cli._text import columns
from layerfold.errors import UsageError
from layerfold.files import read_bytes, read_text

_MOST_ONNX_BYTES, _MOST_LABELS_BYTES = 2 << 30, 64 << 20  # an ONNX file holds at most 2 GiB

if TYPE_CHECKING:
    from layerfold.export import InputSpec


def add_parser(subparsers: Any) -> None:
    """Add ``run`` to the command line."""
    parser = add_command(
        subparsers,
        "run",
        "classify images with an exported network",
        "Classify images with an ONNX file, on any backend, or with a TensorRT engine, on its GPU. Images are prepared "
        "as the JSON file beside the network says; `layerfold export` writes it.",
        "  layerfold run out/merged.onnx --image cat.jpg dog.jpg --labels names.txt\n"
        "  layerfold run out/merged.engine --image cat.jpg --top 1 --json",
    )
    parser.add_argument("network", metavar="FILE", help="an .onnx file or an .engine file")
    images = parser.add_argument(
        "--image", nargs="+", action="extend", required=True, metavar="IMAGE", help="image files"
    )
    add_former_name(parser, images, "--input")
    parser.add_argument(
        "--top", type=whole(1), default=5, metavar="N", help="classes to show for each image (default: %(default)s)"
    )
    parser.add_argument("--labels", metavar="FILE", help="text file with one class name per line, in order")
    preparing = parser.add_argument_group("preparing images", "in place of what the JSON beside FILE says")
    add_preparation_arguments(preparing)
    add_backend_arguments(parser, batch=False)
    add_result_arguments(parser, has_progress=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load, classify, print."""
    path = Path(args.network)
    if path.suffix not in (".onnx", ".engine"):
        raise UsageError(f"FILE {path}: expected a name that ends in .onnx or .engine; `layerfold export` writes both")
    check_readable(path, "FILE")
    labels = _labels(args.labels)
    from layerfold.export import Classifier, read_preprocessing

    network, spec, device = _open_onnx(args, path) if path.suffix == ".onnx" else _open_engine(path)
    try:
        preprocessing = read_preprocessing(
            path,
            spec,
            mean=args.mean,
            std=args.std,
            interpolation=args.interpolation,
            crop_pct=args.crop_pct,
        )
        found = Classifier(network.infer, spec, preprocessing, labels).classify(args.image, args.top)
    finally:
        network.close()
    if args.json:
        images = [
            {"image": image, "top": [asdict(guess) for guess in guesses]}
            for image, guesses in zip(args.image, found, strict=True)
        ]
        show_json({"network": str(path), "device": device, "images": images})
        return 0
    rows = [
        (image if rank == 0 else "", guess.index, guess.label, f"{100 * guess.probability:.1f} %")
        for image, guesses in zip(args.image, found, strict=True)
        for rank, guess in enumerate(guesses)
    ]
    print(f"{path} on {device}", file=sys.stderr)
    show(columns(("image", "class", "label", "probability"), rows, right="class probability"))
    return 0


def _open_onnx(args: argparse.Namespace, path: Path) -> tuple[Any, InputSpec, str]:
    backend = open_backend(args)  # what is missing shows before torch is loaded
    from layerfold.export import InputSpec
    from layerfold.export.precision import read_graph

    onnx_bytes = read_bytes(path, most_bytes=_MOST_ONNX_BYTES)
    try:
        graph = read_graph(onnx_bytes)
    except UsageError as error:
        raise UsageError(f"FILE {path}: {error}") from error
    weights = {each.name for each in graph.initializer}
    spec = InputSpec.of(
        {
            put.name: [size.dim_value for size in put.type.tensor_type.shape.dim]
            for put in graph.input
            if put.name not in weights
        }
    )
    facts = backend.provenance()
    return backend.compile(onnx_bytes), spec, f"{facts['device']} ({facts['backend']}, {backend.precision})"


def _open_engine(path: Path) -> tuple[Any, InputSpec, str]:
    from layerfold.export import InputSpec, load_engine

    engine = load_engine(path)
    import torch

    spec = InputSpec.of({name: shape for name, (shape, _) in engine.inputs.items()})
    return engine, spec, torch.cuda.get_device_name()


def _labels(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        text = read_text(path, most_bytes=_MOST_LABELS_BYTES)
    except UsageError as error:
        raise UsageError(f"--labels {path}: cannot be read as text ({str(error).removeprefix(f'{path}: ')})") from None
    return [line.strip() for line in text.split("\n") if line.strip()]
