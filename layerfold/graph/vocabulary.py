"""One vocabulary for what each library writes: the role of every node of a traced graph."""

from __future__ import annotations

import enum
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from layerfold.graph.normalise import NormBeforeAct
from layerfold.graph.specs import ActivationSpec, ConvSpec, Padding, Pair


class Role(enum.Enum):
    """What a node is to a chain."""

    CONV = "conv"
    NORM = "norm"
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
    F.relu: "relu", torch.relu: "relu", torch.relu_: "relu", F.relu_: "relu", "relu": "relu", "relu_": "relu",
    F.relu6: "relu6", F.silu: "silu", F.hardswish: "hardswish", F.hardsigmoid: "hardsigmoid",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", "sigmoid": "sigmoid", "sigmoid_": "sigmoid",
    torch.tanh: "tanh", F.tanh: "tanh", "tanh": "tanh", F.mish: "mish", F.selu: "selu", F.softsign: "softsign",
}  # fmt: skip

_ADD_TARGETS = (operator.add, operator.iadd, torch.add, "add", "add_")
_PASS_METHODS = ("contiguous", "clone", "detach")
_PASS_MODULES = ("DropPath", "StochasticDepth", "DropBlock2d", "DropBlock2D")


def conv_obstacle(module: nn.Module) -> str | None:
    """Return why a conv cannot join a chain, or None if it can."""
    if not isinstance(module, nn.Conv2d):
        return "not a 2-d convolution"
    if type(module) is not nn.Conv2d and type(module).__name__ != "Conv2dSame":
        return f"{type(module).__name__} computes its weight anew at every pass"
    if module.padding_mode != "zeros":
        return f"padding mode {module.padding_mode!r} is not zero padding"
    return None


def conv_spec(module: nn.Conv2d, input_size: Pair) -> ConvSpec:
    """Return the spec of a conv module at an input (height, width); "same" padding is worked out for that size."""
    kernel_size, stride, dilation = _pair(module.kernel_size), _pair(module.stride), _pair(module.dilation)
    padding: Padding
    if type(module).__name__ == "Conv2dSame":
        padding = _same_padding(input_size, kernel_size, stride, dilation)
    elif module.padding == "same":
        padding = _same_padding(input_size, kernel_size, (1, 1), dilation)
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
    """Say whether a module is a per-channel scale and shift in eval mode, with running statistics."""
    if type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm, NormBeforeAct):
        return module.running_mean is not None
    # A subclass may do more than normalise; torchvision's frozen one is known not to.
    return type(module).__name__ == "FrozenBatchNorm2d"


def activation_spec(node: fx.Node, modules: dict[str, nn.Module]) -> ActivationSpec | None:
    """Return the activation that a node computes, or None."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        known = _ACTIVATION_MODULES.get(type(module).__name__)
        if known is None:
            return None
        kind, names = known
        if kind == "gelu" and getattr(module, "approximate", "none") == "tanh":
            kind = "gelu_tanh"
        return ActivationSpec(kind=kind, params=tuple((name, float(getattr(module, name))) for name in names))
    if node.op in ("call_function", "call_method"):
        kind_of_function = _ACTIVATION_FUNCTIONS.get(node.target)
        if kind_of_function is not None:
            return ActivationSpec(kind=kind_of_function)
        if node.target is F.leaky_relu:
            slope = node.kwargs.get("negative_slope", node.args[1] if len(node.args) > 1 else 0.01)
            return ActivationSpec(kind="leaky_relu", params=(("negative_slope", float(slope)),))  # type: ignore[arg-type]
        if node.target is F.gelu:
            return ActivationSpec(kind="gelu_tanh" if node.kwargs.get("approximate") == "tanh" else "gelu")
    return None


def make_activation(spec: ActivationSpec) -> nn.Module:
    """Return a fresh module that computes ``spec``; a PReLU starts with one slope of 0.25."""
    params = dict(spec.params)
    makers: dict[str, Any] = {
        "relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "mish": nn.Mish, "gelu": nn.GELU,
        "gelu_tanh": lambda: nn.GELU(approximate="tanh"), "prelu": nn.PReLU, "leaky_relu": nn.LeakyReLU,
        "elu": nn.ELU, "celu": nn.CELU, "selu": nn.SELU, "softsign": nn.Softsign, "hardtanh": nn.Hardtanh,
        "softplus": nn.Softplus,
    }  # fmt: skip
    module: nn.Module = makers[spec.kind](**params)
    return module


def role_of(node: fx.Node, modules: dict[str, nn.Module]) -> Role:
    """Return the role of a node; a conv or norm that cannot join a chain is OTHER."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        if conv_obstacle(module) is None:
            return Role.CONV
        if is_norm(module):
            return Role.NORM
        if isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout2d)) or type(module).__name__ in _PASS_MODULES:
            return Role.PASS
    elif node.op in ("call_function", "call_method"):
        if node.target in _ADD_TARGETS and _adds_two_tensors(node):
            return Role.ADD
        if node.op == "call_method" and node.target in _PASS_METHODS:
            return Role.PASS
        if node.target in (F.dropout, F.dropout2d) and node.kwargs.get("training") is False:
            return Role.PASS
        if getattr(node.target, "__name__", "") == "stochastic_depth":
            return Role.PASS
    return Role.ACTIVATION if activation_spec(node, modules) is not None else Role.OTHER


def _adds_two_tensors(node: fx.Node) -> bool:
    """An addition of two different feature maps of one shape; a scalar, a broadcast or alpha makes it a barrier."""
    if node.kwargs or len(node.args) != 2 or node.args[0] is node.args[1]:
        return False
    shapes = [arg.meta.get("shape") if isinstance(arg, fx.Node) else None for arg in node.args]
    return shapes[0] is not None and shapes[0] == shapes[1] and len(shapes[0]) == 4


def barrier_reason(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[str, str]:
    """Return (kind, reason) for a node that chains do not cross."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        kind = type(module).__name__
        if isinstance(module, nn.Conv2d):
            return kind, conv_obstacle(module) or "this conv is used more than once or excluded"
        if isinstance(module, _BatchNorm) or kind == "FrozenBatchNorm2d":
            return kind, "this norm does not follow a conv directly, so it cannot be folded"
    else:
        kind = getattr(node.target, "__name__", str(node.target))
    lowered = kind.lower()
    for word, reason in _REASONS:
        if word in lowered:
            return kind, reason
    return kind, "not a convolution, BatchNorm or elementwise activation"


_REASONS = (
    ("maxpool", "takes a maximum, which is not linear"),
    ("max_pool", "takes a maximum, which is not linear"),
    ("avgpool", "pooling between chains"),
    ("avg_pool", "pooling between chains"),
    ("adaptive", "pooling between chains"),
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
