"""``layerfold bench``: whole networks against each other, end to end."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerfold.cli._flags import add_flags
from layerfold.cli._inputs import read_input
from layerfold.cli._options import (
    CLASSES,
    add_backend_arguments,
    add_command,
    add_result_arguments,
    open_backend,
    whole,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._sources import parse_shape
from layerfold.cli._text import columns, warn_of_conditions
from layerfold.errors import UsageError
from layerfold.options import BenchmarkOptions

if TYPE_CHECKING:
    from layerfold.profiler import BenchmarkReport


def add_parser(subparsers: Any) -> None:
    """Add ``bench`` to the command line."""
    parser = add_command(
        subparsers,
        "bench",
        "measure whole networks against each other, end to end",
        "Measure whole networks in turns, so that drift of the machine cancels. The first one is the reference.",
        "  layerfold bench original.onnx merged.safetensors --threads 1\n"
        "  layerfold bench timm:mobilenetv2_100 timm:mobilenetv2_050 --input 3x224x224",
    )
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="NETWORK",
        help="an ONNX file, a .safetensors file of `layerfold merge`, or a MODEL (with random weights: "
        "latency does not depend on them)",
    )
    parser.add_argument("--input", type=parse_shape, metavar="CxHxW", help="input shape of a MODEL (default: its own)")
    parser.add_argument(
        "--num-classes", type=whole(1, CLASSES), metavar="N", help="outputs of a MODEL (default: its own)"
    )
    add_backend_arguments(parser)
    add_flags(parser, BenchmarkOptions, "target", "cap_s")
    add_result_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    backend = open_backend(args)  # what is missing shows before torch is loaded
    from layerfold.profiler import benchmark_networks
    from layerfold.profiler.benchmark import warnings_in
    from layerfold.progress import progress_bar

    networks: dict[str, bytes] = {}
    for source in args.networks:
        onnx_bytes = _onnx_of(args, source)
        networks[_fresh_name(_short_name(source), networks)] = onnx_bytes
    _note_other_inputs(networks)
    if backend.precision == "int8":
        _note_quantised(networks)
    with progress_bar(f"bench: {len(networks)} networks in turns", 1, enabled=not args.quiet) as bar:
        report = benchmark_networks(networks, None, backend, target=args.target, cap_s=args.cap_s)
        bar.advance()
    if args.json:
        show_json(report.to_json())
    else:
        show(_as_text(report))
    warn_of_conditions(warnings_in(report.provenance))
    return 0


def _onnx_of(args: argparse.Namespace, source: str) -> bytes:
    """Return a network as ONNX: read, or exported from its form or its model."""
    from layerfold.export import export_onnx
    from layerfold.graph import example_images
    from layerfold.merge import load_form
    from layerfold.models import load_model

    path = Path(source)
    if path.suffix == ".onnx":
        return read_input(source, "NETWORK")
    if path.suffix == ".safetensors":
        form = load_form(path)
        shape = form.recipe.input_shape
        dtype = next(form.module.parameters()).dtype
        return export_onnx(form.module, example_images((args.batch, *shape), dtype=dtype))
    if ":" not in source:
        raise UsageError(
            f"NETWORK {source}: give a .onnx file, a .safetensors file of `layerfold merge`, or a MODEL "
            "such as timm:mobilenetv2_100"
        )
    asked = args.input
    loaded = load_model(source, num_classes=args.num_classes, in_channels=None if asked is None else asked[0])
    return export_onnx(loaded.module, example_images((args.batch, *(asked or loaded.input_shape))))


def _short_name(source: str) -> str:
    path = Path(source)
    return path.stem if path.suffix in (".onnx", ".safetensors") else source


def _fresh_name(name: str, taken: dict[str, bytes]) -> str:
    number = 2
    fresh = name
    while fresh in taken:
        fresh, number = f"{name} ({number})", number + 1
    return fresh


def _note_other_inputs(networks: dict[str, bytes]) -> None:
    """Say so on stderr where networks take inputs of different shapes: ratios then compare unequal work."""
    import onnx

    shapes = {}
    for name, content in networks.items():
        try:
            graph = onnx.load_from_string(content).graph
        except Exception as error:  # protobuf's own errors
            raise UsageError(f"NETWORK {name}: is no ONNX model; write it again") from error
        shapes[name] = [
            "x".join(str(size.dim_value or "?") for size in put.type.tensor_type.shape.dim) for put in graph.input
        ]
    first = next(iter(shapes))
    for name, found in shapes.items():
        if found != shapes[first]:
            print(
                f"layerfold: note: {name} takes {', '.join(found)} and {first} {', '.join(shapes[first])}",
                file=sys.stderr,
            )


def _note_quantised(networks: dict[str, bytes]) -> None:
    """Say on stderr which networks are float32 and timed as they will be once they are quantised."""
    from layerfold.export.precision import has_quantised_nodes

    made = [name for name, content in networks.items() if not has_quantised_nodes(content)]
    if made:
        print(
            f"layerfold: note: {', '.join(made)}: quantised here with constant scales, for the time alone; answers in "
            "int8 need calibrated ones",
            file=sys.stderr,
        )


def _as_text(report: BenchmarkReport) -> str:
    rows = []
    for each in report.networks:
        is_reference = each is report.networks[0]
        rows.append(
            (
                each.name,
                f"{each.median_ms:.4g}",
                f"{each.low_ms:.4g} to {each.high_ms:.4g}",
                f"{each.speedup:.3f}",
                "" if is_reference else f"{1 / each.ratio_high:.3f} to {1 / each.ratio_low:.3f}",
                each.runs,
                "" if each.is_settled else "not settled; give more --cap-s",
            )
        )
    table = columns(
        ("network", "median_ms", "95 % interval", "speedup", "95 % interval", "runs", "note"),
        rows,
        right="median_ms speedup runs",
    )
    return f"{table}\n\n{report.provenance.get('backend')} on {report.provenance.get('device')}"
