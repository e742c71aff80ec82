"""How large a layer's box is: height hints at the resolution of its input, width at its output channels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerfold.graph.description import Layer
    from layerfold.graph.network import Network

MAX_BOX_HEIGHT = 58.0
MIN_BOX_HEIGHT = 17.0
MIN_BOX_WIDTH = 21.0
MAX_BOX_WIDTH = 38.0
_SHORT_KINDS = {"norm": "BN", "scale": "×", "slice": "slice", "add": "+"}


class BoxSizes:
    """Both are on a log scale over one network."""

    def __init__(self, net: Network) -> None:
        channels = [layer.output_shape[0] for layer in net.layers]
        heights = [layer.input_shape[1] for layer in net.layers]
        self._channels = (min(channels, default=1), max(channels, default=1))
        self._heights = (min(heights, default=1), max(heights, default=1))

    def of(self, layer: Layer) -> tuple[float, float]:
        """Return (width, height) of a layer's box."""
        wide = _log_share(layer.output_shape[0], self._channels)
        high = _log_share(layer.input_shape[1], self._heights)
        label_width = 5.6 * len(box_text(layer)) + 5
        return (
            max(MIN_BOX_WIDTH + wide * (MAX_BOX_WIDTH - MIN_BOX_WIDTH), label_width),
            MIN_BOX_HEIGHT + high * (MAX_BOX_HEIGHT - MIN_BOX_HEIGHT),
        )


def box_text(layer: Layer) -> str:
    """Return what stands in a layer's box: its kernel size, or what it is if it is no conv."""
    average = "avg " if layer.kind == "pool" else ""
    return _SHORT_KINDS.get(layer.kind) or average + kernel_size_text(layer.conv.kernel_size)


def kernel_size_text(kernel_size: tuple[int, int]) -> str:
    """Return a kernel size for people, for example ``3×3``."""
    return f"{kernel_size[0]}×{kernel_size[1]}"


def _log_share(value: int, limits: tuple[int, int]) -> float:
    """Return where ``value`` lies between the limits, 0..1, on a log scale."""
    low, high = limits
    return 0.5 if low >= high else math.log(value / low) / math.log(high / low)
