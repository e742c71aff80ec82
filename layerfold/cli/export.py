"""``layerfold export``: the merged network as the files that a program deploys."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from layerfold.cli._choices import ENGINE_PRECISIONS, parse_formats
from layerfold.cli._inputs import read_input
from layerfold.cli._options import (
    BATCH,
    add_command,
    add_output_arguments,
    add_result_arguments,
    check_output_folder,
    whole,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import Output, check_outputs
from layerfold.cli._text import facts
from layerfold.errors import UsageError
from layerfold.files import JsonObject

if TYPE_CHECKING:
    from layerfold.export import EngineReport
    from layerfold.merge.files import LoadedForm

_SUFFIXES = {"onnx": (".onnx",), "tensorrt": (".onnx", ".engine")}


def add_parser(subparsers: Any) -> None:
    """Add ``export`` to the command line."""
    parser = add_command(
        subparsers,
        "export",
        "write a merged network as ONNX or as a TensorRT engine",
        "Write a merged network as ONNX, checked in ONNX Runtime against the network itself, and as a TensorRT engine, "
        "checked against the ONNX file where a GPU is. A JSON file beside each says what it is and how images become "
        "its input.",
        "  layerfold export merged.safetensors -o out/ --formats onnx,tensorrt --precision float16 \\\n"
        "      --compute-capability 8.6,8.9,12.0\n"
        "  layerfold export quantised.onnx -o out/ --formats tensorrt --precision int8",
    )
    parser.add_argument("merged", metavar="FILE", help="what `layerfold merge` wrote, or an ONNX file for an engine")
    add_output_arguments(parser, "FOLDER", "folder for NAME.onnx and NAME.engine, NAME as of FILE")
    parser.add_argument(
        "--formats",
        type=parse_formats,
        default="onnx",
        metavar="NAMES",
        help="onnx, tensorrt, with a comma between (default: %(default)s; ONNX is always written)",
    )
    parser.add_argument(
        "--batch",
        type=whole(1, BATCH),
        default=1,
        metavar="N",
        help="images in one forward pass (default: %(default)s)",
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--precision",
        choices=ENGINE_PRECISIONS,
        default="float32",
        metavar="NAME",
        help="float32 (TF32 off), float16, or int8 for a quantised ONNX file (default: %(default)s)",
    )
    engine.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="X.Y,...",
        help="GPUs to build the engine for, for example 8.6,8.9,12.0 (default: the builder's choice)",
    )
    engine.add_argument("--timing-cache", metavar="FILE", help="kernel timings of earlier builds, to use and to add to")
    engine.add_argument("--log", metavar="FILE", help="write all that TensorRT says while it builds")
    add_result_arguments(parser, has_progress=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, check, print."""
    formats = args.formats
    capabilities = tuple(part.strip() for text in args.compute_capability for part in text.split(",") if part.strip())
    source, folder = Path(args.merged), Path(args.output)
    check_output_folder(args.output)
    is_onnx = source.suffix == ".onnx"
    suffixes = sorted({suffix for each in formats for suffix in _SUFFIXES.get(each, ())})
    check_outputs(
        args,
        *(
            Output(flag="-o", path=folder / f"{source.stem}{suffix}")
            for suffix in suffixes
            if not (is_onnx and suffix == ".onnx")
        ),
        Output(flag="--log", path=args.log),
        Output(flag="--timing-cache", path=args.timing_cache, is_appended=True),
    )
    options: _EngineArguments = {
        "precision": args.precision,
        "compute_capabilities": capabilities,
        "timing_cache": args.timing_cache,
        "log": args.log,
    }
    export = _engine_of_onnx if is_onnx else _export
    found = export(args, source, folder, formats, options)
    if args.json:
        show_json(found)
    return 0


class _EngineArguments(TypedDict):
    """What ``export_network`` and ``build_engine`` are asked alike."""

    precision: str
    compute_capabilities: tuple[str, ...]
    timing_cache: str | None
    log: str | None


def _export(
    args: argparse.Namespace, source: Path, folder: Path, formats: tuple[str, ...], options: _EngineArguments
) -> JsonObject:
    import torch

    from layerfold.export import export_network
    from layerfold.export.network import check_formats
    from layerfold.export.precision import canonical_precision
    from layerfold.merge import load_form

    check_formats(formats)
    form = load_form(source)
    if form.kind != "deploy":
        raise UsageError(f"{args.merged}: is in train form; give it to `layerfold merge` first")
    if canonical_precision(args.precision) == "int8":
        return _export_int8(args, form, folder, formats, options)
    if form.batch_norm == "original":
        print(
            f"layerfold: note: {args.merged}: its BatchNorm statistics are the original's, and do not fit a network "
            "without its activations; merge it with --data, or finetune it first",
            file=sys.stderr,
        )
    dtype = next(form.module.parameters()).dtype
    example = torch.randn(args.batch, *form.recipe.input_shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    report = export_network(
        form.module,
        folder,
        formats,
        example_input=example,
        name=source.stem,
        preprocessing=_preprocessing_of(form),
        **options,
    )
    print(f"wrote {report.onnx_path}", file=sys.stderr)
    if not args.json:
        show(
            facts(
                [
                    ("ONNX", f"{report.onnx_path}, {report.onnx_path.stat().st_size / 2**20:.1f} MiB"),
                    ("check", f"differs from the network by {report.check.max_rel:.2g} of the largest output"),
                    *_engine_facts(report.engine),
                ]
            )
        )
    return {**report.to_json(), "batch_norm": form.batch_norm}


def _export_int8(
    args: argparse.Namespace, form: LoadedForm, folder: Path, formats: tuple[str, ...], options: _EngineArguments
) -> JsonObject:
    """Write a network that was trained in int8 as a quantised ONNX file, with the ranges that it was trained with."""
    from layerfold.export import build_engine
    from layerfold.export.engine import write_with_facts
    from layerfold.graph import example_images
    from layerfold.merge import ACTIVATION_RANGES
    from layerfold.qat import compare_quantised, quantised_onnx

    if ACTIVATION_RANGES not in form.module.meta:
        raise UsageError(
            "--precision int8: takes a quantised ONNX file (QuantizeLinear, DequantizeLinear), or a network that was "
            "trained in int8 (`layerfold finetune --precision int8`); export ONNX, quantise it, and give that file"
        )
    name, preprocessing = Path(args.merged).stem, _preprocessing_of(form)
    images = example_images((args.batch, *form.recipe.input_shape))
    onnx_bytes = quantised_onnx(form.module, images)
    check = compare_quantised(onnx_bytes, form.module, images)
    onnx_path = folder / f"{name}.onnx"
    write_with_facts(onnx_path, onnx_bytes, None if preprocessing is None else {"preprocessing": preprocessing})
    print(f"wrote {onnx_path}", file=sys.stderr)
    report = None
    if "tensorrt" in formats:
        report = build_engine(onnx_bytes, folder / f"{name}.engine", preprocessing=preprocessing, **options)
    if not args.json:
        size = f"{onnx_path}, {onnx_path.stat().st_size / 2**20:.1f} MiB, int8"
        checked = f"differs from what was trained by {check.max_rel:.2g} of the largest output"
        show(facts([("ONNX", size), ("check", checked), *_engine_facts(report)]))
    return {
        "onnx_path": str(onnx_path),
        "check": asdict(check),
        "engine": report.to_json() if report else None,
        "skipped": {},
        "batch_norm": form.batch_norm,
    }


def _engine_of_onnx(
    args: argparse.Namespace, source: Path, folder: Path, formats: tuple[str, ...], options: _EngineArguments
) -> JsonObject:
    """Build an engine from an ONNX file of any origin."""
    from layerfold.export import build_engine
    from layerfold.export.engine_run import read_facts

    if "tensorrt" not in formats:
        raise UsageError(f"FILE {source}: is ONNX already; give --formats tensorrt to build an engine from it")
    onnx_bytes = read_input(source, "FILE")
    stored = read_facts(source).preprocessing
    report = build_engine(
        onnx_bytes,
        folder / f"{source.stem}.engine",
        preprocessing=None if stored is None else stored.to_json(),
        **options,
    )
    print(f"wrote {report.engine_path}", file=sys.stderr)
    if not args.json:
        show(facts(_engine_facts(report)))
    return {"onnx_path": str(source), "check": None, "engine": report.to_json(), "skipped": {}}


def _preprocessing_of(form: LoadedForm) -> JsonObject | None:
    """Return how images become the network's input, as the original model's source says; None for no images."""
    from layerfold.data.preprocessing import Preprocessing
    from layerfold.export.classify import preprocessing_facts
    from layerfold.models import load_model

    recipe = form.recipe
    if not recipe.model or recipe.input_shape[0] not in (1, 3):
        return None
    loaded = load_model(recipe.model, num_classes=recipe.num_classes, in_channels=recipe.in_channels)
    return preprocessing_facts(
        Preprocessing(
            input_shape=recipe.input_shape,
            mean=loaded.mean,
            std=loaded.std,
            interpolation=loaded.interpolation,
            crop_pct=loaded.crop_pct,
        )
    )


def _engine_facts(engine: EngineReport | None) -> list[tuple[str, object]]:
    if engine is None:
        return []
    check = engine.check
    if check.method == "run":
        checked = f"differs from the ONNX file by {check.max_rel:.2g} of the largest output"
    else:
        checked = f"inputs, outputs, length and version; not run: {check.reason}"
    return [
        (
            "engine",
            f"{engine.engine_path}, {engine.engine_bytes / 2**20:.1f} MiB, {engine.precision}, "
            f"{engine.build_s:.1f} s by {engine.library}",
        ),
        ("built for", ", ".join(engine.compute_capabilities) or "the builder's choice of GPUs"),
        ("engine check", checked),
    ]
