"""Bias correction: rounding its weights does not shift the mean of what a conv gives.

The rounded weights of an output channel, met with the mean of the conv's input, give another mean than the weights
did; the bias takes up the difference (Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias
Correction*, ICCV 2019, section 4.2). The input's mean is that of the float network on the calibration images;
borders are left out of account. Correcting each conv by the difference of its measured means instead, all at once,
overshoots: what a conv inherits from those before it would be corrected in each of them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.options.quantise import QuantiseOptions
from layerfold.quantise.graph import Ranges, output_axis
from layerfold.quantise.observe import Observed
from layerfold.quantise.placement import Placement
from layerfold.quantise.prepare import set_array
from layerfold.quantise.scales import activation_scale, quantised_weight, weight_scales


def correct_biases(
    model: Any, placement: Placement, ranges: Ranges, observed: Mapping[str, Observed], options: QuantiseOptions
) -> None:
    """Change the biases of a prepared model so that rounding its weights shifts no mean.

    Args:
        model: its biases are changed.
        placement: of the model.
        ranges: of its feature maps.
        observed: what these held.
        options: of the quantised form.
    """
    from onnx import numpy_helper

    nodes = [model.graph.node[index] for index in placement.weighted]
    constants = {each.name: each for each in model.graph.initializer}
    for node in nodes:
        if node.op_type == "Conv" and len(node.input) == 2 and node.input[1] in constants:
            _add_bias(model.graph, node, constants)
    num_uses: dict[str, int] = {}
    for node in nodes:
        for name in node.input[2:]:
            num_uses[name] = num_uses.get(name, 0) + 1
    for node in nodes:
        value = placement.same_as.get(node.input[0], node.input[0])
        is_fit = len(node.input) > 2 and num_uses[node.input[2]] == 1
        if not is_fit or node.input[1] not in constants or node.input[2] not in constants or value not in observed:
            continue
        weight = numpy_helper.to_array(constants[node.input[1]])
        bias = numpy_helper.to_array(constants[node.input[2]])
        axis = output_axis(node, weight.ndim)
        scale = activation_scale(value, *ranges[value], symmetric=options.symmetric)
        scales = weight_scales(weight, axis, bits=options.weight_bits, bias=bias, input_scale=float(scale.scale))
        rounded = quantised_weight(weight, scales, axis, bits=options.weight_bits)
        shape = [1] * weight.ndim
        shape[axis] = -1
        lost = np.moveaxis(weight - rounded * scales.reshape(shape).astype(np.float64), axis, 0)
        shift = _mean_outputs(lost, observed[value].channel_mean)
        if shift is not None and shift.size == bias.size:
            set_array(constants[node.input[2]], bias + shift.reshape(bias.shape))


def _add_bias(graph: Any, conv: Any, constants: dict[str, Any]) -> None:
    """Give a conv without a bias one of zeros."""
    name = f"{conv.output[0]}.bias.added"
    constants[name] = graph.initializer.add()
    constants[name].name = name
    set_array(constants[name], np.zeros(constants[conv.input[1]].dims[0]))
    conv.input.append(name)


def _mean_outputs(weight: NDArray[Any], means: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return the mean of each output channel for a constant input; None where channels do not fit.

    Args:
        weight: [out, in of a group, ...].
        means: of each input channel.
    """
    per_input = weight.reshape(weight.shape[0], weight.shape[1], -1).sum(axis=2)
    groups, rest = divmod(means.size, weight.shape[1])
    if rest or groups == 0 or weight.shape[0] % groups:
        return None
    by_group = per_input.reshape(groups, -1, weight.shape[1])
    return np.asarray(np.einsum("goi,gi->go", by_group, means.reshape(groups, -1)).reshape(-1), dtype=np.float64)
