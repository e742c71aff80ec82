"""From train form to deploy form: each segment one conv, every norm folded, checked."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx, nn

from layerfold.errors import EquivalenceError, MergeError
from layerfold.graph.copying import copy_module
from layerfold.graph.linear_modules import PaddedConv2d
from layerfold.graph.specs import ConvSpec
from layerfold.graph.vocabulary import conv_obstacle, is_norm
from layerfold.graph.weights import derives_weight, pads_to_same_size, weights_of
from layerfold.merge.algebra import AffineConv, fold_norm
from layerfold.merge.segment import TrainSegment
from layerfold.modules import public_call

_NAMES_SHOWN = 3
_SETTINGS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True, kw_only=True)
class MergedConv:
    """What one segment of a deploy form became; ``merged.meta["merged_convs"]`` holds them by module name.

    Attributes:
        start, end: the segment.
        conv: the merged conv, zero border taps cut.
        macs_before, macs_after: multiply-adds of one image in its layers, and in the merged conv.
    """

    start: int
    end: int
    conv: ConvSpec
    macs_before: int
    macs_after: int

    @property
    def raises_macs(self) -> bool:
        """Whether merging makes more work: it can still be faster, which only measuring tells."""
        return self.macs_after > self.macs_before


@public_call
def merge_network(student: nn.Module, *, tolerance: float | None = 1e-9, cut_borders: bool = True) -> fx.GraphModule:
    """Return ``student`` in deploy form: one plain conv for each segment, BatchNorm folded. ``student`` is kept.

    Every merged conv is compared with its segment on random input in float64, borders included.

    Args:
        student: what :func:`build_train_form` returned, finetuned or not.
        tolerance: largest difference allowed, relative to the largest output; None leaves the comparison out, where
            only the structure is wanted.
        cut_borders: cut rows and columns of taps that are zero off the merged kernels; without it the structure
            depends on the solution alone, and not on the weights.

    Returns:
        A module whose ``meta["merged_convs"]`` is a dict of :class:`MergedConv` by module name: what each segment
        became, and whether its multiply-adds rose.

    Raises:
        MergeError: ``student`` is not in train form.
        EquivalenceError: a merged conv differs from its segment; names the first.

    Example:
        >>> form = lf.build_train_form(model, net, solution)
        >>> merged = lf.merge_network(form)
        >>> list(merged.meta["merged_convs"])
        ['segment_1_3']
        >>> images = torch.randn(4, 3, 8, 8)
        >>> torch.allclose(merged(images), form(images), atol=1e-5)
        True
    """
    if not isinstance(student, fx.GraphModule):
        raise MergeError(f"student is a {type(student).__name__}; merge_network takes what build_train_form returned")
    _warn_of_training_mode(student)
    merged = copy_module(student).eval()
    modules = dict(merged.named_modules())
    convs: dict[str, MergedConv] = {}
    for node in merged.graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], TrainSegment):
            segment = cast(TrainSegment, modules[node.target])
            name = str(node.target)
            affine, spec = segment.linear_map().as_conv(segment.merged), segment.merged
            if cut_borders:
                affine, spec = cut_zero_borders(affine, spec)
            if tolerance is not None:
                _check_segment(segment, affine, spec, tolerance)
            # A segment of poolings has no weights of its own: it takes the network's dtype and device.
            like = next(
                (each for each in (*segment.parameters(), *merged.parameters()) if each.is_floating_point()),
                affine.bias,
            )
            set_submodule(merged, name, make_conv(spec, affine, like.dtype).to(like.device))
            convs[name] = MergedConv(
                start=segment.start,
                end=segment.end,
                conv=spec,
                macs_before=segment.macs,
                macs_after=spec.macs(segment.input_shape),
            )
    fold_norms(merged)
    merged.delete_all_unused_submodules()
    merged.graph.lint()
    merged.recompile()
    merged.meta["merged_convs"] = convs
    return merged


def _warn_of_training_mode(student: nn.Module) -> None:
    in_training = [name or "the student itself" for name, module in student.named_modules() if module.training]
    if in_training:
        more = f" and {len(in_training) - _NAMES_SHOWN} more" if len(in_training) > _NAMES_SHOWN else ""
        warnings.warn(
            f"in training mode: {', '.join(in_training[:_NAMES_SHOWN])}{more}; it is merged as in eval mode, so call "
            "student.eval() before comparing its outputs with the merged network's",
            stacklevel=3,
        )


def set_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in place of the one of that qualified name."""
    parent, _, own_name = name.rpartition(".")
    setattr(root.get_submodule(parent), own_name, module)


def cut_zero_borders(affine: AffineConv, spec: ConvSpec) -> tuple[AffineConv, ConvSpec]:
    """Cut outer rows and columns of taps that are all zero, as far as the padding allows: the result stays exact.

    Each side gives up as many taps as it has padding, so that the conv still starts and ends where it did.
    """
    weight = affine.weight_OIHW
    kernel, padding = list(spec.kernel_size), [list(sides) for sides in spec.padding]
    for axis in (0, 1):
        is_used = (weight != 0).any(dim=(0, 1)).any(dim=1 - axis)
        used = [int(i) for i in is_used.nonzero()]
        first, last = (used[0], used[-1]) if used else (padding[axis][0], padding[axis][0])
        step = spec.dilation[axis]
        before = min(first, padding[axis][0] // step)
        behind = min(kernel[axis] - 1 - last, padding[axis][1] // step)
        before = min(before, kernel[axis] - 1)
        behind = min(max(behind, 0), kernel[axis] - 1 - before)
        weight = weight.narrow(2 + axis, before, kernel[axis] - before - behind)
        kernel[axis] -= before + behind
        padding[axis] = [padding[axis][0] - before * step, padding[axis][1] - behind * step]
    cut = replace(
        spec,
        kernel_size=(kernel[0], kernel[1]),
        padding=((padding[0][0], padding[0][1]), (padding[1][0], padding[1][1])),
    )
    return AffineConv(weight_OIHW=weight, bias=affine.bias), cut


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


@torch.no_grad()
def fold_norms(module: fx.GraphModule) -> None:
    """Fold, in place, every norm and scale that follows a conv alone, inside chains and outside."""
    modules = dict(module.named_modules())
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    for node in list(module.graph.nodes):
        if node.op != "call_module" or not is_norm(modules[node.target]):
            continue
        source = node.all_input_nodes[0]
        if source.op != "call_module" or conv_obstacle(modules[source.target]) is not None or len(source.users) != 1:
            continue
        name = str(source.target)
        if calls[name] > 1 or calls[str(node.target)] > 1:
            continue
        conv = _plain_copy(cast(nn.Conv2d, modules[name]))
        if conv is None:
            continue
        affine = fold_norm(conv, modules[node.target])
        dtype = conv.weight.dtype
        conv.weight, conv.bias = nn.Parameter(affine.weight_OIHW.to(dtype)), nn.Parameter(affine.bias.to(dtype))
        set_submodule(module, name, conv)
        modules[name] = conv
        node.replace_all_uses_with(source)
        module.graph.erase_node(node)


def _plain_copy(conv: nn.Conv2d) -> nn.Conv2d | None:
    """Return a copy whose weight is its own; None where padding that follows the input's size forbids it."""
    if not derives_weight(conv):
        return copy_module(conv)
    if pads_to_same_size(conv):
        return None
    settings: Any = {name: getattr(conv, name) for name in _SETTINGS}
    plain = nn.Conv2d(**settings, bias=conv.bias is not None, device="meta")
    plain.weight, plain.bias = weights_of(conv)
    return plain.eval()


@torch.no_grad()
def _check_segment(segment: TrainSegment, affine: AffineConv, spec: ConvSpec, tolerance: float) -> None:
    """Compare a segment with its merged conv in float64 on random input of the traced size."""
    reference = copy_module(segment).double().eval()
    device = affine.bias.device
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(1, *_check_shape(segment), dtype=torch.float64, generator=generator).to(device)
    expected = reference(x)
    got = make_conv(spec, affine, torch.float64)(x)
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
