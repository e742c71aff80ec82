"""Ranges of the feature maps that are quantised, read from images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from layerfold.options.quantise import QuantiseOptions
from layerfold.quantise.observe import Array, Observed, observe
from layerfold.quantise.placement import Placement, place
from layerfold.quantise.prepare import prepared
from layerfold.quantise.ranges import range_of


def calibrate(
    onnx_bytes: bytes, batches: Iterable[Array], options: QuantiseOptions | None = None
) -> dict[str, tuple[float, float]]:
    """Return the range of each feature map that :func:`quantise_graph` quantises, from images without labels.

    Args:
        onnx_bytes: a float32 model with fixed shapes and one input.
        batches: float32 images [any number, channels, height, width], prepared as the network takes them.
        options: ``method``, ``percentile``, ``symmetric`` and ``calibration_images`` count here.

    Raises:
        UsageError: as of :func:`quantise_graph`; fewer images than asked for, images of another shape, constant ones, or
            values that are not finite.
    """
    options = options or QuantiseOptions()
    model = prepared(onnx_bytes)
    placement = place(model)
    return ranges_of(placement, observe_model(model, placement, batches, options), options)


def observe_model(
    model: Any, placement: Placement, batches: Iterable[Array], options: QuantiseOptions
) -> dict[str, Observed]:
    """Return what each feature map that gets a range of its own held."""
    own = [name for name in placement.quantised if name not in placement.same_as]
    return observe(model, own, batches, options.calibration_images)


def ranges_of(
    placement: Placement, observed: dict[str, Observed], options: QuantiseOptions
) -> dict[str, tuple[float, float]]:
    """Return the ranges by the method of the options."""
    return {name: range_of(observed[name], options) for name in placement.quantised if name not in placement.same_as}
