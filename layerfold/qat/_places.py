"""Where a quantised ONNX file rounds feature maps, as nodes of the traced network that it is exported from.

The quantiser decides: each feature map that it rounds in the exported graph is found again in the torch.fx graph by its
values on one made-up image. So nothing here repeats the quantiser's rules, or leans on an exporter's names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from layerfold.errors import OptionalDependencyError, UsageError
from layerfold.export import export_onnx
from layerfold.graph.examples import example_images
from layerfold.quantise.graph import cut_bounds
from layerfold.quantise.placement import place
from layerfold.quantise.prepare import prepared

Array = NDArray[Any]

_TOLERANCE = 1e-3
"""Of the largest value: two runtimes add up in another order."""
_BOUNDED = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "HardSwish": (-0.375, math.inf),
}
_KEEPS_BOUNDS = frozenset(
    {"AveragePool", "Flatten", "GlobalAveragePool", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A feature map that the quantised file rounds.

    Attributes:
        node: of the traced network whose value it is; None where it lies inside one of its modules.
        tensor: its name in the float ONNX graph.
        group: feature maps of one group have one scale: the name of the first one's tensor.
        low, high: what its values cannot leave, since an activation ends there; the file does without that activation
            where the range ends there too.
    """

    node: str | None
    tensor: str
    group: str
    low: float
    high: float


def find_places(deploy: fx.GraphModule, onnx_bytes: bytes | None = None) -> list[Place]:
    """Return the feature maps that are rounded when a network is quantised, in the order of the graph.

    Args:
        deploy: a traced network in deploy form, on the CPU, whose input carries its shape.
        onnx_bytes: its float export for one image; None exports it here.

    Raises:
        UsageError: nothing to quantise.
        OptionalDependencyError: onnx or onnxruntime is not installed.
    """
    image = _example_of(deploy)
    float_bytes = export_onnx(deploy, image) if onnx_bytes is None else onnx_bytes
    model = prepared(float_bytes)
    placement = place(model)
    if not placement.quantised:
        raise UsageError("precision='int8': this network holds nothing to quantise; train it in float32")
    bounds = _bounds(model)
    nodes = _nodes_of(_values_in_onnx(model, placement.quantised, image), _values_in_torch(deploy, image))
    found = []
    for tensor in placement.quantised:
        low, high = bounds.get(tensor, (-math.inf, math.inf))
        group = placement.same_as.get(tensor, tensor)
        found.append(Place(node=nodes.get(tensor), tensor=tensor, group=group, low=low, high=high))
    return found


def _example_of(deploy: fx.GraphModule) -> Tensor:
    shape = next((node.meta.get("shape") for node in deploy.graph.nodes if node.op == "placeholder"), None)
    if shape is None:
        raise UsageError(
            "precision='int8': the network does not remember its input's shape; give what build_train_form, "
            "merge_network or net.graph.on(model) returned"
        )
    return example_images((1, *shape[1:]))


def _bounds(model: Any) -> dict[str, tuple[float, float]]:
    """Return what the values of feature maps cannot leave, of those of which that is known."""
    constants = {each.name: each for each in model.graph.initializer}
    found: dict[str, tuple[float, float]] = {}
    for node in model.graph.node:
        low, high = cut_bounds(node, constants)
        bounds = _BOUNDED.get(node.op_type, (low, high))
        if node.op_type in _KEEPS_BOUNDS:
            bounds = found.get(node.input[0], bounds)
        if not any(math.isnan(each) for each in bounds):
            found |= dict.fromkeys(node.output, bounds)
    return found


def _values_in_onnx(model: Any, names: Iterable[str], image: Tensor) -> dict[str, Array]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise OptionalDependencyError(
            "precision='int8' needs onnx and onnxruntime; run: pip install onnx onnxruntime"
        ) from error
    (put,) = model.graph.input
    wanted = [name for name in names if name != put.name]
    outputs = {each.name for each in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(wanted, {put.name: image.numpy()})
    return {put.name: image.numpy(), **dict(zip(wanted, values, strict=True))}


class _Recorder(fx.Interpreter):
    """Keeps what each node gives: copies, since an activation behind it may work in place."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Array] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            self.found[n.name] = value.detach().numpy().copy()
        return value


def _values_in_torch(deploy: fx.GraphModule, image: Tensor) -> dict[str, Array]:
    recorder = _Recorder(deploy)
    with torch.no_grad():
        recorder.run(image)
    return recorder.found


def _nodes_of(expected: Mapping[str, Array], found: Mapping[str, Array]) -> dict[str, str]:
    """Return, for each tensor, the first node that gives the same values; of the same shape before any other."""
    nodes = {}
    for tensor, value in expected.items():
        same = [name for name, each in found.items() if each.size == value.size and _is_same(each, value)]
        if same:
            nodes[tensor] = next((name for name in same if found[name].shape == value.shape), same[0])
    return nodes


def _is_same(one: Array, other: Array) -> bool:
    return float(np.abs(one.ravel() - other.ravel()).max()) <= _TOLERANCE * float(np.abs(other).max())
