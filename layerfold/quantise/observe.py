"""What the feature maps of a float network hold: the network run on images, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from layerfold.errors import OptionalDependencyError, UsageError
from layerfold.quantise.prepare import image_input_of, input_shape_of

Array = NDArray[Any]
_BINS = 2048  # on each side of zero
_SAMPLED = 1 << 14  # values per feature map and pass that join the histogram; extremes are of all


@dataclass
class Observed:
    """What a feature map held, over all images.

    Attributes:
        low, high: its extremes.
        counts: of the values sampled, in 2 * 2048 bins of equal width from ``-reach`` to ``reach``.
        reach: end of the last bin.
        channel_low, channel_high, channel_mean: per channel (axis 1).
        images: how many.
    """

    low: float = np.inf
    high: float = -np.inf
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2 * _BINS))
    reach: float = 0.0
    channel_low: Array = field(default_factory=lambda: np.zeros(0))
    channel_high: Array = field(default_factory=lambda: np.zeros(0))
    channel_mean: Array = field(default_factory=lambda: np.zeros(0))
    images: int = 0

    def add(self, values: Array) -> None:
        """Take in values [images, channels, ...]."""
        by_channel = values.reshape(values.shape[0], values.shape[1] if values.ndim > 1 else 1, -1)
        # the last axis first: that lies together in memory
        low, high = by_channel.min(axis=2).min(axis=0), by_channel.max(axis=2).max(axis=0)
        mean = by_channel.mean(axis=2).mean(axis=0, dtype=np.float64)
        count = values.shape[0]
        if self.images:
            self.channel_low, self.channel_high = np.minimum(self.channel_low, low), np.maximum(self.channel_high, high)
            self.channel_mean = self.channel_mean + (mean - self.channel_mean) * (count / (self.images + count))
        else:
            self.channel_low, self.channel_high, self.channel_mean = low, high, mean
        self.images += count
        self.low, self.high = min(self.low, float(low.min())), max(self.high, float(high.max()))
        if np.isfinite((self.low, self.high)).all():  # NaN is the least and the greatest of what it is among
            self._count(values.reshape(-1))

    def _count(self, values: Array) -> None:
        step = max(1, values.size // _SAMPLED)
        # an odd step meets every column and channel in turn
        sampled = values[:: step | 1]
        most = max(abs(self.low), abs(self.high))
        if self.reach == 0.0:
            self.reach = most or 0.0
        while most > self.reach > 0.0:  # twice as wide bins: each takes in two
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(_BINS // 2), pairs, np.zeros(_BINS // 2)])
            self.reach *= 2
        if self.reach > 0.0:
            places = ((sampled / self.reach + 1.0) * _BINS).astype(np.int64).clip(0, 2 * _BINS - 1)
            self.counts += np.bincount(places, minlength=2 * _BINS)


def observe(model: Any, names: Iterable[str], images: Iterable[Array]) -> dict[str, Observed]:
    """Return what feature maps of a model hold on images.

    Args:
        model: with one input [batch, channels, height, width].
        names: of the feature maps.
        images: float32, in steps of the model's batch (:func:`regrouped`).

    Raises:
        UsageError: values that are not finite.
    """
    names = list(names)
    found = {name: Observed() for name in names}
    for _, outputs in Runner(model, names).run(images):
        for name, values in zip(names, outputs, strict=True):
            found[name].add(values)
            if not np.isfinite((found[name].low, found[name].high)).all():
                raise UsageError(
                    f"batches: feature map {name!r} holds NaN or infinity on these images; check images and weights"
                )
    return found


class Runner:
    """Runs a model on images in ONNX Runtime, and gives some of its values.

    Args:
        model: an ONNX model, or its bytes.
        names: of the values wanted; its inputs may be among them. None for its outputs.
    """

    def __init__(self, model: Any, names: list[str] | None = None) -> None:
        import onnx

        model = onnx.load_from_string(model) if isinstance(model, bytes) else model
        self._shape = input_shape_of(model)
        self._input = image_input_of(model).name
        self._names = [put.name for put in model.graph.output] if names is None else names
        made = [name for name in self._names if name != self._input]
        self._session = _session(_with_outputs(model, made), is_optimised=names is None)
        self._made = made

    def run(self, images: Iterable[Array]) -> Iterator[tuple[Array, list[Array]]]:
        """Yield images and the values for them; a step may have fewer images than the graph's batch."""
        size = self._shape[0]
        for step in images:
            count = len(step)
            whole = step if count == size else np.concatenate([step, np.repeat(step[-1:], size - count, axis=0)])
            values = dict(zip(self._made, self._session.run(self._made, {self._input: whole}), strict=True))
            values[self._input] = whole
            yield step, [np.asarray(values[name])[:count] for name in self._names]


def regrouped(
    batches: Iterable[Any], shape: tuple[int, ...], wanted: int | None = None, most: int | None = None
) -> Iterator[Array]:
    """Yield float32 images in steps of ``shape[0]``, checked.

    Args:
        batches: images, arrays or tensors, or (images, labels).
        shape: of the network's input.
        wanted: how many images there must be; None for any number.
        most: to take; None for all.

    Raises:
        UsageError: fewer images than wanted, images of another shape, all constant, or not finite.
    """
    taken, varies, rest = 0, False, np.zeros((0, *shape[1:]), np.float32)
    for batch in batches:
        if taken == most:
            break
        images = np.asarray(batch[0] if isinstance(batch, tuple | list) else batch)
        if images.shape[1:] != shape[1:] or images.ndim != len(shape):
            raise UsageError(f"batches: images are of the shape {images.shape[1:]}, the network takes {shape[1:]}")
        images = images.astype(np.float32, copy=False)[: None if most is None else most - taken]
        if not np.isfinite(images).all():
            raise UsageError("batches: images hold NaN or infinity; prepare them as the network takes them")
        channels = images.reshape(*images.shape[:2], -1)
        varies = varies or bool((channels.max(axis=2, initial=-np.inf) > channels.min(axis=2, initial=np.inf)).any())
        taken += len(images)
        rest = np.concatenate([rest, images]) if len(rest) else images
        while len(rest) >= shape[0]:
            yield rest[: shape[0]]
            rest = rest[shape[0] :]
    if len(rest):
        yield rest
    if taken == 0:
        raise UsageError("batches: there are no images; give some to calibrate with")
    if wanted is not None and taken < wanted:
        raise UsageError(f"calibration_images={wanted}: there are only {taken} images; ask for fewer, or give more")
    if not varies:
        raise UsageError("batches: each image is of one colour; calibration needs real images")


def _with_outputs(model: Any, names: list[str]) -> bytes:
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {put.name for put in copy.graph.output}
    types = {info.name: info for info in copy.graph.value_info}
    for name in names:
        if name not in known:
            copy.graph.output.append(types.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    return bytes(copy.SerializeToString())


def _session(onnx_bytes: bytes, *, is_optimised: bool) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise OptionalDependencyError("quantising needs onnxruntime; run: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not is_optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        return onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise UsageError(f"ONNX Runtime cannot run this network: {' '.join(str(error).split())[:300]}") from error
