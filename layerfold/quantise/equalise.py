"""Equalisation across channels: the channels of a feature map share its one scale better when they are of a size.

Channel c of a conv's output is multiplied by t[c], and the weights of the conv behind it that read channel c are
divided by it, which changes no result (Nagel et al., ICCV 2019, section 4.1). The first conv pays nothing: it has a
scale per channel. A depthwise conv behind pays nothing either; a dense one has less even rows, so that half is
evened out (as SmoothQuant does, Xiao et al. 2023). A bounded activation between them cuts each channel where it
did: one that it cuts keeps its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.quantise.graph import cut_bounds
from layerfold.quantise.observe import Observed
from layerfold.quantise.placement import Placement
from layerfold.quantise.prepare import count_readers, set_array

_MOST_FACTOR = 32.0
_HEADROOM = 0.9  # of a bounded activation's end, that a channel may fill: other images may reach further


def equalise(model: Any, placement: Placement, observed: Mapping[str, Observed]) -> int:
    """Even out the channels between convs in a prepared model; return between how many pairs.

    Args:
        model: its weights and biases are changed.
        placement: of the model.
        observed: what its feature maps held.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {each.name: each for each in graph.initializer}
    readers = count_readers(graph)
    makers = {node.output[0]: node for node in graph.node if node.output}
    convs = [node for index in placement.weighted if (node := graph.node[index]).op_type == "Conv"]
    changed = 0
    for second in convs:
        value = second.input[0]
        maker = makers.get(value)
        cut = (-np.inf, np.inf)
        if maker is not None and value in placement.cut_by:
            cut, maker = cut_bounds(maker, constants), makers.get(maker.input[0])
        if (
            maker is None
            or maker.op_type != "Conv"
            or readers[value] != 1
            or cut[0] not in (0.0, -np.inf)
            or np.isnan(cut[1])
            or value not in observed
            or any(name not in constants or readers[name] != 1 for name in (*maker.input[1:], second.input[1]))
        ):
            continue
        first_weight = numpy_helper.to_array(constants[maker.input[1]])
        second_weight = numpy_helper.to_array(constants[second.input[1]])
        groups = next((each.i for each in second.attribute if each.name == "group"), 1)
        factors = _factors(observed[value], second_weight, groups, cut)
        if factors is None:
            continue
        set_array(constants[maker.input[1]], first_weight * factors.reshape(-1, *(1 for _ in first_weight.shape[1:])))
        if len(maker.input) > 2:
            bias = constants[maker.input[2]]
            set_array(bias, numpy_helper.to_array(bias) * factors)
        shape = second_weight.shape
        by_group = second_weight.reshape(groups, shape[0] // groups, *shape[1:])
        divided = by_group / factors.reshape(groups, 1, shape[1], *(1 for _ in shape[2:]))
        set_array(constants[second.input[1]], divided.reshape(shape))
        changed += 1
    return changed


def _factors(
    observed: Observed, weight: NDArray[Any], groups: int, cut: tuple[float, float]
) -> NDArray[np.float64] | None:
    """Return what each channel is multiplied by; None where nothing is to be evened out."""
    sizes = np.maximum(np.abs(observed.channel_low), np.abs(observed.channel_high)).astype(np.float64)
    channels = weight.shape[1] * groups
    if sizes.size != channels or not sizes.max(initial=0.0) > 0:
        return None
    most = sizes.max()
    with np.errstate(divide="ignore"):
        even = np.minimum(most / np.maximum(sizes, 1e-30), _MOST_FACTOR)
    if weight.shape[1] > 1:  # each row reads several channels
        columns = np.abs(weight).reshape(groups, -1, weight.shape[1], *weight.shape[2:])
        columns = columns.max(axis=(1, *range(3, columns.ndim))).reshape(-1).astype(np.float64)
        ratio = np.sqrt(columns * most / np.maximum(sizes * columns.max(initial=1e-30), 1e-30))
        even = np.clip(ratio, 1.0, even)
    if np.isfinite(cut[1]):
        even = np.where(
            sizes < _HEADROOM * cut[1], np.minimum(even, _HEADROOM * cut[1] / np.maximum(sizes, 1e-30)), 1.0
        )
        even = np.maximum(even, 1.0)
    return even if even.max() > 1.01 else None
