"""``layerfold merge``: from the train form to plain convs, exactly."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from layerfold.cli._networks import add_trace_arguments, note_needless, note_random_weights, recipe_of, trace_of
from layerfold.cli._options import (
    CLASSES,
    add_batch_argument,
    add_command,
    add_output_arguments,
    add_result_arguments,
    whole,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._output_files import Output, check_outputs
from layerfold.cli._sources import (
    add_data_arguments,
    add_weights_arguments,
    load_model_of,
    open_data_of,
    parse_shape,
)
from layerfold.cli._text import BATCH_NORM_TEXTS, facts
from layerfold.errors import UsageError
from layerfold.files import JsonObject, as_json, write_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layerfold.graph import Network
    from layerfold.merge import Recipe
    from layerfold.solver import Solution

_NUM_COMPARED = 4


def add_parser(subparsers: Any) -> None:
    """Add ``merge`` to the command line."""
    parser = add_command(
        subparsers,
        "merge",
        "merge a finetuned network into plain convs",
        "Merge each segment of a finetuned network into one conv, in float64, each checked against its segment. Or "
        "merge a model by a solution as it is, without finetuning: with --data its BatchNorm statistics are measured "
        "again first, as `layerfold compress --no-finetune` does.",
        "  layerfold merge finetuned.safetensors -o merged.safetensors --onnx merged.onnx\n"
        "  layerfold merge --model timm:mobilenetv2_100 --weights weights.safetensors --solution solution.json \\\n"
        "      --data folder:images -o merged.safetensors",
    )
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="what `layerfold finetune` wrote")
    group = parser.add_argument_group("without finetuning")
    group.add_argument("--model", metavar="MODEL", help="timm:NAME, torchvision:NAME or path/to/file.py:factory")
    group.add_argument("--solution", metavar="JSON", help="a solution of `layerfold solve`")
    add_weights_arguments(group, "a .safetensors file, a saved state_dict or a checkpoint")
    group.add_argument("--num-classes", type=whole(1, CLASSES), metavar="N", help="outputs of the classifier")
    group.add_argument("--input", type=parse_shape, metavar="CxHxW", help="input shape, for example 3x224x224")
    add_trace_arguments(parser)
    add_data_arguments(parser, required=False)
    group.add_argument(
        "--train-device",
        default="cpu",
        metavar="NAME",
        help="where BatchNorm statistics are measured: cpu, cuda, cuda:1, ... (default: cpu)",
    )
    add_output_arguments(parser, "FILE", "the merged network (.safetensors); how to build it goes to FILE.json")
    parser.add_argument("--onnx", metavar="FILE", help="also as ONNX, checked against the merged network")
    add_batch_argument(parser, " of the ONNX file")
    add_result_arguments(parser, has_progress=False)
    parser.set_defaults(run=run)


@dataclass(frozen=True, kw_only=True)
class _Growth:
    """A merged segment whose conv has more multiply-adds than the layers that it replaces."""

    start: int
    end: int
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class _Merged:
    """Result of the command.

    Attributes:
        output: the file of the form.
        layers_before, layers_after, params_before, params_after: of the network.
        difference: from the train form, relative to the largest output.
        batch_norm: where BatchNorm statistics come from.
        raise_macs: segments that have more multiply-adds than before.
        onnx, onnx_difference: the ONNX file and its difference, if one was asked for.
    """

    output: str
    layers_before: int
    layers_after: int
    params_before: int
    params_after: int
    difference: float
    batch_norm: str
    raise_macs: tuple[_Growth, ...]
    onnx: str | None = None
    onnx_difference: float | None = None

    def to_json(self) -> JsonObject:
        """Return what ``--json`` prints; of an ONNX file only where there is one."""
        found = as_json(asdict(self))
        return {name: value for name, value in found.items() if value is not None}


def run(args: argparse.Namespace) -> int:
    """Merge, compare, write."""
    from layerfold.graph import example_images
    from layerfold.merge import ACTIVATION_RANGES, merge_network, save_form
    from layerfold.pipeline.equality import check_same

    _check_arguments(args)
    made = _train_form(args)
    student, net, recipe, kept = made.student, made.net, made.recipe, made.facts
    merged = merge_network(student)
    dtype = next(student.parameters()).dtype
    example = example_images((args.batch, *recipe.input_shape), dtype=dtype)
    images = example_images((_NUM_COMPARED, *recipe.input_shape)) if made.images is None else made.images
    difference = check_same(merged, student, images.to(dtype), "the merged network and its train form")
    segments = net.segments_in(recipe.solution)
    convs = sum(not segment.is_identity for segment in segments)
    growth = tuple(
        _Growth(start=each.start, end=each.end, before=each.macs_before, after=each.macs_after)
        for each in merged.meta["merged_convs"].values()
        if each.raises_macs
    )
    found = _Merged(
        output=args.output,
        layers_before=len(net.layers),
        layers_after=convs,
        params_before=net.num_params,
        params_after=sum(p.numel() for p in merged.parameters()),
        difference=difference,
        batch_norm=str(kept["batch_norm"]),
        raise_macs=growth,
    )
    if args.onnx is not None:
        from layerfold.export import check_onnx, export_onnx

        if ACTIVATION_RANGES in merged.meta:
            print(
                f"layerfold: note: {args.onnx} is in float32, and the network was trained for int8; `layerfold export "
                "--precision int8` writes it quantised",
                file=sys.stderr,
            )
        onnx_bytes = export_onnx(merged, example)
        fresh = example_images(example.shape, dtype=dtype, seed=1)
        found = replace(found, onnx=args.onnx, onnx_difference=check_onnx(onnx_bytes, merged, fresh).max_rel)
        write_bytes(args.onnx, onnx_bytes)
        print(f"wrote {args.onnx}", file=sys.stderr)
    save_form(merged, args.output, kind="deploy", recipe=recipe, facts={**kept, "merge": found.to_json()})
    print(f"wrote {args.output}", file=sys.stderr)
    if args.json:
        show_json(found.to_json())
    else:
        show(_as_text(found))
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    check_outputs(
        args,
        Output(flag="-o", path=args.output, suffixes=(".safetensors",), has_sidecar=True),
        Output(flag="--onnx", path=args.onnx, suffixes=(".onnx",)),
    )
    if (args.checkpoint is None) == (args.model is None):
        raise UsageError("give a checkpoint of `layerfold finetune`, or --model and --solution; one of the two")
    if args.model is not None and args.solution is None:
        raise UsageError(f"--model {args.model}: say what to merge with --solution solution.json")
    if args.checkpoint is not None:
        model_only = ("solution", "weights", "weights_key", "num_classes", "input", "exclude", "merge_pooling", "data")
        given = [name for name in model_only if getattr(args, name)]
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise UsageError(f"{flag}: goes with --model only; the checkpoint {args.checkpoint} says it itself")


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A train form: what it belongs to, the facts kept with it, and images of the data, where there are any."""

    student: nn.Module
    net: Network
    recipe: Recipe
    facts: JsonObject
    images: Tensor | None = None


def _train_form(args: argparse.Namespace) -> _Made:
    from layerfold.finetune import NO_BATCH_NORM, ORIGINAL, RECALIBRATED, check_device, has_batch_norm
    from layerfold.finetune import recalibrate_batch_norm as recalibrate
    from layerfold.graph import example_images
    from layerfold.graph.alone import check_alone
    from layerfold.merge import build_train_form, load_form
    from layerfold.pipeline.equality import probe_images
    from layerfold.solver import Solution

    if args.checkpoint is not None:
        form = load_form(args.checkpoint)
        if form.kind != "train":
            raise UsageError(f"{args.checkpoint}: is merged already; give it to `layerfold export`")
        check_alone(form.module, example_images((2, *form.recipe.input_shape)))
        return _Made(
            student=form.module, net=form.net, recipe=form.recipe, facts={**form.facts, "batch_norm": form.batch_norm}
        )
    check_device(args.train_device)
    solution = Solution.read(args.solution)
    loaded = load_model_of(args)
    data = None if args.data is None else open_data_of(args, loaded)
    note_random_weights(args)
    net = trace_of(args, loaded)
    note_needless(net, solution)
    student = build_train_form(loaded.module, net, solution).eval()
    kept: JsonObject = {"original_weights_sha256": loaded.weights_sha256, "batch_norm": ORIGINAL}
    if not has_batch_norm(student):
        kept["batch_norm"] = NO_BATCH_NORM
    elif data is not None:
        recalibrate(student.to(args.train_device), data, batch_size=args.batch_size)
        student.to("cpu")
        kept |= {"batch_norm": RECALIBRATED, "data": data.describe()}
    elif _changes(net, solution):
        print(
            "layerfold: note: BatchNorm statistics are the original's, and do not fit a network without its "
            "activations; give --data to measure them again, or finetune first (`layerfold finetune`)",
            file=sys.stderr,
        )
    return _Made(
        student=student,
        net=net,
        recipe=recipe_of(args, loaded, net, solution),
        facts=kept,
        images=None if data is None else probe_images(data),
    )


def _changes(net: Network, solution: Solution) -> bool:
    """Say whether a solution makes another function of the network: activations go, or padding moves."""
    ends = {chain.end for chain in net.chains}
    is_whole = set(solution.act_pos) - ends == set(net.original_act_pos) - ends
    return not is_whole or len(set(solution.merge_pos) | ends) != len(net.layers)


def _as_text(found: _Merged) -> str:
    from layerfold.report.words import count_text

    onnx = None
    if found.onnx_difference is not None:
        onnx = f"differs by {found.onnx_difference:.2g} of the largest output"
    return facts(
        [
            ("layers", f"{found.layers_before} -> {found.layers_after}"),
            ("parameters", f"{count_text(found.params_before)} -> {count_text(found.params_after)}"),
            ("train form", f"differs by {found.difference:.2g} of the largest output"),
            ("BatchNorm", BATCH_NORM_TEXTS.get(found.batch_norm)),
            ("ONNX", onnx),
            ("more work", ", ".join(_growth_text(each) for each in found.raise_macs) or None),
        ]
    )


def _growth_text(each: _Growth) -> str:
    """Say of a merged segment by how much it raises the multiply-adds: whether it is slower, measuring tells."""
    from layerfold.report.words import count_text

    return f"layers {each.start + 1}..{each.end} ({count_text(each.before)} -> {count_text(each.after)})"
