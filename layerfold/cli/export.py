"""``layerfold export``: a network as the files that a program deploys, in float32, float16 or int8."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from layerfold.cli._choices import ENGINE_PRECISIONS, parse_formats
from layerfold.cli._inputs import read_input
from layerfold.cli._options import (
    CLASSES,
    add_batch_argument,
    add_command,
    add_output_arguments,
    add_result_arguments,
    check_output_folder,
    whole,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import Output, check_outputs
from layerfold.cli._quantising import (
    add_quantising_arguments,
    check_nothing_to_quantise,
    note_guessed_preparation,
    open_images,
    prepared_as_asked,
    quantise,
    quantise_options,
    quantised_facts,
    quantised_json,
)
from layerfold.cli._sources import add_weights_arguments, load_model_of, parse_shape
from layerfold.cli._text import facts
from layerfold.cli._trained_int8 import has_ranges, write_trained
from layerfold.errors import UsageError
from layerfold.files import JsonObject

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layerfold.data import ImageData
    from layerfold.export import EngineReport
    from layerfold.merge.files import LoadedForm
    from layerfold.models import LoadedModel

_T = TypeVar("_T")

_SUFFIXES = {"onnx": (".onnx",), "tensorrt": (".onnx", ".engine")}


def add_parser(subparsers: Any) -> None:
    """Add ``export`` to the command line."""
    parser = add_command(
        subparsers,
        "export",
        "write a network as ONNX, in int8 too, or as a TensorRT engine",
        "Write a merged network, or a model, as ONNX, checked in ONNX Runtime against the network itself, and as a "
        "TensorRT engine, checked against the ONNX file where a GPU is. With --precision int8 a float32 network is "
        "quantised with the images of --data, which need no labels, and compared with the float32 one. A JSON file "
        "beside each says what it is and how images become its input.",
        "  layerfold export merged.safetensors -o out/ --precision int8 --data images:photos/\n"
        "  layerfold export merged.safetensors -o out/ --formats onnx,tensorrt --precision float16 \\\n"
        "      --compute-capability 8.6,8.9,12.0\n"
        "  layerfold export quantised.onnx -o out/ --formats tensorrt --precision int8",
    )
    parser.add_argument(
        "merged",
        metavar="NETWORK",
        help="what `layerfold merge` wrote, an ONNX file, or a model: timm:NAME, torchvision:NAME or "
        "path/to/file.py:factory",
    )
    add_output_arguments(parser, "FOLDER", "folder for NAME.onnx and NAME.engine, NAME as of NETWORK")
    parser.add_argument(
        "--formats",
        type=parse_formats,
        default="onnx",
        metavar="NAMES",
        help="onnx, tensorrt, with a comma between (default: %(default)s; ONNX is always written)",
    )
    add_batch_argument(parser)
    parser.add_argument(
        "--precision",
        choices=ENGINE_PRECISIONS,
        default="float32",
        metavar="NAME",
        help="float32 (TF32 off in an engine), float16 (of an engine), or int8: quantised with --data, or of a network "
        "that was trained in int8, or of an ONNX file that is quantised already (default: %(default)s)",
    )
    model = parser.add_argument_group("model", "where NETWORK is a model")
    add_weights_arguments(model, "a .safetensors file, a saved state_dict or a checkpoint (default: random weights)")
    model.add_argument("--num-classes", type=whole(1, CLASSES), metavar="N", help="outputs of the classifier")
    model.add_argument("--input", type=parse_shape, metavar="CxHxW", help="input shape, for example 3x224x224")
    add_quantising_arguments(parser)
    engine = parser.add_argument_group("engine")
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
    folder = Path(args.output)
    check_output_folder(args.output)
    kind = _kind_of(args.merged)
    name = _file_name(args.merged.partition(":")[2]) if kind == "model" else Path(args.merged).stem
    suffixes = sorted({suffix for each in formats for suffix in _SUFFIXES.get(each, ())})
    writes_onnx = kind != "onnx" or _needs_quantising(args)
    check_outputs(
        args,
        *(
            Output(flag="-o", path=folder / f"{name}{suffix}")
            for suffix in suffixes
            if writes_onnx or suffix != ".onnx"
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
    if args.precision != "int8" and args.data is not None:
        raise UsageError(f"--data {args.data}: images are for --precision int8; leave it out, or ask for int8")
    _check_for_models_only(args, kind)
    if args.precision != "int8":
        check_nothing_to_quantise(args, f"--precision {args.precision} quantises nothing")
    if kind == "onnx":
        found = _of_onnx(args, Path(args.merged), folder, formats, options)
    else:
        found = _of_network(args, kind, folder / f"{name}.onnx", formats, options)
    if args.json:
        show_json(found)
    return 0


def _check_for_models_only(args: argparse.Namespace, kind: str) -> None:
    """Refuse flags that say nothing about a file that holds its weights and shapes.

    Raises:
        UsageError: names the first one.
    """
    if kind == "model":
        return
    for name in ("weights", "weights_key", "num_classes", "input"):
        if getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: is for a model, and {args.merged} has its own; leave it out")
    if kind == "onnx" and args.batch != 1:
        raise UsageError(
            f"--batch {args.batch}: {args.merged} is ONNX of fixed shapes; export the network itself with --batch, and "
            "leave it out here"
        )


class _EngineArguments(TypedDict):
    """Arguments that ``export_network`` and ``build_engine`` share."""

    precision: str
    compute_capabilities: tuple[str, ...]
    timing_cache: str | None
    log: str | None


def _kind_of(source: str) -> str:
    """Return what NETWORK is: ``onnx``, ``form`` (a file of ``layerfold merge``) or ``model``."""
    from layerfold.factories import is_factory_source

    if Path(source).suffix == ".onnx":
        return "onnx"
    if source.startswith(("timm:", "torchvision:")) or is_factory_source(source):
        return "model"
    return "form"


def _file_name(model: str) -> str:
    """Return a model's name as that of a file."""
    return "".join(each if each.isalnum() or each in "._-" else "_" for each in model) or "model"


def _needs_quantising(args: argparse.Namespace) -> bool:
    """Say whether NETWORK is an ONNX file in float32 that is to be int8."""
    from layerfold.export.precision import has_quantised_nodes

    if args.precision != "int8":
        return False
    content = read_input(Path(args.merged), "FILE")
    return not _named(args.merged, lambda: has_quantised_nodes(content))


def _named(path: str, question: Callable[[], _T]) -> _T:
    """Return what a function of a file returns; its error names the file."""
    try:
        return question()
    except UsageError as error:
        raise UsageError(f"FILE {path}: {error}") from error


def _of_network(
    args: argparse.Namespace, kind: str, path: Path, formats: tuple[str, ...], options: _EngineArguments
) -> JsonObject:
    """Export a form or a model; in int8 where that is asked."""
    from layerfold.export import export_network
    from layerfold.export.network import check_formats
    from layerfold.graph import example_images

    check_formats(formats)
    is_int8 = args.precision == "int8"
    if is_int8 and args.data is None and kind == "model":
        open_images(args, (), {})  # says that images are missing, before anything is loaded
    loaded: LoadedModel | None
    if kind == "model":
        args.model = args.merged
        loaded = load_model_of(args)
        module, shape, batch_norm = loaded.module.eval(), loaded.input_shape, None
        preprocessing = _preprocessing_of(loaded, shape)
    else:
        form = _form_of(args)
        module, shape, batch_norm = form.module, form.recipe.input_shape, form.batch_norm
        loaded = _loaded_of(form)
        preprocessing = None if loaded is None else _preprocessing_of(loaded, shape)
    preprocessing = prepared_as_asked(args, preprocessing)
    if loaded is not None and preprocessing is not None:
        note_guessed_preparation(args, loaded)
    dtype = next(module.parameters()).dtype
    example = example_images((args.batch, *shape)).to(dtype)
    if is_int8 and args.data is None and has_ranges(module):
        check_nothing_to_quantise(args, f"{args.merged} was trained in int8: its own ranges are taken")
        return {**_trained_int8(args, module, example, path, formats, options, preprocessing), "batch_norm": batch_norm}
    if is_int8:
        from layerfold.export import export_onnx

        data = open_images(args, shape, _said_by(preprocessing, loaded))
        float_bytes = export_onnx(module, example)
        return {
            **_quantised(args, float_bytes, data, path, formats, options, data.preprocessing or preprocessing),
            "batch_norm": batch_norm,
        }
    report = export_network(
        module,
        path.parent,
        formats,
        example_input=example,
        name=path.stem,
        preprocessing=preprocessing,
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
    return {**report.to_json(), "batch_norm": batch_norm}


def _trained_int8(
    args: argparse.Namespace,
    module: nn.Module,
    example: Tensor,
    path: Path,
    formats: tuple[str, ...],
    options: _EngineArguments,
    preprocessing: JsonObject | None,
) -> JsonObject:
    """Write what was trained in int8, and build the engine if asked."""
    from layerfold.export import build_engine

    onnx_bytes, found = write_trained(module, example, path, preprocessing, is_shown=not args.json)
    engine = None
    if "tensorrt" in formats:
        engine = build_engine(onnx_bytes, path.with_suffix(".engine"), preprocessing=preprocessing, **options)
        print(f"wrote {engine.engine_path}", file=sys.stderr)
        if not args.json:
            show(facts(_engine_facts(engine)))
    return {**found, "engine": None if engine is None else engine.to_json()}


def _form_of(args: argparse.Namespace) -> LoadedForm:
    from layerfold.merge import load_form

    form = load_form(Path(args.merged))
    if form.kind != "deploy":
        raise UsageError(f"{args.merged}: is in train form; give it to `layerfold merge` first")
    if form.batch_norm == "original":
        print(
            f"layerfold: note: {args.merged}: its BatchNorm statistics are the original's, and do not fit a network "
            "without its activations; merge it with --data, or finetune it first",
            file=sys.stderr,
        )
    return form


def _of_onnx(
    args: argparse.Namespace, source: Path, folder: Path, formats: tuple[str, ...], options: _EngineArguments
) -> JsonObject:
    """Quantise an ONNX file of any origin, or build an engine from it, or both."""
    from layerfold.export import build_engine
    from layerfold.export.engine_run import read_facts

    stored = read_facts(source).preprocessing
    said = None if stored is None else stored.to_json()
    if _needs_quantising(args):
        from layerfold.quantise.prepare import input_shape_of, prepared

        float_bytes = read_input(source, "FILE")
        shape = _named(str(source), lambda: input_shape_of(prepared(float_bytes)))
        if len(shape) != 4:
            raise UsageError(f"FILE {source}: takes {list(shape)}; images are [batch, channels, height, width]")
        path = folder / f"{source.stem}.onnx"
        data = open_images(args, shape[1:], {**(said or {}), "num_classes": _classes_of(float_bytes)})
        return _quantised(args, float_bytes, data, path, formats, options, data.preprocessing or said)
    if "tensorrt" not in formats:
        what = "quantised already" if args.precision == "int8" else "ONNX already"
        raise UsageError(f"FILE {source}: is {what}; give --formats tensorrt to build an engine from it")
    check_nothing_to_quantise(args, f"{source} is ONNX as it is to be")
    if args.data is not None:
        print(f"layerfold: note: {source}: is quantised already; taken as it is, without --data", file=sys.stderr)
    report = build_engine(read_input(source, "FILE"), folder / f"{source.stem}.engine", preprocessing=said, **options)
    print(f"wrote {report.engine_path}", file=sys.stderr)
    if not args.json:
        show(facts(_engine_facts(report)))
    return {"onnx_path": str(source), "check": None, "engine": report.to_json(), "skipped": {}}


def _classes_of(onnx_bytes: bytes) -> int | None:
    """Return the classes of an ONNX classifier, None where its output is none's."""
    from layerfold.export.precision import read_graph

    sizes = [size.dim_value for size in read_graph(onnx_bytes).output[0].type.tensor_type.shape.dim]
    return sizes[1] if len(sizes) == 2 else None


def _quantised(
    args: argparse.Namespace,
    float_bytes: bytes,
    data: ImageData,
    path: Path,
    formats: tuple[str, ...],
    options: _EngineArguments,
    preprocessing: JsonObject | None,
) -> JsonObject:
    """Quantise, check, write, and build the engine if asked."""
    from layerfold.export import build_engine
    from layerfold.export.engine import write_with_facts

    network, check = quantise(float_bytes, data, quantise_options(args))
    write_with_facts(path, network.onnx_bytes, None if preprocessing is None else {"preprocessing": preprocessing})
    print(f"wrote {path}", file=sys.stderr)
    engine = None
    if "tensorrt" in formats:
        engine = build_engine(network.onnx_bytes, path.with_suffix(".engine"), preprocessing=preprocessing, **options)
        print(f"wrote {engine.engine_path}", file=sys.stderr)
    if not args.json:
        show(facts([*quantised_facts(path, network, check), *_engine_facts(engine)]))
    return {
        "onnx_path": str(path),
        "check": None,
        "quantised": quantised_json(network, check),
        "engine": None if engine is None else engine.to_json(),
        "skipped": {},
    }


def _loaded_of(form: LoadedForm) -> LoadedModel | None:
    """Load the original model that a form was made of; None for a module that has no source."""
    from layerfold.models import load_model

    recipe = form.recipe
    if not recipe.model:
        return None
    return load_model(recipe.model, num_classes=recipe.num_classes, in_channels=recipe.in_channels)


def _said_by(preprocessing: JsonObject | None, loaded: LoadedModel | None) -> JsonObject:
    """Return what is known of how images are prepared, by field of ``DataOptions``."""
    return {**(preprocessing or {}), **({} if loaded is None else {"num_classes": loaded.num_classes})}


def _preprocessing_of(loaded: LoadedModel, shape: tuple[int, int, int]) -> JsonObject | None:
    """Return how images become the network's input, as the original model's source says; None for no images."""
    from layerfold.data.preprocessing import Preprocessing
    from layerfold.export.classify import preprocessing_facts

    if shape[0] not in (1, 3):
        return None
    return preprocessing_facts(
        Preprocessing(
            input_shape=shape,
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
