"""Quantise networks after training: float32 ONNX graphs to int8 ones. Works on ONNX alone, without torch."""

from __future__ import annotations

from layerfold.quantise.graph import quantise_graph

__all__ = ["quantise_graph"]
