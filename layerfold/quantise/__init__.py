"""Quantise networks after training: float32 ONNX graphs to int8 ones. Works on ONNX alone, without torch."""

from __future__ import annotations

from layerfold.quantise.calibration import calibrate
from layerfold.quantise.check import QuantisedCheck, check_quantised
from layerfold.quantise.graph import quantise_graph
from layerfold.quantise.network import QuantisedNetwork, quantise_network, quantised_network
from layerfold.quantise.symmetric import symmetric_form

__all__ = [
    "QuantisedCheck",
    "QuantisedNetwork",
    "calibrate",
    "check_quantised",
    "quantise_graph",
    "quantise_network",
    "quantised_network",
    "symmetric_form",
]
