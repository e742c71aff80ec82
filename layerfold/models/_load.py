"""A module from ``timm:NAME``, ``torchvision:NAME`` or ``path/to/file.py:factory``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import nn

from layerfold.arguments import image_shape, shown
from layerfold.errors import UsageError, nearest_names
from layerfold.factories import is_factory_source, load_factory
from layerfold.models._config import ImageConfig, image_config, per_channel
from layerfold.models._weights import take_weights
from layerfold.modules import plain_module, public_call

_INIT_SEED = 0
_HUBS = ("hf-hub", "hf_hub", "local-dir", "hub", "torchhub", "huggingface", "hf", "http", "https", "ftp", "s3", "gs")
_OTHER_FORMATS = {
    ".onnx": "an ONNX file, which layerfold writes and times but does not read as a model yet",
    ".safetensors": "a file of weights",
    ".pth": "a file of weights",
    ".pt": "a file of weights",
    ".ckpt": "a file of weights",
    ".bin": "a file of weights",
    ".th": "a file of weights",
    ".tar": "a file of weights",
    ".pkl": "a file of weights",
    ".engine": "a TensorRT engine",
    ".h5": "an HDF5 file",
    ".keras": "a Keras file",
    ".tflite": "a TFLite file",
    ".pb": "a TensorFlow graph",
    ".pt2": "an exported program",
    ".xml": "an OpenVINO file",
}


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
        weights_key: the name of the set of weights that was taken from the file; empty for one at its top.
        note: what there is to say, as one line, for example about that choice; empty where there is nothing.

    Example:
        >>> loaded = lf.load_model("timm:mobilenetv3_small_050", num_classes=10)
        >>> loaded.name, loaded.input_shape, loaded.num_classes
        ('mobilenetv3_small_050', (3, 224, 224), 10)
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
    weights_key: str = ""
    note: str = ""


@public_call
def load_model(
    source: str,
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> LoadedModel:
    """Build a model and load its weights; nothing is downloaded.

    Without a weights file the weights are random, but the same at every call: they are drawn from a fixed seed.

    Args:
        source: ``timm:NAME``, ``torchvision:NAME`` or ``path/to/file.py:factory``. A factory may have parameters
            ``num_classes`` and ``in_chans`` (or ``in_channels``); its module may carry timm's ``pretrained_cfg``,
            a dict that names ``input_size``, ``mean``, ``std``, ``interpolation`` and ``crop_pct``.
        weights: a .safetensors file, or what ``torch.save`` wrote: a state_dict, or a checkpoint that holds one.
        weights_key: which set of weights, where the file holds several: ``ema``, ``state_dict.model``. By default
            averaged weights (EMA, SWA) where they fit, else the only set that fits.
        num_classes: outputs of the classifier; None for the model's own default.
        in_channels: channels of the input image; None for the model's own default.

    Raises:
        UsageError: an unknown source or name (with the nearest ones), a bad factory, weights that do not fit.

    Example:
        >>> loaded = lf.load_model("timm:mobilenetv3_small_050")
        >>> loaded.input_shape, loaded.num_classes
        ((3, 224, 224), 1000)
        >>> lf.load_model("own.py:small").module(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 2])
    """
    if weights_key is not None and weights is None:
        raise UsageError(f"weights_key={weights_key!r}: names a set in a weights file; give weights, too")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_INIT_SEED)
        module, config, takes_classes = _build(source, num_classes, in_channels)
    other = next((each.dtype for each in module.parameters() if each.dtype != torch.float32), None)
    converted = ""
    if other is not None:
        converted = f"MODEL={source!r}: is {str(other).removeprefix('torch.')}, converted to float32"
        module.float()
    taken = None
    if weights is not None:
        taken = take_weights(module, weights, weights_key, can_set_classes=takes_classes)
    module.eval()
    channels, height, width = image_shape(f"MODEL={source!r}: input_size", config.input_size)
    if in_channels is not None:
        channels = in_channels
    return LoadedModel(
        module=module,
        source=source,
        name=_short_name(source),
        input_shape=(channels, height, width),
        mean=per_channel(config.mean, channels),
        std=per_channel(config.std, channels),
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        num_classes=_count_classes(module, (channels, height, width), num_classes, source),
        weights_sha256=taken.sha256 if taken is not None else None,
        weights_key=taken.key if taken is not None else "",
        note="; ".join(note for note in (taken.note if taken is not None else "", converted) if note),
    )


def _build(source: str, num_classes: int | None, in_channels: int | None) -> tuple[nn.Module, ImageConfig, bool]:
    """Return the module, what it says of its images, and whether it can be built with another number of classes."""
    kind, colon, name = source.partition(":")
    if colon and kind == "timm":
        return *_build_timm(source, name, num_classes, in_channels), True
    if colon and kind == "torchvision":
        return *_build_torchvision(source, name, num_classes, in_channels), True
    if is_factory_source(source):
        return _build_from_file(source, num_classes, in_channels)
    raise UsageError(f"MODEL={shown(source)}: {_other_source(source)}")


def _other_source(source: str) -> str:
    """Say what a source is that names no model here, and what to give instead."""
    give = "give timm:NAME, torchvision:NAME or path/to/file.py:factory"
    if not source.strip():
        return f"names no model; {give}"
    kind, colon, _ = source.partition(":")
    if (colon and kind.lower() in _HUBS) or "://" in source:
        return f"nothing is downloaded; {give}, and a weights file that is on this machine"
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix in _OTHER_FORMATS:
        if suffix == ".onnx":
            return f"is {_OTHER_FORMATS[suffix]}; {give} for the network it was exported from, with its weights file"
        what = _OTHER_FORMATS[suffix]
        return f"is {what}, and no model; {give}" + (", and this file as weights" if "weights" in what else "")
    if suffix == ".py":
        return f"names a file, but not its factory; give {source}:FUNCTION, a function that returns your nn.Module"
    if colon and kind.endswith(".py"):
        return f"the part behind the colon is no name of a function; {give}"
    if os.path.isdir(source):
        return f"is a folder; {give}"
    return give + (nearest_names(kind, ("timm", "torchvision")) if colon else _family_hint(source))


class _TimmArguments(TypedDict, total=False):
    """Arguments of timm's factory beside the name: those that were asked for."""

    num_classes: int
    in_chans: int


def _build_timm(
    source: str, name: str, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, ImageConfig]:
    import timm

    if name.partition(":")[0].lower() in _HUBS or "/" in name:
        raise UsageError(
            f"MODEL={shown(source)}: nothing is downloaded; give timm:NAME with a name of "
            "timm.list_models(), and a weights file that is on this machine"
        )
    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
        nearest = nearest_names(architecture, known)
        raise UsageError(f"MODEL={shown(source)}: timm has no model {shown(architecture)}{nearest}")
    known_tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")] if dot else []
    if dot and tag not in known_tags:
        raise UsageError(
            f"MODEL={shown(source)}: timm knows no tag {shown(tag)} of {architecture}"
            f"{nearest_names(tag, known_tags) or '; leave it out'}"
        )
    arguments: _TimmArguments = {}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if in_channels is not None:
        arguments["in_chans"] = in_channels
    try:
        module = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # timm's factories check their own arguments, each in its own way
        raise UsageError(f"MODEL={source!r}: timm could not build it with {arguments}: {_one_line(error)}") from error
    return module, image_config(module, source)


def _build_torchvision(
    source: str, name: str, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, ImageConfig]:
    import torchvision

    # Only classifiers: detectors fetch the weights of their backbone even with weights=None.
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        nearest = nearest_names(name, known)
        raise UsageError(f"MODEL={shown(source)}: torchvision has no classifier {shown(name)}{nearest}")
    if in_channels not in (None, 3):
        raise UsageError(f"in_channels={in_channels}: torchvision models take 3 channels; use timm:NAME instead")
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    module = torchvision.models.get_model(name, weights=None, **arguments)
    # The transforms that go with the first published weights say which images the network was made for.
    preset = next(iter(torchvision.models.get_model_weights(name))).transforms()
    size, resized = preset.crop_size[0], preset.resize_size[0]
    config = ImageConfig(
        input_size=(3, size, size),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop_pct=size / resized,
    )
    return module, config


def _build_from_file(
    source: str, num_classes: int | None, in_channels: int | None
) -> tuple[nn.Module, ImageConfig, bool]:
    factory = load_factory(source)
    made = factory.call(num_classes=num_classes, in_chans=in_channels, in_channels=in_channels)
    module = plain_module(made, f"MODEL={source!r}: the factory", verb="returned")
    config = image_config(made if isinstance(made, nn.Module) else module, source)
    return module, config, factory.has_parameter("num_classes")


def _count_classes(module: nn.Module, input_shape: tuple[int, int, int], asked: int | None, source: str) -> int | None:
    """Return how many outputs the classifier has: as the module states it, else as it answers, else None."""
    stated = getattr(module, "num_classes", None)
    is_stated = isinstance(stated, int) and not isinstance(stated, bool) and stated >= 1
    found = stated if is_stated else _answered_classes(module, input_shape)
    if found is None:
        linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
        return linears[-1].out_features if linears else asked
    if asked is not None and found != asked:
        raise UsageError(
            f"num_classes={asked}: MODEL={source!r} answers with {found} outputs; leave num_classes out, "
            "or let the factory have a parameter num_classes"
        )
    return found


def _answered_classes(module: nn.Module, input_shape: tuple[int, int, int]) -> int | None:
    images = torch.rand(1, *input_shape, generator=torch.Generator().manual_seed(_INIT_SEED))
    some = next(module.parameters(), None)
    images = images if some is None else images.to(some)
    try:
        with torch.no_grad():
            answer = module(images)
    except Exception:  # another input than the configured one, perhaps: tracing says what is wrong with it
        return None
    is_scores = isinstance(answer, torch.Tensor) and answer.ndim == 2 and answer.shape[0] == 1
    return int(answer.shape[1]) if is_scores else None


def _short_name(source: str) -> str:
    return source.rpartition(":")[2].replace("/", "_")


def _family_hint(name: str) -> str:
    import timm
    import torchvision

    known = [f"timm:{entry}" for entry in timm.list_models()]
    known += [f"torchvision:{entry}" for entry in torchvision.models.list_models(module=torchvision.models)]
    # By the names alone: behind the same family two short names look alike.
    return nearest_names(f"timm:{name}", [each for each in known if nearest_names(name, [each.partition(":")[2]])])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
