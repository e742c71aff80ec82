"""A module from ``timm:NAME``, ``torchvision:NAME`` or ``path/to/file.py:factory``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layerfold.errors import UsageError, nearest_names
from layerfold.factories import call_factory, is_factory_source
from layerfold.models._weights import load_weights

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_INIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model and what it expects of its images.

    Attributes:
        module: the network, in eval mode.
        source: what was asked for, for example ``timm:mobilenetv2_100``.
        name: a short name for files and tables.
        input_shape: (channels, height, width).
        mean, std: normalisation per channel of images in 0..1.
        interpolation: ``bilinear``, ``bicubic`` or another name that timm knows.
        crop_pct: share of the resized image's side that the centre crop keeps.
        num_classes: outputs of the classifier, or None where it cannot be told.
        weights_sha256: of the weights file, or None for random weights.
    """

    module: nn.Module
    source: str
    name: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    num_classes: int | None
    weights_sha256: str | None


def load_model(
    source: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> LoadedModel:
    """Build a model and load its weights; nothing is downloaded.

    Without a weights file the weights are random, but the same at every call: they are drawn from a fixed seed.

    Args:
        source: ``timm:NAME``, ``torchvision:NAME`` or ``path/to/file.py:factory``. A factory may have parameters
            ``num_classes`` and ``in_chans`` (or ``in_channels``); its module may carry timm's ``pretrained_cfg``,
            a dict that names ``input_size``, ``mean``, ``std``, ``interpolation`` and ``crop_pct``.
        weights: a .safetensors file, or a pickle of tensors only.
        num_classes: outputs of the classifier; None for the model's own default.
        in_channels: channels of the input image; None for the model's own default.

    Raises:
        UsageError: an unknown source or name (with the nearest ones), a bad factory, weights that do not fit.
    """
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value is not None and value < 1:
            raise UsageError(f"{name}={value}: must be at least 1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_INIT_SEED)
        module, config = _build(source, num_classes, in_channels)
    weights_sha256 = load_weights(module, weights) if weights is not None else None
    channels, height, width = config["input_size"]
    if in_channels is not None:
        channels = in_channels
    return LoadedModel(
        module=module.eval(),
        source=source,
        name=_short_name(source),
        input_shape=(channels, height, width),
        mean=_per_channel(config["mean"], channels),
        std=_per_channel(config["std"], channels),
        interpolation=config["interpolation"],
        crop_pct=float(config["crop_pct"]),
        num_classes=_count_classes(module),
        weights_sha256=weights_sha256,
    )


def _build(source: str, num_classes: int | None, in_channels: int | None) -> tuple[nn.Module, dict[str, Any]]:
    kind, colon, name = source.partition(":")
    if colon and kind == "timm":
        return _build_timm(source, name, num_classes, in_channels)
    if colon and kind == "torchvision":
        return _build_torchvision(source, name, num_classes, in_channels)
    if is_factory_source(source):
        return _build_from_file(source, num_classes, in_channels)
    hint = nearest_names(kind, ("timm", "torchvision")) if colon else _family_hint(source)
    raise UsageError(f"MODEL={source!r}: give timm:NAME, torchvision:NAME or path/to/file.py:factory{hint}")


def _build_timm(
    source: str, name: str, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise UsageError(f"MODEL={source!r}: timm has no model {architecture!r}{nearest_names(architecture, known)}")
    arguments: dict[str, Any] = {}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if in_channels is not None:
        arguments["in_chans"] = in_channels
    try:
        module = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # timm's factories check their own arguments, each in its own way
        raise UsageError(f"MODEL={source!r}: timm could not build it with {arguments}: {_one_line(error)}") from error
    return module, _timm_config(module)


def _build_torchvision(
    source: str, name: str, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    import torchvision

    # Only classifiers: detectors fetch the weights of their backbone even with weights=None.
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise UsageError(f"MODEL={source!r}: torchvision has no classifier {name!r}{nearest_names(name, known)}")
    if in_channels not in (None, 3):
        raise UsageError(f"in_channels={in_channels}: torchvision models take 3 channels; use timm:NAME instead")
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    module = torchvision.models.get_model(name, weights=None, **arguments)
    config = _default_config()
    # The transforms that go with the first published weights say which images the network was made for.
    preset = next(iter(torchvision.models.get_model_weights(name))).transforms()
    size, resized = preset.crop_size[0], preset.resize_size[0]
    config.update(
        input_size=(3, size, size), mean=tuple(preset.mean), std=tuple(preset.std),
        interpolation=preset.interpolation.value, crop_pct=size / resized,
    )
    return module, config


def _build_from_file(
    source: str, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    module = call_factory(source, num_classes=num_classes, in_chans=in_channels, in_channels=in_channels)
    if not isinstance(module, nn.Module):
        raise UsageError(f"MODEL={source!r}: the factory returned a {type(module).__name__}, not a torch.nn.Module")
    return module, _timm_config(module)


def _timm_config(module: nn.Module) -> dict[str, Any]:
    config = _default_config()
    found = getattr(module, "pretrained_cfg", None) or {}
    for key in config:
        value = found.get(key) if isinstance(found, dict) else getattr(found, key, None)
        if value is not None:
            config[key] = value
    return config


def _default_config() -> dict[str, Any]:
    return {"input_size": (3, 224, 224), "mean": _IMAGENET_MEAN, "std": _IMAGENET_STD,
            "interpolation": "bicubic", "crop_pct": 0.875}


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Three channels' numbers for another number of channels: their average for each."""
    if len(values) == channels:
        return tuple(float(value) for value in values)
    return (sum(values) / len(values),) * channels


def _count_classes(module: nn.Module) -> int | None:
    stated = getattr(module, "num_classes", None)
    if isinstance(stated, int):
        return stated
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return linears[-1].out_features if linears else None


def _short_name(source: str) -> str:
    return source.rpartition(":")[2].replace("/", "_")


def _family_hint(name: str) -> str:
    import timm
    import torchvision

    known = [f"timm:{entry}" for entry in timm.list_models()]
    known += [f"torchvision:{entry}" for entry in torchvision.models.list_models(module=torchvision.models)]
    return nearest_names(f"timm:{name}", known)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
