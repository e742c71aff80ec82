"""Quantisation-aware training: networks that round in training what their quantised ONNX file rounds."""

from __future__ import annotations

from layerfold.qat._export import (
    check_places,
    compare_quantised,
    fake_quantised,
    kept_ranges,
    places_of_form,
    quantised_onnx,
)
from layerfold.qat._fake import RoundedFeatureMap
from layerfold.qat._places import Place, find_places
from layerfold.qat._rounded import measure_ranges, ranges_of, rounded_maps, rounded_network, set_ranges

__all__ = [
    "Place",
    "RoundedFeatureMap",
    "check_places",
    "compare_quantised",
    "fake_quantised",
    "find_places",
    "kept_ranges",
    "measure_ranges",
    "places_of_form",
    "quantised_onnx",
    "ranges_of",
    "rounded_maps",
    "rounded_network",
    "set_ranges",
]
