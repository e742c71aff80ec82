"""A quantised network against the float one, on images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from layerfold.quantise.network import relative_error
from layerfold.quantise.observe import Runner, regrouped
from layerfold.quantise.prepare import input_shape_of


@dataclass(frozen=True, kw_only=True)
class QuantisedCheck:
    """How far a quantised network's answers are from the float network's.

    Attributes:
        num_images: compared.
        agreement_pct: images whose most probable class is the same, percent.
        relative_error: as of :class:`layerfold.quantise.QuantisedNetwork`.
        accuracy_pct, float_accuracy_pct: of the quantised and the float network; None without labels.
    """

    num_images: int
    agreement_pct: float
    relative_error: float
    accuracy_pct: float | None = None
    float_accuracy_pct: float | None = None


def check_quantised(
    quantised_bytes: bytes, float_bytes: bytes, batches: Iterable[Any], *, most: int | None = None
) -> QuantisedCheck:
    """Run both networks in ONNX Runtime on images and compare their first outputs.

    Args:
        quantised_bytes, float_bytes: ONNX models of one input and the same shapes.
        batches: images, or (images, labels); a label below 0 is none.
        most: images to take; None for all.

    Raises:
        UsageError: no images, or of another shape.
    """
    labels: list[Any] = []

    def images() -> Iterable[Any]:
        for batch in batches:
            if isinstance(batch, tuple | list):
                labels.append(np.asarray(batch[1]))
                yield batch[0]
            else:
                yield batch

    import onnx

    shape = input_shape_of(onnx.load_from_string(float_bytes))
    steps = list(regrouped(images(), shape, most=most))
    found, expected = (
        np.concatenate([values[0] for _, values in Runner(each).run(steps)]) for each in (quantised_bytes, float_bytes)
    )
    ours, theirs = (each.reshape(len(each), -1).argmax(axis=1) for each in (found, expected))
    known = np.concatenate(labels)[: len(ours)] if labels else np.zeros(0)
    has_labels = len(known) == len(ours) and bool((known >= 0).all())
    return QuantisedCheck(
        num_images=len(ours),
        agreement_pct=100 * float(np.mean(ours == theirs)),
        relative_error=relative_error(found, expected),
        accuracy_pct=100 * float(np.mean(ours == known)) if has_labels else None,
        float_accuracy_pct=100 * float(np.mean(theirs == known)) if has_labels else None,
    )
