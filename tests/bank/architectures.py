"""The bank: the architectures that every step is checked on, each with the features that it brings.

One definition for the tests (a third of it), the slow test and ``benchmarks/package/architectures.py`` (all of it).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

NUM_CLASSES = 10
_CIFAR = Path(__file__).resolve().parents[2] / "benchmarks" / "lib" / "cifar_resnet.py"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network of the bank.

    Attributes:
        name: ``library:name``.
        make: returns it with fresh weights.
        features: names of :data:`FEATURES` that it brings.
        sizes: two heights (and widths) that it is checked at: as small as it allows, and of different parity where
            it allows that, so that strides and "same" padding meet both.
        note: how it differs from what the library's own factory gives, if it does.
    """

    name: str
    make: Callable[[], nn.Module]
    features: frozenset[str]
    sizes: tuple[int, int] = (64, 75)
    note: str = ""


FEATURES: dict[str, str] = {
    "dense": "3x3 or larger convs of one group",
    "depthwise": "one group per channel",
    "grouped": "several channels per group",
    "dilated": "dilation above 1",
    "strided": "convs with stride",
    "non_square": "kernels such as 1x7",
    "no_padding": "convs larger than 1x1 that shrink the feature map",
    "same_padding": "padding that depends on the input size and is uneven",
    "weight_standardised": "convs that normalise their weight at every pass",
    "no_norm": "convs with a bias and no norm",
    "batch_norm": "BatchNorm2d",
    "batch_norm_act": "timm's norm and activation in one module",
    "frozen_norm": "torchvision's FrozenBatchNorm2d",
    "layer_norm": "a norm that depends on its input",
    "pre_activation": "norm and activation before the conv",
    "relu": "ReLU",
    "relu6": "ReLU6",
    "silu": "SiLU",
    "hardswish": "Hardswish",
    "gelu": "GELU",
    "leaky_relu": "LeakyReLU",
    "identity_shortcut": "x + f(x)",
    "conv_shortcut": "g(x) + f(x), g a 1x1 conv with a norm",
    "pooled_shortcut": "average pooling before the shortcut's conv",
    "sliced_shortcut": "every second pixel, channels padded with zeros",
    "parallel_branches": "several convs of one input, added",
    "nested_adds": "additions whose operands come out of additions",
    "layer_scale": "a factor per channel before the addition",
    "squeeze_excitation": "a gate per channel",
    "channel_shuffle": "channels split, joined, permuted",
    "concatenation": "feature maps joined",
    "split": "a feature map cut into groups of channels",
    "mixed_kernels": "kernels of several sizes side by side",
    "upsampling": "feature maps resampled",
    "dict_output": "a dict of outputs",
}


def _torchvision(name: str, **options: Any) -> nn.Module:
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None, num_classes=NUM_CLASSES, **options)
    return model


def _vgg(name: str) -> nn.Module:
    from torchvision import models

    model = models.get_model(name, weights=None, init_weights=False)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Sequential(nn.Linear(512, NUM_CLASSES))
    result: nn.Module = model
    return result


def _segmentation(name: str) -> nn.Module:
    return _torchvision(name, weights_backbone=None)


def _detection_backbone() -> nn.Module:
    # What fasterrcnn_resnet50_fpn builds for trained weights: its norms are frozen.
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    model: nn.Module = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
    return model


def _timm(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, num_classes=NUM_CLASSES)
    return model


def _cifar() -> nn.Module:
    """Import ``benchmarks/lib/cifar_resnet.py``, which is no package."""
    spec = importlib.util.spec_from_file_location("cifar_resnet", _CIFAR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.resnet20()
    return model


def _entry(name: str, features: str, make: Callable[[str], nn.Module] | None = None, **options: Any) -> Architecture:
    library, _, own_name = name.partition(":")
    makers = {"torchvision": _torchvision, "timm": _timm}
    return Architecture(
        name=name, make=partial(make or makers[library], own_name), features=frozenset(features.split()), **options
    )


_SMALL_HEAD = "a small head in place of its classifier of 120 million parameters, which nothing here changes"
_FROZEN = "with FrozenBatchNorm2d, as fasterrcnn_resnet50_fpn builds it for trained weights"
_RESNET = "dense strided batch_norm relu identity_shortcut conv_shortcut"
_MOBILENET_V2 = "depthwise strided relu6 identity_shortcut"

BANK: tuple[Architecture, ...] = (
    _entry("torchvision:vgg11", "dense no_norm relu", _vgg, note=_SMALL_HEAD),
    _entry("torchvision:vgg19_bn", "dense batch_norm relu", _vgg, note=_SMALL_HEAD),
    _entry("torchvision:resnet18", _RESNET),
    _entry("torchvision:resnet34", _RESNET),
    _entry("torchvision:resnet50", _RESNET),
    _entry("torchvision:resnet152", _RESNET),
    _entry("torchvision:resnext50_32x4d", f"{_RESNET} grouped"),
    _entry("torchvision:wide_resnet50_2", _RESNET),
    _entry("torchvision:mobilenet_v2", f"{_MOBILENET_V2} batch_norm"),
    _entry(
        "torchvision:mobilenet_v3_large",
        "depthwise strided batch_norm relu hardswish identity_shortcut squeeze_excitation",
    ),
    _entry("torchvision:mnasnet1_0", "depthwise strided batch_norm relu identity_shortcut"),
    _entry("torchvision:shufflenet_v2_x1_0", "depthwise strided batch_norm relu channel_shuffle concatenation split"),
    _entry("torchvision:squeezenet1_1", "dense strided no_norm no_padding relu concatenation"),
    _entry("torchvision:densenet121", "dense strided batch_norm relu pre_activation concatenation"),
    _entry(
        "torchvision:googlenet",
        "dense strided batch_norm relu concatenation",
        partial(_torchvision, init_weights=False),
    ),
    _entry(
        "torchvision:inception_v3",
        "dense strided batch_norm relu concatenation non_square no_padding",
        partial(_torchvision, init_weights=False),
        sizes=(75, 96),
    ),
    _entry("torchvision:regnet_x_400mf", f"{_RESNET} grouped"),
    _entry("torchvision:regnet_y_400mf", f"{_RESNET} grouped squeeze_excitation"),
    _entry("torchvision:efficientnet_b0", "depthwise strided batch_norm silu identity_shortcut squeeze_excitation"),
    _entry(
        "torchvision:efficientnet_v2_s", "dense depthwise strided batch_norm silu identity_shortcut squeeze_excitation"
    ),
    _entry(
        "torchvision:convnext_tiny", "dense depthwise strided no_norm layer_norm gelu identity_shortcut layer_scale"
    ),
    _entry("torchvision:fcn_resnet50", f"{_RESNET} dilated upsampling dict_output", _segmentation),
    _entry(
        "torchvision:deeplabv3_mobilenet_v3_large",
        "dense depthwise dilated strided batch_norm relu hardswish identity_shortcut squeeze_excitation "
        "concatenation upsampling dict_output",
        _segmentation,
    ),
    _entry(
        "torchvision:lraspp_mobilenet_v3_large",
        "depthwise dilated strided batch_norm relu hardswish identity_shortcut squeeze_excitation upsampling "
        "dict_output",
        _segmentation,
    ),
    _entry(
        "torchvision:fasterrcnn_resnet50_fpn.backbone",
        "dense strided frozen_norm relu identity_shortcut conv_shortcut upsampling dict_output no_norm",
        lambda _: _detection_backbone(),
        note=_FROZEN,
    ),
    _entry("timm:mobilenetv2_100", f"{_MOBILENET_V2} batch_norm_act"),
    _entry("timm:mobilenetv2_140", f"{_MOBILENET_V2} batch_norm_act"),
    _entry("timm:mobilenetv4_conv_small", "dense depthwise strided batch_norm_act relu identity_shortcut"),
    _entry("timm:efficientnet_lite0", f"{_MOBILENET_V2} batch_norm_act"),
    _entry("timm:tf_efficientnet_lite0", f"{_MOBILENET_V2} batch_norm_act same_padding"),
    _entry("timm:repvgg_a0", "dense strided batch_norm_act relu parallel_branches"),
    _entry("timm:mobileone_s0", "depthwise strided batch_norm_act relu parallel_branches"),
    _entry(
        "timm:ghostnet_100",
        "dense depthwise strided batch_norm batch_norm_act relu identity_shortcut conv_shortcut squeeze_excitation "
        "concatenation split",
    ),
    _entry("timm:fbnetc_100", "depthwise strided batch_norm_act relu identity_shortcut"),
    _entry(
        "timm:hardcorenas_a", "depthwise strided batch_norm_act relu hardswish identity_shortcut squeeze_excitation"
    ),
    _entry("timm:resnet26d", f"{_RESNET} pooled_shortcut"),
    _entry("timm:resnetv2_50", "dense strided batch_norm_act relu identity_shortcut conv_shortcut pre_activation"),
    _entry("timm:res2net50_26w_4s", f"{_RESNET} split concatenation"),
    _entry("timm:dla34", f"{_RESNET} concatenation nested_adds", sizes=(64, 96)),
    _entry("timm:vovnet39a", "dense strided batch_norm_act relu concatenation"),
    _entry("timm:cspresnet50", "dense strided batch_norm_act leaky_relu identity_shortcut split concatenation"),
    _entry("timm:hrnet_w18", f"{_RESNET} upsampling nested_adds", sizes=(64, 96)),
    _entry("timm:darknet53", "dense strided batch_norm_act leaky_relu identity_shortcut"),
    _entry(
        "timm:nfnet_l0",
        "dense grouped strided weight_standardised no_norm silu identity_shortcut conv_shortcut pooled_shortcut "
        "pre_activation squeeze_excitation layer_scale",
    ),
    _entry(
        "timm:tf_mixnet_s",
        "depthwise strided batch_norm_act relu silu identity_shortcut squeeze_excitation split mixed_kernels "
        "concatenation same_padding",
    ),
    _entry("timm:regnetx_002", "grouped strided batch_norm_act relu identity_shortcut conv_shortcut"),
    _entry(
        "benchmarks:resnet20",
        "dense strided batch_norm relu identity_shortcut sliced_shortcut",
        lambda _: _cifar(),
        sizes=(32, 35),
        note="CIFAR ResNet-20 of benchmarks/lib/cifar_resnet.py, shortcut option A",
    ),
)


QUICK: tuple[str, ...] = (
    "benchmarks:resnet20",
    "torchvision:squeezenet1_1",
    "torchvision:inception_v3",
    "torchvision:convnext_tiny",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:fasterrcnn_resnet50_fpn.backbone",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:densenet121",
    "torchvision:regnet_x_400mf",
    "timm:tf_efficientnet_lite0",
    "timm:repvgg_a0",
    "timm:resnet26d",
    "timm:cspresnet50",
    "timm:nfnet_l0",
    "timm:dla34",
    "timm:tf_mixnet_s",
)
"""A third of the bank, with every feature in it: what `make test` runs."""


def find(name: str) -> Architecture:
    """Return the architecture of that name, with or without its library."""
    return next(each for each in BANK if name in (each.name, each.name.partition(":")[2]))
