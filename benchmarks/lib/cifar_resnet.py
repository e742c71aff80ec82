"""Networks for 32x32 images: CIFAR ResNets, and MobileNetV2 with a stem that keeps the size.

    layerfold compress benchmarks/lib/cifar_resnet.py:resnet20 --weights resnet20.safetensors --data parquet:cifar10 ...

ResNets as in He et al., Deep Residual Learning for Image Recognition (2015), section 4.2, with shortcut option A:
where the size halves the shortcut takes every second pixel and pads the channels with zeros. The keys are those of
the published checkpoints (``layer1.0.conv1.weight``, ..., ``linear.bias``).
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_CONFIG = {
    "input_size": (3, 32, 32),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 1.0,
}
"""Sizes and normalisation in the form of timm's models; ImageNet's numbers, as the checkpoints were trained."""


class SubsampleAndPad(nn.Module):
    """Every ``stride``-th pixel, with zero channels before and behind."""

    def __init__(self, stride: int, channels_before: int, channels_behind: int) -> None:
        super().__init__()
        self.stride, self.channels_before, self.channels_behind = stride, channels_before, channels_behind

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(
            images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.channels_before, self.channels_behind)
        )


class BasicBlock(nn.Module):
    """Two 3x3 convs and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            added = channels - in_channels
            self.shortcut = SubsampleAndPad(stride, added // 2, added - added // 2)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.relu1(self.bn1(self.conv1(images)))
        output: Tensor = self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(images))
        return output


class CifarResNet(nn.Module):
    """A stem, three stages of 16, 32 and 64 channels, average pooling, a linear classifier: 6n + 2 layers."""

    def __init__(self, blocks_per_stage: int, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pretrained_cfg: dict[str, Any] = dict(IMAGE_CONFIG)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, 1, blocks_per_stage)
        self.layer2 = _stage(16, 32, 2, blocks_per_stage)
        self.layer3 = _stage(32, 64, 2, blocks_per_stage)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        feature_map = self.relu(self.bn1(self.conv1(images)))
        feature_map = self.layer3(self.layer2(self.layer1(feature_map)))
        logits: Tensor = self.linear(torch.flatten(self.pool(feature_map), 1))
        return logits


def _stage(in_channels: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-20 (0.27 M parameters)."""
    return CifarResNet(3, num_classes)


def resnet20_dropout(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-20 with dropout in front of the classifier: one whose training is random."""
    model = resnet20(num_classes)
    model.pool = nn.Sequential(model.pool, nn.Dropout(0.2))
    return model


def resnet56(num_classes: int = 10) -> CifarResNet:
    """Return ResNet-56 (0.85 M parameters)."""
    return CifarResNet(9, num_classes)


def mobilenetv2_050_cifar(num_classes: int = 10) -> nn.Module:
    """Return timm's ``mobilenetv2_050`` for 32x32 images: its stem has stride 1, so that 2x2 pixels reach the head.

    Without that the last stage would work on a single pixel.
    """
    model: nn.Module = timm.create_model(
        "mobilenetv2_050", num_classes=num_classes, pretrained_cfg_overlay=dict(IMAGE_CONFIG)
    )
    stem = model.get_submodule("conv_stem")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return model
