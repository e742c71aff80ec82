"""The quantised ONNX file of a network that was trained in int8: with exactly the ranges that it was trained with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from torch import Tensor, fx, nn

from layerfold.errors import UsageError
from layerfold.export import OnnxCheck, check_onnx, export_onnx
from layerfold.merge import ACTIVATION_RANGES, merge_network
from layerfold.merge.segment import TrainSegment
from layerfold.modules import public_call
from layerfold.qat._places import Place, find_places
from layerfold.qat._rounded import Ranges, node_of_group, rounded_network, set_ranges
from layerfold.quantise import quantise_graph


@public_call
def quantised_onnx(deploy: nn.Module, example_input: Tensor) -> bytes:
    """Return a network that was trained in int8 as one ONNX file with QuantizeLinear and DequantizeLinear nodes.

    Args:
        deploy: in deploy form, its ranges in ``meta`` as :func:`layerfold.finetune_network` leaves them.
        example_input: [N, C, H, W]; fixes every shape.

    Raises:
        UsageError: it was not trained in int8, or its ranges belong to another network.

    Example:
        >>> from layerfold.qat import quantised_onnx
        >>> form = lf.build_train_form(model, net, solution)
        >>> report = lf.finetune_network(form, data, precision="int8", epochs=1, batch_size=16, progress=False)
        >>> file = quantised_onnx(lf.merge_network(form), torch.zeros(1, 3, 8, 8))
        >>> b"QuantizeLinear" in file
        True
    """
    ranges = kept_ranges(deploy)
    assert isinstance(deploy, fx.GraphModule)
    if any(isinstance(part, TrainSegment) for part in deploy.modules()):
        raise UsageError("deploy: is in train form; merge it first (merge_network)")
    places = places_of_form(deploy)
    return quantise_graph(export_onnx(deploy, example_input), ranges=_by_tensor(places, ranges))


@public_call
def fake_quantised(form: nn.Module) -> fx.GraphModule:
    """Return a network that computes in float32 what its quantised ONNX file computes; it shares its parameters.

    Args:
        form: a train or deploy form that was trained in int8; on the CPU.

    Raises:
        UsageError: it was not trained in int8, or its ranges belong to another network.

    Example:
        >>> from layerfold.qat import fake_quantised
        >>> form = lf.build_train_form(model, net, solution)
        >>> report = lf.finetune_network(form, data, precision="int8", epochs=1, batch_size=16, progress=False)
        >>> fake_quantised(form)(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 2])
    """
    ranges = kept_ranges(form)
    assert isinstance(form, fx.GraphModule)
    places = places_of_form(form)
    _by_tensor(places, ranges)
    module = rounded_network(form, places)
    set_ranges(module, ranges)
    return module.eval()


def compare_quantised(onnx_bytes: bytes, deploy: nn.Module, images: Tensor) -> OnnxCheck:
    """Return how far a quantised file's outputs are from what was trained, both on a CPU.

    A value that lies between two steps may be rounded either way by two runtimes, and what follows goes on from there:
    a difference of a step or two of the feature maps is no mistake. One of many steps is, or a processor that adds up
    products of eight bits in sixteen (x86 without VNNI).

    Args:
        onnx_bytes: of :func:`quantised_onnx`.
        deploy: what it was made from.
        images: [N, C, H, W] as exported.
    """
    return check_onnx(onnx_bytes, fake_quantised(deploy), images, tolerance=math.inf)


def places_of_form(form: fx.GraphModule) -> list[Place]:
    """Return what is rounded when a form, in train form or merged already, is quantised; see :func:`find_places`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its mode: only the structure is wanted
        return find_places(merge_network(form, tolerance=None, cut_borders=False).cpu())


def kept_ranges(form: nn.Module) -> Ranges:
    """Return the ranges that a form was trained with.

    Raises:
        UsageError: it was not trained in int8.
    """
    found: Ranges | None = getattr(form, "meta", {}).get(ACTIVATION_RANGES)
    if found is None:
        raise UsageError(
            "this network was not trained in int8, so that it has no ranges of its own; finetune it with "
            "precision='int8' (--precision int8), or quantise it after training (quantise_network)"
        )
    return found


def check_places(places: Sequence[Place]) -> None:
    """Refuse a network of which feature maps are rounded that training cannot see.

    Raises:
        UsageError: names the first.
    """
    for place in places:
        if node_of_group(place.group, places) is None and not _is_bounded(place):
            raise UsageError(
                f"precision='int8': the feature map {place.tensor!r} of the exported network lies inside a module that "
                "is traced as a whole, where training cannot round it; train in float32, and quantise after training"
            )


def _is_bounded(place: Place) -> bool:
    return abs(place.low) + abs(place.high) < float("inf")


def _by_tensor(places: Sequence[Place], ranges: Ranges) -> dict[str, tuple[float, float]]:
    check_places(places)
    found = {}
    for place in places:
        node = node_of_group(place.group, places)
        if node is None:
            found[place.tensor] = place.low, place.high
        elif node in ranges:
            found[place.tensor] = ranges[node][0], ranges[node][1]
        else:
            raise UsageError(
                f"activation_ranges: there is none for {node!r}, which is rounded in the quantised network; finetune "
                "it again"
            )
    return found
