"""``layerfold export``: the merged network as the files that a program deploys."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from layerfold.cli._options import add_command, add_output_arguments, add_result_arguments, check_output, whole
from layerfold.cli._text import facts
from layerfold.errors import UsageError

_SUFFIXES = {"onnx": (".onnx",), "tensorrt": (".onnx", ".engine")}


def add_parser(subparsers: Any) -> None:
    """Add ``export`` to the command line."""
    parser = add_command(
        subparsers, "export", "write a merged network as ONNX or as a TensorRT engine",
        "Write a merged network as ONNX, checked in ONNX Runtime against the network itself, and as a TensorRT engine.",
        "  layerfold export merged.safetensors -o out/ --formats onnx,tensorrt --precision fp16",
    )  # fmt: skip
    parser.add_argument("merged", metavar="FILE", help="what `layerfold merge` wrote")
    add_output_arguments(parser, "FOLDER", "folder for NAME.onnx and NAME.engine, NAME as of FILE")
    parser.add_argument("--formats", default="onnx", metavar="NAMES",
                        help="onnx, tensorrt, with a comma between (default: %(default)s; ONNX is always written)")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32",
                        help="of the engine (default: %(default)s)")
    parser.add_argument("--compute-capability", action="append", default=[], metavar="X.Y",
                        help="GPU to build the engine for, for example 8.9; may be given again (default: any)")
    parser.add_argument("--batch", type=whole(1), default=1, metavar="N",
                        help="images in one forward pass (default: %(default)s)")
    add_result_arguments(parser, has_progress=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, check, print."""
    import torch

    from layerfold.export import export_network
    from layerfold.merge import load_form

    formats = tuple(part.strip() for part in args.formats.split(",") if part.strip()) or ("onnx",)
    folder, name = Path(args.output), Path(args.merged).stem
    if folder.is_file():
        raise UsageError(f"-o {args.output}: is a file, expected a folder")
    for suffix in sorted({suffix for each in formats for suffix in _SUFFIXES.get(each, ())}):
        check_output(folder / f"{name}{suffix}", overwrite=args.overwrite)
    form = load_form(args.merged)
    if form.kind != "deploy":
        raise UsageError(f"{args.merged}: is in train form; give it to `layerfold merge` first")
    dtype = next(form.module.parameters()).dtype
    example = torch.randn(args.batch, *form.recipe.input_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    report = export_network(
        form.module, folder, formats, example_input=example, precision=args.precision,
        compute_capabilities=tuple(args.compute_capability), name=name,
    )  # fmt: skip
    found = report.to_json()
    print(f"wrote {report.onnx_path}", file=sys.stderr)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        engine = None
        if report.engine is not None:
            size_mib = report.engine.engine_bytes / 2**20
            engine = f"{report.engine.engine_path}, {size_mib:.1f} MiB, {report.engine.precision}"
        print(facts([
            ("ONNX", f"{report.onnx_path}, {report.onnx_path.stat().st_size / 2**20:.1f} MiB"),
            ("check", f"differs from the network by {report.check.max_rel:.2g} of the largest output"),
            ("engine", engine),
        ]))
    return 0
