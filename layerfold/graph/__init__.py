"""The network as layers, chains, residuals and barriers; read with torch.fx, described without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerfold.graph.description import Barrier, Chain, Layer, Residual, Segment
from layerfold.graph.network import Network
from layerfold.graph.specs import ActivationSpec, ConvSpec

if TYPE_CHECKING:
    from layerfold.graph.examples import example_images
    from layerfold.graph.norms import layer_norms
    from layerfold.graph.same_function import check_same_function
    from layerfold.graph.trace import trace_again, trace_network

__all__ = [
    "ActivationSpec",
    "Barrier",
    "Chain",
    "ConvSpec",
    "Layer",
    "Network",
    "Residual",
    "Segment",
    "check_same_function",
    "example_images",
    "layer_norms",
    "trace_again",
    "trace_network",
]


def __getattr__(name: str) -> Any:
    # Tracing needs torch; the words do not, and the solver's command line must start without it.
    if name in ("trace_again", "trace_network"):
        from layerfold.graph import trace

        return getattr(trace, name)
    if name == "layer_norms":
        from layerfold.graph.norms import layer_norms

        return layer_norms
    if name == "example_images":
        from layerfold.graph.examples import example_images

        return example_images
    if name == "check_same_function":
        from layerfold.graph.same_function import check_same_function

        return check_same_function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
