"""Quantisation after training, whole: calibration, equalisation, bias correction, and whether each of them helps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerfold.errors import UsageError
from layerfold.options.quantise import QuantiseOptions
from layerfold.quantise.bias import correct_biases
from layerfold.quantise.calibration import ranges_of
from layerfold.quantise.equalise import equalise
from layerfold.quantise.graph import quantised_model
from layerfold.quantise.observe import Array, Observed, Runner, observe, regrouped
from layerfold.quantise.placement import Placement, place
from layerfold.quantise.prepare import input_shape_of, prepared
from layerfold.settings import takes_settings

_SCORED = 64  # images on which forms are compared and biases corrected


@dataclass(frozen=True, kw_only=True)
class QuantisedNetwork:
    """A quantised network, and how it came about.

    Attributes:
        onnx_bytes: the QDQ model.
        num_images: that it was calibrated on.
        equalised_pairs: pairs of convs between which channels were evened out; 0 where that did not help.
        is_bias_corrected: whether biases were corrected; where that did not help they were not.
        relative_error: of its outputs on calibration images: root of the mean square difference from the float
            network's outputs, relative to the root of their mean square.
    """

    onnx_bytes: bytes
    num_images: int
    equalised_pairs: int
    is_bias_corrected: bool
    relative_error: float


@takes_settings(options=QuantiseOptions)
def quantise_network(
    onnx_bytes: bytes, batches: Iterable[Any], options: QuantiseOptions | None = None, **settings: Any
) -> bytes:
    """Return a trained float32 network in int8, as one ONNX model in QDQ form, calibrated on images without labels.

    Weights get a scale per output channel, feature maps one per tensor; logits of a matrix product stay float32. ONNX
    Runtime and OpenVINO compute the result in integers; :func:`layerfold.export.build_engine` builds TensorRT engines
    from it.

    Args:
        onnx_bytes: a float32 model with fixed shapes and one input, as ``lf.export_network`` writes it.
        batches: images [any number, channels, height, width], arrays or tensors, prepared as the network takes them;
            (images, labels) pairs too.
        options, settings: see :class:`QuantiseOptions`; a setting given by name takes the place of that of ``options``.

    Raises:
        UsageError: no float32 model of fixed shapes, one that is quantised already or holds nothing to quantise; fewer
            images than asked for, of another shape, constant, or not finite.
        OptionalDependencyError: onnxruntime is not installed.

    Example:
        >>> from pathlib import Path
        >>> onnx_bytes = Path("original.onnx").read_bytes()
        >>> quantised = lf.quantise_network(onnx_bytes, data.loader("train", batch_size=8), calibration_images=16)
        >>> len(quantised) > 0
        True
    """
    return quantised_network(onnx_bytes, batches, options or QuantiseOptions()).onnx_bytes


def quantised_network(onnx_bytes: bytes, batches: Iterable[Any], options: QuantiseOptions) -> QuantisedNetwork:
    """Return what :func:`quantise_network` returns, with how it came about."""
    model = prepared(onnx_bytes)
    placement = place(model)
    if not placement.weighted:
        raise UsageError("this network holds nothing to quantise: no conv and no matrix product with constant weights")
    images = list(regrouped(batches, input_shape_of(model), options.images_wanted, options.images_at_most))
    scored = _first(images, _SCORED)
    expected = outputs_of(model, scored)
    own = [name for name in placement.quantised if name not in placement.same_as]
    observed = observe(model, own, images)
    found = _best_biases(model, placement, observed, scored, expected, options)
    pairs = 0
    if options.equalisation:
        evened = prepared(onnx_bytes)
        changed = equalise(evened, placement, observed)
        if changed:
            other = _best_biases(evened, placement, observe(evened, own, images), scored, expected, options)
            if other[0] < found[0]:
                found, pairs = other, changed
    error, is_corrected, quantised = found
    return QuantisedNetwork(
        onnx_bytes=quantised,
        num_images=sum(map(len, images)),
        equalised_pairs=pairs,
        is_bias_corrected=is_corrected,
        relative_error=error,
    )


def _best_biases(
    model: Any,
    placement: Placement,
    observed: dict[str, Observed],
    scored: list[Array],
    expected: Array,
    options: QuantiseOptions,
) -> tuple[float, bool, bytes]:
    """Return the error, whether biases are corrected, and the quantised model, of the better of the two."""
    ranges = ranges_of(placement, observed, options)
    quantised = quantised_model(model, ranges, options)
    found = (relative_error(outputs_of(quantised, scored), expected), False, quantised)
    if options.bias_correction:
        correct_biases(model, placement, ranges, observed, options)
        quantised = quantised_model(model, ranges, options)
        found = min(found, (relative_error(outputs_of(quantised, scored), expected), True, quantised))
    return found


def outputs_of(model: Any, batches: Iterable[Array]) -> Array:
    """Return the first output of a model for images, [images, ...]."""
    return np.concatenate([values[0] for _, values in Runner(model).run(batches)])


def relative_error(outputs: Array, expected: Array) -> float:
    """Return the root of the mean square difference, relative to the root of the expected values' mean square."""
    wide = expected.astype(np.float64)
    size = float(np.sqrt(np.mean(wide**2)))
    return float(np.sqrt(np.mean((outputs - wide) ** 2))) / max(size, 1e-30)


def _first(images: list[Array], most: int) -> list[Array]:
    """Return the first batches, of ``most`` images or a few more."""
    found: list[Array] = []
    for batch in images:
        if sum(map(len, found)) >= most:
            break
        found.append(batch)
    return found
