"""The quantised ONNX file of a network that was trained in int8: with exactly the ranges that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from layerfold.errors import UsageError
from layerfold.export import export_onnx
from layerfold.merge import ACTIVATION_RANGES
from layerfold.qat._places import Place, find_places
from layerfold.qat._rounded import Ranges, node_of_group, rounded_network, set_ranges
from layerfold.quantise import quantise_graph


def quantised_onnx(deploy: fx.GraphModule, example_input: Tensor) -> bytes:
    """Return a network that was trained in int8 as one ONNX file with QuantizeLinear and DequantizeLinear nodes.

    Args:
        deploy: in deploy form, its ranges in ``meta`` as :func:`layerfold.finetune_network` leaves them.
        example_input: [N, C, H, W]; fixes every shape.

    Raises:
        UsageError: it was not trained in int8, or its ranges belong to another network.
    """
    ranges = kept_ranges(deploy)
    places = find_places(deploy)
    return quantise_graph(export_onnx(deploy, example_input), ranges=_by_tensor(places, ranges))


def fake_quantised(form: fx.GraphModule, deploy: fx.GraphModule) -> fx.GraphModule:
    """Return a network that computes in float32 what its quantised ONNX file computes; it shares its parameters.

    Args:
        form: trained in int8: its ranges are in ``meta``.
        deploy: its deploy form; the form itself where it is one.

    Raises:
        UsageError: it was not trained in int8, or its ranges belong to another network.
    """
    ranges = kept_ranges(form)
    places = find_places(deploy)
    _by_tensor(places, ranges)
    module = rounded_network(form, places)
    set_ranges(module, ranges)
    return module.eval()


def kept_ranges(form: fx.GraphModule) -> Ranges:
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
                f"precision='int8': the feature map {place.tensor!r} of the exported network lies inside a module that is "
                "traced as a whole, where training cannot round it; train in float32, and quantise after training"
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
                f"activation_ranges: there is none for {node!r}, which is rounded in the quantised network; finetune it again"
            )
    return found
