"""From train form to deploy form: each segment one conv, every norm folded, checked."""

from __future__ import annotations

import copy
import warnings
from typing import cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from layerfold.errors import EquivalenceError, MergeError
from layerfold.graph.specs import ConvSpec
from layerfold.graph.vocabulary import conv_obstacle, is_norm
from layerfold.merge.algebra import AffineConv, fold_norm
from layerfold.merge.segment import TrainSegment


class PaddedConv2d(nn.Conv2d):
    """A conv whose zero padding differs between the sides of an axis.

    Attributes:
        sides: (left, right, top, bottom), as ``torch.nn.functional.pad`` takes them.
    """

    sides: tuple[int, int, int, int]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.pad(x, self.sides))


def merge_network(student: nn.Module, *, tolerance: float | None = 1e-9) -> fx.GraphModule:
    """Return ``student`` in deploy form: one plain conv for each segment, BatchNorm folded. ``student`` is kept.

    Every merged conv is compared with its segment on random input in float64, borders included.

    Args:
        student: what :func:`build_train_form` returned, finetuned or not.
        tolerance: largest difference allowed, relative to the largest output; None leaves the comparison out, where
            only the structure is wanted.

    Raises:
        MergeError: ``student`` is not in train form.
        EquivalenceError: a merged conv differs from its segment; names the first.
    """
    if not isinstance(student, fx.GraphModule):
        raise MergeError(
            f"student is a {type(student).__name__}; merge_network takes what build_train_form returned"
        )
    if student.training:
        warnings.warn(
            "the student is in training mode; it is merged as in eval mode, so call student.eval() before comparing "
            "its outputs with the merged network's",
            stacklevel=2,
        )
    merged = copy.deepcopy(student).eval()
    modules = dict(merged.named_modules())
    for node in merged.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], TrainSegment):
            segment = cast(TrainSegment, modules[node.target])
            affine = segment.linear_map().as_conv(segment.merged)
            if tolerance is not None:
                _check_segment(segment, affine, tolerance)
            dtype = next(segment.parameters()).dtype
            parent, _, name = str(node.target).rpartition(".")
            setattr(merged.get_submodule(parent), name, make_conv(segment.merged, affine, dtype))
    fold_norms(merged)
    merged.delete_all_unused_submodules()
    merged.graph.lint()
    merged.recompile()
    return merged


def make_conv(spec: ConvSpec, affine: AffineConv, dtype: torch.dtype) -> nn.Conv2d:
    """Return a conv module of shape ``spec`` with the given numbers."""
    (top, bottom), (left, right) = spec.padding
    is_even = top == bottom and left == right
    conv_class = nn.Conv2d if is_even else PaddedConv2d
    conv = conv_class(
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        stride=spec.stride,
        padding=(top, left) if is_even else 0,
        dilation=spec.dilation,
        groups=spec.groups,
        device="meta",
    )
    if isinstance(conv, PaddedConv2d):
        conv.sides = (left, right, top, bottom)
    conv.weight = nn.Parameter(affine.weight_OIHW.to(dtype))
    conv.bias = nn.Parameter(affine.bias.to(dtype))
    return conv.eval()


def fold_norms(module: fx.GraphModule) -> None:
    """Fold, in place, every norm that follows a conv alone, inside chains and outside."""
    modules = dict(module.named_modules())
    for node in list(module.graph.nodes):
        if node.op != "call_module" or not is_norm(modules[node.target]):
            continue
        source = node.all_input_nodes[0]
        if source.op != "call_module" or conv_obstacle(modules[source.target]) is not None or len(source.users) != 1:
            continue
        if sum(other.target == source.target for other in module.graph.nodes if other.op == "call_module") > 1:
            continue
        conv = copy.deepcopy(cast(nn.Conv2d, modules[source.target]))
        affine = fold_norm(conv, modules[node.target])
        dtype = conv.weight.dtype
        conv.weight, conv.bias = nn.Parameter(affine.weight_OIHW.to(dtype)), nn.Parameter(affine.bias.to(dtype))
        parent, _, name = str(source.target).rpartition(".")
        setattr(module.get_submodule(parent), name, conv)
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)


@torch.no_grad()
def _check_segment(segment: TrainSegment, affine: AffineConv, tolerance: float) -> None:
    """Compare a segment with its merged conv in float64 on random input of the traced size."""
    reference = copy.deepcopy(segment).double().eval()
    device = affine.bias.device
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(1, *_check_shape(segment), dtype=torch.float64, generator=generator).to(device)
    expected = reference(x)
    got = make_conv(segment.merged, affine, torch.float64)(x)
    if expected.shape != got.shape:
        raise EquivalenceError(
            f"segment ({segment.start}, {segment.end}): merged output {tuple(got.shape)}, expected "
            f"{tuple(expected.shape)}; report this model as a bug"
        )
    scale = max(float(expected.abs().max()), 1e-30)
    error = float((expected - got).abs().max()) / scale
    if not error <= tolerance:
        raise EquivalenceError(
            f"segment ({segment.start}, {segment.end}): merged and train form differ by {error:.3g} of the largest "
            f"output, more than {tolerance:g}; its weights may hold NaN or infinity"
        )


def _check_shape(segment: TrainSegment) -> tuple[int, int, int]:
    """Return an input shape, at most the traced one, with an inside and all four borders.

    It differs from the traced size by whole strides: whether two branches give equal sizes may depend on the rest.
    """
    channels, *sizes = segment.input_shape
    spec = segment.merged
    height, width = (
        size - max(size - kernel - 3 * stride, 0) // stride * stride
        for size, kernel, stride in zip(sizes, spec.kernel_size, spec.stride, strict=True)
    )
    return channels, height, width
