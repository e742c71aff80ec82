"""One vocabulary for what each library writes: the role of every node of a traced graph."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerfold.graph.conv_forwards import computes_conv, inherits_forward, padding_at, pads_by_itself
from layerfold.graph.elementwise import Kwargs, constants_of, is_elementwise_call, is_elementwise_module
from layerfold.graph.linear_modules import ChannelScale, PaddedConv2d, StridedSlice
from layerfold.graph.rewrites.constants import is_number
from layerfold.graph.rewrites.sums import adds_feature_maps
from layerfold.graph.specs import ActivationSpec, ConvSpec, Padding, Pair, Shape
from layerfold.graph.weights import derives_weight, has_other_hooks, pads_to_same_size


class Role(enum.Enum):
    """Role of a node in a chain."""

    CONV = "conv"
    NORM = "norm"
    """A scale and a shift of each channel."""
    POOL = "pool"
    """An average over windows of one size."""
    SLICE = "slice"
    """Every n-th pixel, perhaps with zero channels around it."""
    ACTIVATION = "activation"
    ADD = "add"
    PASS = "pass"
    """Does nothing in eval mode: dropout, stochastic depth, identity."""
    OTHER = "other"


_ACTIVATION_MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ReLU": ("relu", ()),
    "ReLU6": ("relu6", ()),
    "SiLU": ("silu", ()),
    "Swish": ("silu", ()),
    "Hardswish": ("hardswish", ()),
    "HardSwish": ("hardswish", ()),
    "Hardsigmoid": ("hardsigmoid", ()),
    "HardSigmoid": ("hardsigmoid", ()),
    "Sigmoid": ("sigmoid", ()),
    "Tanh": ("tanh", ()),
    "Mish": ("mish", ()),
    "GELU": ("gelu", ()),
    "GELUTanh": ("gelu_tanh", ()),
    "PReLU": ("prelu", ()),
    "LeakyReLU": ("leaky_relu", ("negative_slope",)),
    "ELU": ("elu", ("alpha",)),
    "CELU": ("celu", ("alpha",)),
    "SELU": ("selu", ()),
    "Softplus": ("softplus", ("beta", "threshold")),
    "Softsign": ("softsign", ()),
    "Hardtanh": ("hardtanh", ("min_val", "max_val")),
}

_ACTIVATION_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu_: "relu",
    "relu": "relu",
    "relu_": "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
    "tanh": "tanh",
    F.mish: "mish",
    F.selu: "selu",
    F.softsign: "softsign",
}

_PARAMETRIC_FUNCTIONS: dict[Any, tuple[str, dict[str, float]]] = {
    F.leaky_relu: ("leaky_relu", {"negative_slope": 0.01}),
    F.elu: ("elu", {"alpha": 1.0}),
    F.celu: ("celu", {"alpha": 1.0}),
    F.hardtanh: ("hardtanh", {"min_val": -1.0, "max_val": 1.0}),
    F.softplus: ("softplus", {"beta": 1.0, "threshold": 20.0}),
}

_PASS_METHODS = ("contiguous", "clone", "detach", "requires_grad_")
_PASS_MODULES = ("DropPath", "StochasticDepth", "DropBlock2d", "DropBlock2D")


def conv_obstacle(module: nn.Module) -> str | None:
    """Return why a conv cannot join a chain, or None if it can."""
    if not isinstance(module, nn.Conv2d):
        return "not a 2-d convolution"
    if has_other_hooks(module):
        return "a hook on it may do anything; remove the hook before tracing"
    if not computes_conv(module) and not derives_weight(module):
        return f"{type(module).__name__} is a conv with a forward of its own, which computes something else"
    if module.padding_mode != "zeros":
        return f"padding mode {module.padding_mode!r} is not zero padding"
    return None


def linear_spec(module: nn.Module, input_shape: Shape) -> ConvSpec:
    """Return the spec of a linear module (roles CONV, NORM, POOL, SLICE) at an input (channels, height, width)."""
    channels = input_shape[0]
    if isinstance(module, nn.Conv2d):
        return conv_spec(module, input_shape[1:])
    if isinstance(module, StridedSlice):
        is_channelwise = not (module.before or module.behind)
        return ConvSpec(
            in_channels=channels,
            out_channels=module.before + channels + module.behind,
            kernel_size=(1, 1),
            stride=module.stride,
            groups=channels if is_channelwise else 1,
            kind="slice",
        )
    if isinstance(module, nn.AvgPool2d):
        height, width = _pair(module.padding)
        return ConvSpec(
            in_channels=channels,
            out_channels=channels,
            kernel_size=_pair(module.kernel_size),
            stride=_pair(module.stride),
            padding=((height, height), (width, width)),
            groups=channels,
            kind="pool",
        )
    return ConvSpec.channelwise(channels, "scale" if isinstance(module, ChannelScale) else "norm")


def conv_spec(module: nn.Conv2d, input_size: Pair) -> ConvSpec:
    """Return the spec of a conv module at an input (height, width); "same" padding is worked out for that size."""
    kernel_size, stride, dilation = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    padding: Padding
    if isinstance(module, PaddedConv2d):
        left, right, top, bottom = module.sides
        padding = ((top, bottom), (left, right))
    elif pads_to_same_size(module):
        padding = _same_padding(input_size, kernel_size, stride, dilation)
    elif not derives_weight(module) and pads_by_itself(module):
        found = padding_at(module, input_size)
        assert found is not None  # else it has no role
        padding = found
    elif module.padding == "same":
        padding = _torch_same_padding(kernel_size, dilation)
    elif module.padding == "valid":
        padding = ((0, 0), (0, 0))
    else:
        height, width = _pair(module.padding)
        padding = ((height, height), (width, width))
    return ConvSpec(
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=module.groups,
    )


def _torch_same_padding(kernel_size: Pair, dilation: Pair) -> Padding:
    """torch's rule for stride 1: the odd zero at the bottom and right."""
    totals = [(size - 1) * step for size, step in zip(kernel_size, dilation, strict=True)]
    return (totals[0] // 2, totals[0] - totals[0] // 2), (totals[1] // 2, totals[1] - totals[1] // 2)


def _same_padding(input_size: Pair, kernel_size: Pair, stride: Pair, dilation: Pair) -> Padding:
    """TensorFlow's rule: output = ceil(input / stride), the odd zero at the bottom and right."""
    pairs: list[Pair] = []
    for axis in (0, 1):
        outputs = -(-input_size[axis] // stride[axis])
        total = (outputs - 1) * stride[axis] + (kernel_size[axis] - 1) * dilation[axis] + 1 - input_size[axis]
        total = max(total, 0)
        pairs.append((total // 2, total - total // 2))
    return pairs[0], pairs[1]


def is_norm(module: nn.Module) -> bool:
    """Say whether a module is a per-channel scale and shift in eval mode."""
    if has_other_hooks(module):
        return False
    if isinstance(module, _BatchNorm) and inherits_forward(module, nn.BatchNorm2d, nn.SyncBatchNorm):
        return module.running_mean is not None
    # A subclass may do more than normalise; torchvision's frozen one is known not to.
    return type(module) is ChannelScale or type(module).__name__ == "FrozenBatchNorm2d"


def is_linear_pooling(module: nn.Module) -> TypeGuard[nn.AvgPool2d]:
    """Say whether a module averages over windows of one size, zeros at the border counted."""
    if type(module) is not nn.AvgPool2d or module.divisor_override is not None:
        return False
    return module.count_include_pad or _pair(module.padding) == (0, 0)


def activation_spec(node: fx.Node, modules: dict[str, nn.Module]) -> ActivationSpec | None:
    """Return the activation that a node computes, or None.

    What no table here lists counts as one where it treats each value by itself; its kind is then its own name.
    """
    if node.op == "call_module":
        module = modules[str(node.target)]
        known = _ACTIVATION_MODULES.get(type(module).__name__)
        if known is None or not type(module).__module__.startswith(("torch.nn.", "timm.")):
            if not is_elementwise_module(module):
                return None
            return ActivationSpec(kind=type(module).__name__, params=constants_of(module))
        kind, names = known
        if kind == "gelu" and getattr(module, "approximate", "none") == "tanh":
            kind = "gelu_tanh"
        return ActivationSpec(kind=kind, params=tuple((name, float(getattr(module, name))) for name in names))
    if node.op in ("call_function", "call_method"):
        return _activation_of_call(node)
    return None


def _activation_of_call(node: fx.Node) -> ActivationSpec | None:
    kind = _ACTIVATION_FUNCTIONS.get(node.target)
    if kind is not None:
        return ActivationSpec(kind=kind)
    if node.target is F.gelu:
        return ActivationSpec(kind="gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu")
    if node.target in _PARAMETRIC_FUNCTIONS:
        kind, defaults = _PARAMETRIC_FUNCTIONS[node.target]
        given: Kwargs = {**defaults, **dict(zip(defaults, node.args[1:], strict=False)), **node.kwargs}
        if all(is_number(given[name]) for name in defaults):
            return ActivationSpec(kind=kind, params=tuple((name, float(given[name])) for name in defaults))
        return None
    if len(node.all_input_nodes) != 1 or not node.args or node.args[0] is not node.all_input_nodes[0]:
        return None
    if len(node.meta.get("shape", ())) != 4 or not is_elementwise_call(node.target, node.args[1:], node.kwargs):
        return None
    numbers: list[tuple[str, Any]] = [(str(i), value) for i, value in enumerate(node.args[1:], start=1)]
    numbers += sorted(node.kwargs.items())
    return ActivationSpec(
        kind=getattr(node.target, "__name__", str(node.target)),
        params=tuple((name, float(value)) for name, value in numbers if isinstance(value, (int, float))),
    )


def make_activation(spec: ActivationSpec) -> nn.Module | None:
    """Return a fresh module that computes ``spec``, a PReLU with one slope of 0.25; None for a kind no table lists."""
    params = dict(spec.params)
    makers: dict[str, Callable[..., nn.Module]] = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "silu": nn.SiLU,
        "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "mish": nn.Mish,
        "gelu": nn.GELU,
        "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
        "prelu": nn.PReLU,
        "leaky_relu": nn.LeakyReLU,
        "elu": nn.ELU,
        "celu": nn.CELU,
        "selu": nn.SELU,
        "softsign": nn.Softsign,
        "hardtanh": nn.Hardtanh,
        "softplus": nn.Softplus,
    }
    return makers[spec.kind](**params) if spec.kind in makers else None


def role_of(node: fx.Node, modules: dict[str, nn.Module]) -> Role:
    """Return the role of a node; a conv or norm that cannot join a chain is OTHER."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if isinstance(module, nn.Conv2d):
            return Role.CONV if conv_obstacle(module) is None and _has_padding(node, module) else Role.OTHER
        if is_norm(module):
            return Role.NORM
        if has_other_hooks(module):  # as part of an activation it stays or goes with that; else it may do anything
            return Role.ACTIVATION if activation_spec(node, modules) is not None else Role.OTHER
        if type(module) is StridedSlice:
            return Role.SLICE
        if is_linear_pooling(module) and _covers_whole_windows(node, module):
            return Role.POOL
        if isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout2d)) or type(module).__name__ in _PASS_MODULES:
            return Role.PASS
    elif node.op in ("call_function", "call_method"):
        if adds_feature_maps(node):
            return Role.ADD
        if node.op == "call_method" and node.target in _PASS_METHODS:
            return Role.PASS
        if node.target in (F.dropout, F.dropout2d) and node.kwargs.get("training") is False:
            return Role.PASS
        if getattr(node.target, "__name__", "") == "stochastic_depth":
            return Role.PASS
    return Role.ACTIVATION if activation_spec(node, modules) is not None else Role.OTHER


def _has_padding(node: fx.Node, conv: nn.Conv2d) -> bool:
    """Say whether a conv's padding at the traced size is known."""
    if derives_weight(conv) or not pads_by_itself(conv):
        return True
    shape = node.all_input_nodes[0].meta.get("shape", ())
    return len(shape) == 4 and padding_at(conv, (shape[2], shape[3])) is not None


def _covers_whole_windows(node: fx.Node, module: nn.AvgPool2d) -> bool:
    """Say whether no window hangs over the border (``ceil_mode`` on a size that the stride does not divide)."""
    before, after = node.all_input_nodes[0].meta.get("shape", ()), node.meta.get("shape", ())
    return len(before) == len(after) == 4 and linear_spec(module, before[1:]).output_shape(before[1:]) == after[1:]


def barrier_reason(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[str, str]:
    """Return (kind, reason) for a node that chains do not cross."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        kind = type(module).__name__
        if isinstance(module, nn.Conv2d):
            return kind, conv_obstacle(module) or "this conv is used more than once or excluded"
        if isinstance(module, _BatchNorm) or kind == "FrozenBatchNorm2d":
            return kind, "a norm with no conv beside it to fold it into, shared, or of batch statistics"
        if isinstance(module, ChannelScale):
            return kind, "multiplies or adds constants, with no conv beside it to fold them into"
        if isinstance(module, StridedSlice):
            return kind, "takes every n-th pixel, with no conv beside it"
    else:
        kind = getattr(node.target, "__name__", str(node.target))
    if activation_spec(node, modules) is not None:
        return kind, "an activation that follows no layer of a chain"
    lowered = kind.lower()
    for word, reason in _REASONS:
        if word in lowered:
            return kind, reason
    return kind, "not a convolution, BatchNorm or elementwise activation"


_REASONS = (
    ("maxpool", "takes a maximum, which is not linear"),
    ("max_pool", "takes a maximum, which is not linear"),
    ("adaptive", "pooling between chains"),
    ("avgpool", "pooling between chains (with merge_pooling a fixed average is a layer)"),
    ("avg_pool", "pooling between chains (with merge_pooling a fixed average is a layer)"),
    ("mean", "pooling between chains"),
    ("pool", "pooling between chains"),
    ("mul", "multiplies two feature maps (squeeze-and-excitation, gating), which is not linear"),
    ("add", "adds a feature map from outside the chain, or one after its activation"),
    ("cat", "joins several feature maps"),
    ("interpolate", "resamples the feature map"),
    ("upsample", "resamples the feature map"),
    ("linear", "a fully connected layer"),
    ("flatten", "reshapes the feature map"),
    ("view", "reshapes the feature map"),
    ("reshape", "reshapes the feature map"),
    ("getitem", "slices the feature map"),
    ("norm", "a norm that depends on its input"),
    ("attention", "attention"),
)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
