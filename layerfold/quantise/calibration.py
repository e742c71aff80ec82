"""Ranges of the feature maps that are quantised, read from images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from layerfold.options.quantise import QuantiseOptions
from layerfold.quantise.observe import Observed, observe, regrouped
from layerfold.quantise.placement import Placement, place
from layerfold.quantise.prepare import input_shape_of, prepared
from layerfold.quantise.ranges import range_of


def calibrate(
    onnx_bytes: bytes, batches: Iterable[Any], options: QuantiseOptions | None = None
) -> dict[str, tuple[float, float]]:
    """Return the range of each feature map that :func:`quantise_graph` quantises, from images without labels.

    Args:
        onnx_bytes: a float32 model with fixed shapes and one input.
        batches: float32 images [any number, channels, height, width], prepared as the network takes them.
        options: ``method``, ``percentile``, ``symmetric`` and ``calibration_images`` count here.

    Raises:
        UsageError: as of :func:`quantise_graph`; fewer images than asked for, images of another shape,
            constant ones, or values that are not finite.
    """
    options = options or QuantiseOptions()
    model = prepared(onnx_bytes)
    placement = place(model)
    own = [name for name in placement.quantised if name not in placement.same_as]
    images = regrouped(batches, input_shape_of(model), options.images_wanted, options.images_at_most)
    return ranges_of(placement, observe(model, own, images), options)


def ranges_of(
    placement: Placement, observed: dict[str, Observed], options: QuantiseOptions
) -> dict[str, tuple[float, float]]:
    """Return the ranges by the method of the options."""
    return {name: range_of(observed[name], options) for name in placement.quantised if name not in placement.same_as}
