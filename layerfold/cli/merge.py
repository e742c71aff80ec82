"""``layerfold merge``: from the train form to plain convs, exactly."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from layerfold.cli._networks import add_trace_arguments, note_random_weights, recipe_of, trace_of
from layerfold.cli._options import (
    BATCH,
    CLASSES,
    add_command,
    add_output_arguments,
    add_result_arguments,
    check_output,
    whole,
)
from layerfold.cli._output import show, show_json
from layerfold.cli._sources import add_weights_arguments, load_model_of, parse_shape
from layerfold.cli._text import facts
from layerfold.errors import UsageError
from layerfold.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layerfold.graph import Network
    from layerfold.merge import Recipe


def add_parser(subparsers: Any) -> None:
    """Add ``merge`` to the command line."""
    parser = add_command(
        subparsers, "merge", "merge a finetuned network into plain convs",
        "Merge each segment of a finetuned network into one conv, in float64, each checked against its segment. Or "
        "merge a model by a solution as it is, without finetuning.",
        "  layerfold merge finetuned.safetensors -o merged.safetensors --onnx merged.onnx\n"
        "  layerfold merge --model timm:mobilenetv2_100 --weights weights.safetensors --solution solution.json \\\n"
        "      -o merged.safetensors",
    )  # fmt: skip
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="what `layerfold finetune` wrote")
    group = parser.add_argument_group("without finetuning")
    group.add_argument("--model", metavar="MODEL", help="timm:NAME, torchvision:NAME or path/to/file.py:factory")
    group.add_argument("--solution", metavar="JSON", help="a solution of `layerfold solve`")
    add_weights_arguments(group, "a .safetensors file, a saved state_dict or a checkpoint")
    group.add_argument("--num-classes", type=whole(1, CLASSES), metavar="N", help="outputs of the classifier")
    group.add_argument("--input", type=parse_shape, metavar="CxHxW", help="input shape, for example 3x224x224")
    add_trace_arguments(parser)
    add_output_arguments(parser, "FILE", "the merged network (.safetensors); how to build it goes to FILE.json")
    parser.add_argument("--onnx", metavar="FILE", help="also as ONNX, checked against the merged network")
    parser.add_argument("--batch", type=whole(1, BATCH), default=1, metavar="N",
                        help="images in one forward pass of the ONNX file (default: %(default)s)")
    add_result_arguments(parser, has_progress=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Merge, compare, write."""
    from layerfold.graph.dropping import dropped_layers
    from layerfold.merge import merge_network, save_form

    _check_arguments(args)
    student, net, recipe, kept = _train_form(args)
    merged = merge_network(student)
    example = _random_images(recipe, args.batch)
    difference = _difference(student, merged, example)
    segments = net.segments_of(recipe.solution.merge_pos, dropped_layers(net, recipe.solution.kept_layers))
    convs = sum(not segment.is_identity for segment in segments)
    found: dict[str, Any] = {
        "output": args.output, "layers_before": len(net.layers), "layers_after": convs,
        "params_before": net.num_params, "params_after": sum(p.numel() for p in merged.parameters()),
        "difference": difference,
        "raise_macs": [
            {"start": each.start, "end": each.end, "before": each.macs_before, "after": each.macs_after}
            for each in merged.meta["merged_convs"].values() if each.raises_macs
        ],
    }  # fmt: skip
    if args.onnx is not None:
        from layerfold.export import check_onnx, export_onnx

        onnx_bytes = export_onnx(merged, example)
        found["onnx"] = args.onnx
        found["onnx_difference"] = check_onnx(onnx_bytes, merged, _random_images(recipe, args.batch, seed=1)).max_rel
        write_bytes(args.onnx, onnx_bytes)
        print(f"wrote {args.onnx}", file=sys.stderr)
    save_form(merged, args.output, kind="deploy", recipe=recipe, facts={**kept, "merge": found})
    print(f"wrote {args.output}", file=sys.stderr)
    if args.json:
        show_json(found)
    else:
        show(_as_text(found))
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    check_output(args.output, suffix=".safetensors", overwrite=args.overwrite)
    check_output(args.onnx, flag="--onnx", suffix=".onnx", overwrite=args.overwrite)
    if (args.checkpoint is None) == (args.model is None):
        raise UsageError("give a checkpoint of `layerfold finetune`, or --model and --solution; one of the two")
    if args.model is not None and args.solution is None:
        raise UsageError(f"--model {args.model}: say what to merge with --solution solution.json")
    if args.checkpoint is not None:
        model_only = ("solution", "weights", "weights_key", "num_classes", "input", "exclude", "merge_pooling")
        given = [name for name in model_only if getattr(args, name)]
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise UsageError(f"{flag}: goes with --model only; the checkpoint {args.checkpoint} says it itself")


def _train_form(args: argparse.Namespace) -> tuple[nn.Module, Network, Recipe, dict[str, Any]]:
    """Return the train form, the network it belongs to, its recipe and the facts kept with it."""
    from layerfold.merge import build_train_form, load_form
    from layerfold.solver import Solution

    if args.checkpoint is not None:
        form = load_form(args.checkpoint)
        if form.kind != "train":
            raise UsageError(f"{args.checkpoint}: is merged already; give it to `layerfold export`")
        return form.module, form.net, form.recipe, form.facts
    solution = Solution.read(args.solution)
    loaded = load_model_of(args)
    note_random_weights(args)
    net = trace_of(args, loaded)
    student = build_train_form(loaded.module, net, solution).eval()
    kept = {"original_weights_sha256": loaded.weights_sha256}
    return student, net, recipe_of(args, loaded, solution), kept


def _random_images(recipe: Recipe, batch: int, seed: int = 0) -> Tensor:
    import torch

    return torch.randn(batch, *recipe.input_shape, generator=torch.Generator().manual_seed(seed))


def _difference(student: nn.Module, merged: nn.Module, images: Tensor) -> float:
    """Return the largest difference of the outputs, relative to the largest output."""
    import torch

    with torch.no_grad():
        images = images.to(next(student.parameters()).dtype)
        expected, got = student(images), merged(images)
    return float((expected - got).abs().max() / expected.abs().max().clamp_min(1e-30))


def _as_text(found: dict[str, Any]) -> str:
    from layerfold.report.words import count_text

    onnx = f"differs by {found['onnx_difference']:.2g} of the largest output" if "onnx" in found else None
    return facts([
        ("layers", f"{found['layers_before']} -> {found['layers_after']}"),
        ("parameters", f"{count_text(found['params_before'])} -> {count_text(found['params_after'])}"),
        ("train form", f"differs by {found['difference']:.2g} of the largest output"),
        ("ONNX", onnx),
        ("more work", ", ".join(_growth_text(each) for each in found["raise_macs"]) or None),
    ])


def _growth_text(each: dict[str, int]) -> str:
    """Say of a merged segment by how much it raises the multiply-adds: whether it is slower, measuring tells."""
    from layerfold.report.words import count_text

    return f"layers {each['start'] + 1}..{each['end']} ({count_text(each['before'])} -> {count_text(each['after'])})"
