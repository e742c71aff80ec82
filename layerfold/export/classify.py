"""Images in, classes out: what ``layerfold run`` does with an exported classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerfold.errors import DataError, UsageError
from layerfold.export.engine_run import read_facts
from layerfold.files import JsonObject
from layerfold.terminal import name_text

if TYPE_CHECKING:
    from layerfold.data.preprocessing import Preprocessing

_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The one input of an exported network: its name, and its shape [batch, channels, height, width]."""

    name: str
    shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, inputs: Mapping[str, Sequence[int]]) -> InputSpec:
        """Return it for name -> shape.

        Raises:
            UsageError: not one input of four sizes.
        """
        if len(inputs) != 1 or len(shape := next(iter(inputs.values()))) != 4:
            shown = ", ".join(f"{name} {list(shape)}" for name, shape in inputs.items())
            raise UsageError(
                f"this network takes {shown}; `layerfold run` needs one input of images, "
                "[batch, channels, height, width]"
            )
        batch, channels, height, width = map(int, shape)
        return cls(name=next(iter(inputs)), shape=(batch, channels, height, width))


@dataclass(frozen=True, kw_only=True)
class Guess:
    """One class for one image: its index, its name where labels are known, and its softmax probability."""

    index: int
    label: str | None
    probability: float


class Classifier:
    """A compiled network with what turns image files into its input and its output into classes.

    Args:
        infer: inputs by name -> outputs; the first output is [batch, classes].
        spec: of the input.
        preprocessing: of the images.
        labels: names of the classes, in order; empty where unknown.
    """

    def __init__(
        self,
        infer: Callable[[dict[str, _Array]], list[_Array]],
        spec: InputSpec,
        preprocessing: Preprocessing,
        labels: Sequence[str] = (),
    ) -> None:
        if preprocessing.input_shape != spec.shape[1:]:
            raise UsageError(
                f"images are prepared as {preprocessing.input_shape}, the network takes {spec.shape[1:]}; "
                "export it again"
            )
        self._infer, self._spec, self._preprocessing, self._labels = infer, spec, preprocessing, list(labels)

    def classify(self, paths: Sequence[str | Path], top: int = 5) -> list[list[Guess]]:
        """Return the ``top`` most probable classes of each image, best first.

        Images go through the network in its own batch size; where the last batch is not full, its last image is
        repeated.

        Raises:
            DataError: a file that is missing or no image.
            UsageError: fewer classes than labels or the other way round, or an output that is not [batch, classes].
        """
        images = [self._image(Path(path)) for path in paths]
        batch = self._spec.shape[0]
        found: list[list[Guess]] = []
        for first in range(0, len(images), batch):
            chunk = images[first : first + batch]
            values = np.concatenate([*chunk, *chunk[-1:] * (batch - len(chunk))])
            logits = np.asarray(self._infer({self._spec.name: values})[0], np.float64)
            if logits.ndim != 2 or len(logits) != batch:
                raise UsageError(
                    f"the network's output has the shape {list(logits.shape)}, expected [{batch}, "
                    "classes]: `layerfold run` is for classifiers"
                )
            if self._labels and len(self._labels) != logits.shape[1]:
                raise UsageError(f"--labels: has {len(self._labels)} lines, the network {logits.shape[1]} classes")
            for row, path in zip(logits, paths[first:], strict=False):
                if not np.isfinite(row).all():
                    raise DataError(
                        f"--image {path}: the network's answer is not finite; see whether --mean, --std "
                        "and the weights are those that it was trained with"
                    )
            found += [self._best(row, top) for row in logits[: len(chunk)]]
        return found

    def _image(self, path: Path) -> _Array:
        from layerfold.data import reason_of

        if path.is_dir():
            named = name_text(path)
            raise DataError(f"--image {named}: is a folder; name the images in it, as in {named}/*.jpg")
        try:
            pixels = self._preprocessing.pixels(path)
        except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ... for broken files
            raise DataError(f"--image {name_text(path)}: {reason_of(error)}") from error
        return self._preprocessing.normalise(pixels[np.newaxis]).numpy()

    def _best(self, logits: _Array, top: int) -> list[Guess]:
        powers = np.exp(logits - logits.max())
        probabilities = powers / powers.sum()
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [
            Guess(
                index=int(index),
                label=self._labels[index] if self._labels else None,
                probability=float(probabilities[index]),
            )
            for index in order
        ]


def read_preprocessing(path: str | Path, spec: InputSpec, **given: Any) -> Preprocessing:
    """Return how images are prepared for a file: as the JSON beside it says, changed by what is given.

    Args:
        path: the ONNX or engine file.
        spec: of its input.
        given: fields of ``Preprocessing`` that replace those of the JSON; None is not given.

    Raises:
        UsageError: neither the JSON nor ``given`` names mean and std, or a field breaks its rule.
    """
    from layerfold.data.preprocessing import Preprocessing

    stored = read_facts(Path(path)).preprocessing
    said: JsonObject = {} if stored is None else stored.to_json()
    fields: dict[str, Any] = {**said, **{name: value for name, value in given.items() if value is not None}}
    for name in ("mean", "std"):
        if name not in fields:
            raise UsageError(f"{path}: no JSON beside it that says how images are prepared; give --mean and --std")
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    fields["input_shape"] = spec.shape[1:]
    try:
        return Preprocessing(**fields)
    except TypeError as error:
        raise UsageError(f"{path}.json: preprocessing is not understood ({error}); export again") from error


def preprocessing_facts(preprocessing: Preprocessing) -> JsonObject:
    """Return what the JSON beside a file holds."""
    return {**asdict(preprocessing), "input_shape": list(preprocessing.input_shape)}
